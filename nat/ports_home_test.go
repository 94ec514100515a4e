package nat

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// TestPortsComeHome: whatever the NIC's key and table, a worker finds a port whose
// reply comes home if there is one. With poor
// keys, and now and then with random ones, a thousand ports in a row all lead to
// other workers.
func TestPortsComeHome(t *testing.T) {
	b := newPortsBench(t, 4, 1, 1)
	rs := b.dir.Backends[0]
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 52, 52).Draw(t, "key")
		if rapid.Bool().Draw(t, "a poor key") {
			by, from := rapid.Byte().Draw(t, "by"), rapid.Byte().Draw(t, "from")
			for i := range key {
				key[i] = byte(i)*by + from
			}
		}
		workers := rapid.IntRange(2, 16).Draw(t, "workers")
		table := rapid.SliceOfN(rapid.Uint32Range(0, 15), 128, 128).Draw(t, "table")
		if rapid.Bool().Draw(t, "in turns") {
			for i := range table {
				table[i] = uint32(i)
			}
		}
		spread, err := rss.New(key, table, workers)
		if err != nil {
			t.Fatal(err)
		}
		tu := packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Dst: b.dir.Locals[0], Proto: rs.Proto}
		homes := make([]int, workers)
		for port := 1024; port < 65536; port++ {
			tu.DstPort = uint16(port)
			homes[spread.Worker(&tu)]++
		}
		for w, n := range homes {
			s := NewPorts(PortOptions{Worker: w, Workers: workers, Seed: rapid.Uint64().Draw(t, "seed"), Spread: spread})
			for range 3 {
				_, port, _, ok := s.Pick(b.t, &b.dir, []uint16{0}, 0, 0)
				if tu.DstPort = port; ok && spread.Worker(&tu) != w || !ok && n > 0 {
					t.Fatalf("worker %d of %d: port %d, %v; %d are its own", w, workers, port, ok, n)
				}
			}
		}
	})
}

package rss

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// The key and the cases are those of Microsoft's "Verifying the RSS hash
// calculation", which every NIC vendor tests against.
const key = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"

func testKey(t testing.TB) []byte {
	t.Helper()
	k, err := hex.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func tuple(src, dst string) *packet.Tuple {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	return &packet.Tuple{Src: packet.AddrFrom(s.Addr()), Dst: packet.AddrFrom(d.Addr()), SrcPort: s.Port(), DstPort: d.Port()}
}

func TestVerificationSuite(t *testing.T) {
	s, err := New(testKey(t), []uint32{0}, 1)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		src, dst string
		want     uint32
	}{
		{"66.9.149.187:2794", "161.142.100.80:1766", 0x51ccc178},
		{"199.92.111.2:14230", "65.69.140.83:4739", 0xc626b0ea},
		{"24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b394a},
		{"38.27.205.30:48228", "209.142.163.6:2217", 0xafc7327f},
		{"153.39.163.191:44251", "202.188.127.2:1303", 0x10e828a2},
		{"[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x40207d3d},
		{"[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0xdde51bbf},
		{"[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", "[fe80::200:f8ff:fe21:67cf]:38024", 0x02d1feef},
	}
	for _, tt := range tests {
		if got := s.Hash(tuple(tt.src, tt.dst)); got != tt.want {
			t.Errorf("%s → %s: %#08x, want %#08x", tt.src, tt.dst, got, tt.want)
		}
	}
}

// slow is the hash as it is defined: for every set bit of the input, the 32
// bits of key that begin there.
func slow(key, input []byte) (h uint32) {
	for i := range 8 * len(input) {
		if input[i/8]&(0x80>>(i%8)) == 0 {
			continue
		}
		var w uint32
		for k := range 32 {
			bit := i + k
			w = w<<1 | uint32(key[bit/8]>>(7-bit%8)&1)
		}
		h ^= w
	}
	return h
}

func TestAgainstDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SliceOfN(rapid.Byte(), KeyMin, 52).Draw(t, "key")
		s, err := New(k, []uint32{0, 1, 2, 3}, 3)
		if err != nil {
			t.Fatal(err)
		}
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
		in := rapid.SliceOfN(rapid.Byte(), 2*size+4, 2*size+4).Draw(t, "input")
		src, _ := netip.AddrFromSlice(in[:size])
		dst, _ := netip.AddrFromSlice(in[size : 2*size])
		if size == 16 && (src.Is4In6() || dst.Is4In6()) {
			return
		}
		p := in[2*size:]
		tu := packet.Tuple{Src: packet.AddrFrom(src), Dst: packet.AddrFrom(dst),
			SrcPort: uint16(p[0])<<8 | uint16(p[1]), DstPort: uint16(p[2])<<8 | uint16(p[3])}
		want := slow(k, in)
		if got := s.Hash(&tu); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
		if got := s.Worker(&tu); got != int(want%4%3) {
			t.Fatalf("worker %d of hash %#x", got, want)
		}
	})
}

func TestRefusals(t *testing.T) {
	k := testKey(t)
	for name, f := range map[string]func() (*Spread, error){
		"short key": func() (*Spread, error) { return New(k[:39], []uint32{0}, 1) },
		"no slots":  func() (*Spread, error) { return New(k, nil, 1) },
		"no worker": func() (*Spread, error) { return New(k, []uint32{0}, 0) },
	} {
		if _, err := f(); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	s, err := New(testKey(t), []uint32{0, 1}, 2)
	if err != nil {
		t.Fatal(err)
	}
	tu := tuple("66.9.149.187:2794", "161.142.100.80:1766")
	if n := testing.AllocsPerRun(100, func() { s.Worker(tu) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

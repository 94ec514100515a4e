package dataplane

import (
	"encoding/hex"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// microsoftKey is the key of "Verifying the RSS hash calculation", which many
// drivers have as their default.
const microsoftKey = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"

// nic is a NIC with receive side scaling, of 8 queues and 128 slots. It shares
// no code with what l4fwd makes of the same key and table, in which the queues do
// not just take turns.
type nic struct {
	key     []byte
	slots   [128]uint32
	workers int
}

func newNIC(workers int, key []byte) *nic {
	n := &nic{key: key, workers: workers}
	for i := range n.slots {
		n.slots[i] = uint32(i*5+i/16) % 8
	}
	return n
}

// microsoftNIC has the key with the published cases.
func microsoftNIC(t testing.TB, workers int) *nic {
	t.Helper()
	key, err := hex.DecodeString(microsoftKey)
	if err != nil {
		t.Fatal(err)
	}
	return newNIC(workers, key)
}

// told is what ethtool says of the NIC, as l4fwd takes it.
func (n *nic) told(t testing.TB) *rss.Spread {
	t.Helper()
	s, err := rss.New(n.key, n.slots[:], n.workers)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hash is Toeplitz's, as a shift register: whatever bit of the input is set adds
// the leftmost 32 bits of the key, which moves on by one bit for each.
func (n *nic) hash(src, dst packet.Addr, sport, dport uint16) uint32 {
	input := append(src.Netip().AsSlice(), dst.Netip().AsSlice()...)
	input = append(input, byte(sport>>8), byte(sport), byte(dport>>8), byte(dport))
	register := uint32(n.key[0])<<24 | uint32(n.key[1])<<16 | uint32(n.key[2])<<8 | uint32(n.key[3])
	sum, next := uint32(0), 32
	for _, b := range input {
		for bit := 7; bit >= 0; bit-- {
			if b>>bit&1 == 1 {
				sum ^= register
			}
			register = register<<1 | uint32(n.key[next/8]>>(7-next%8)&1)
			next++
		}
	}
	return sum
}

// worker is whose queue a packet arrives on: the low seven bits of the hash select
// the slot, and worker w of W has the queues w, w+W and so on.
func (n *nic) worker(src, dst packet.Addr, sport, dport uint16) int {
	return int(n.slots[n.hash(src, dst, sport, dport)&0x7f]) % n.workers
}

// TestNICHash holds the NIC of the tests against Microsoft's cases.
func TestNICHash(t *testing.T) {
	n := microsoftNIC(t, 1)
	for _, tt := range []struct {
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
	} {
		s, d := endpoint(tt.src, 6), endpoint(tt.dst, 6)
		if got := n.hash(s.Addr, d.Addr, s.Port, d.Port); got != tt.want {
			t.Errorf("%s → %s: %#08x, want %#08x", tt.src, tt.dst, got, tt.want)
		}
	}
}

package dataplane

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// A set has nothing that was not put in, all of some dozens of addresses, and nearly
// all of many.
func TestAddrSet(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) packet.Addr {
		if rapid.Bool().Draw(t, "v6") {
			return packet.Addr{Hi: 0x20010db8<<32 | uint64(rapid.Uint16().Draw(t, "net")), Lo: rapid.Uint64Max(300).Draw(t, "host")}
		}
		return packet.Addr{Lo: 0xffff<<32 | uint64(10<<24|rapid.Uint32Max(1000).Draw(t, "v4"))}
	})
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfNDistinct(address, 0, 300, rapid.ID).Draw(t, "addresses")
		in := all[:rapid.IntRange(0, len(all)).Draw(t, "in")]
		s, missed := newAddrSet(in), 0
		for i, a := range all {
			switch has := s.differs(a) == 0; {
			case has && i >= len(in):
				t.Fatalf("has %v", a.Netip())
			case !has && i < len(in):
				missed++
			}
		}
		if len(in) <= 48 && missed > 0 || missed > 1+len(in)/20 {
			t.Errorf("misses %d of %d", missed, len(in))
		}
	})
}

// TestAddrSetOfOnePlace: two addresses that would share a place are told apart.
func TestAddrSetOfOnePlace(t *testing.T) {
	s := newAddrSet([]packet.Addr{{Hi: 0x20010db8 << 32}})
	for _, a := range []packet.Addr{{Hi: 0x20010db8<<32 | 1, Lo: 1}, {Hi: 0x20010db8<<32 | 7, Lo: 7}, {Hi: 0x20010db8 << 32, Lo: 1}} {
		if s.differs(a) == 0 {
			t.Errorf("has %v", a.Netip())
		}
	}
}

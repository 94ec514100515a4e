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

// TestAddrSetOfAlikeHalves: host 1 of network 1, host 2 of network 2 and so on are all
// in a set.
func TestAddrSetOfAlikeHalves(t *testing.T) {
	var all []packet.Addr
	for i := range uint64(16) {
		all = append(all, packet.Addr{Hi: 0x20010db8<<32 | i, Lo: i})
	}
	s := newAddrSet(all)
	for _, a := range all {
		if s.differs(a) != 0 {
			t.Errorf("misses %v", a.Netip())
		}
	}
}

// TestAddrSetOfOnePlace: addresses that would share a place are told apart, also
// where both halves differ alike.
func TestAddrSetOfOnePlace(t *testing.T) {
	const net, alike = 0x20010db8 << 32, 7<<32 | 7 // turned by half it is the same
	s := newAddrSet([]packet.Addr{{Hi: net}})
	for _, a := range []packet.Addr{{Hi: net ^ alike, Lo: alike}, {Hi: net | 7, Lo: 7 << 32}, {Hi: net, Lo: 1}} {
		if s.differs(a) == 0 {
			t.Errorf("has %v", a.Netip())
		}
	}
}

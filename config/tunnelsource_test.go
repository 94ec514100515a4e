package config

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestSpans: what is found by looking at few is what there is.
func TestSpans(t *testing.T) {
	found := 0
	rapid.Check(t, func(t *rapid.T) {
		addr := func(what string) netip.Addr {
			b := byte(rapid.IntRange(0, 63).Draw(t, what))
			if rapid.Bool().Draw(t, what+" is IPv6") {
				return netip.AddrFrom16([16]byte{0: 0xfd, 15: b})
			}
			return netip.AddrFrom4([4]byte{10, 0, 0, b})
		}
		var list []span
		for range rapid.IntRange(0, 5).Draw(t, "spans") {
			s := span{addr("first"), addr("last")}
			if s.last.Less(s.first) || s.first.Is4() != s.last.Is4() {
				s.last = s.first
			}
			list = append(list, s)
		}
		a := addr("network")
		p := netip.PrefixFrom(a, a.BitLen()-rapid.IntRange(0, 5).Draw(t, "bits"))
		want := slices.ContainsFunc(list, func(s span) bool {
			for a := s.first; !s.last.Less(a); a = a.Next() {
				if p.Contains(a) {
					return true
				}
			}
			return false
		})
		if got := newSpans(slices.Clone(list)).in(p); got != want {
			t.Errorf("%v in %v: %v, want %v", list, p, got, want)
		}
		if want {
			found++
		}
	})
	if found == 0 {
		t.Error("none was in one")
	}
}

package route

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/l4fwd/l4fwd/packet"
)

// span is a prefix as its first and last address.
type span struct {
	first, last packet.Addr
	bits        int16 // prefix length in the 128-bit space
	hop         HopID
	order       int32 // among the prefixes given
}

// rangeStart begins a range of addresses that go to one hop.
type rangeStart struct {
	first packet.Addr
	hop   HopID
}

func compare(a, b packet.Addr) int {
	if a.Hi != b.Hi {
		return cmp.Compare(a.Hi, b.Hi)
	}
	return cmp.Compare(a.Lo, b.Lo)
}

// next returns a+1; the caller knows that a is not the last address.
func next(a packet.Addr) packet.Addr {
	lo, carry := bits.Add64(a.Lo, 1, 0)
	return packet.Addr{Hi: a.Hi + carry, Lo: lo}
}

// spanOf converts a prefix; ok is false for one that names no addresses of
// its family.
func spanOf(p Prefix) (s span, ok bool) {
	if !p.IsValid() || p.Addr().Is4In6() {
		return span{}, false
	}
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	var host packet.Addr // the bits below the prefix
	switch {
	case n <= 0:
		host = packet.Addr{Hi: ^uint64(0), Lo: ^uint64(0)}
	case n < 64:
		host = packet.Addr{Hi: ^uint64(0) >> n, Lo: ^uint64(0)}
	default:
		host = packet.Addr{Lo: ^uint64(0) >> (n - 64)} // shifting by 64 leaves 0
	}
	a := packet.AddrFrom(p.Addr().WithZone(""))
	s = span{bits: int16(n), hop: p.Hop}
	s.first = packet.Addr{Hi: a.Hi &^ host.Hi, Lo: a.Lo &^ host.Lo}
	s.last = packet.Addr{Hi: a.Hi | host.Hi, Lo: a.Lo | host.Lo}
	return s, true
}

// spansOf sorts the prefixes of each family by first address, the shorter
// prefix before the longer, and drops all but the last of equal ones.
func spansOf(prefixes []Prefix, hops int) (v4, v6 []span) {
	n4 := 0
	for _, p := range prefixes {
		if p.Addr().Is4() {
			n4++
		}
	}
	v4, v6 = make([]span, 0, n4), make([]span, 0, len(prefixes)-n4)
	for i, p := range prefixes {
		s, ok := spanOf(p)
		if !ok {
			continue
		}
		if int(s.hop) >= hops {
			s.hop = 0
		}
		s.order = int32(i)
		if p.Addr().Is4() {
			v4 = append(v4, s)
		} else {
			v6 = append(v6, s)
		}
	}
	return sorted(v4), sorted(v6)
}

func sorted(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		if c := compare(a.first, b.first); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(a.bits, b.bits), cmp.Compare(a.order, b.order))
	})
	out := spans[:0]
	for i, s := range spans {
		if i+1 < len(spans) && s.first == spans[i+1].first && s.bits == spans[i+1].bits {
			continue
		}
		out = append(out, s)
	}
	return out
}

// cut turns nested spans, in the order of sorted, into disjoint ranges from
// base on. A stack holds the spans that enclose the point reached.
func cut(spans []span, base packet.Addr) []rangeStart {
	out := make([]rangeStart, 1, 2*len(spans)+1)
	out[0] = rangeStart{first: base}
	stack := make([]span, 0, 130)
	begin := func(at packet.Addr, hop HopID) {
		if out[len(out)-1].first == at { // nothing lay between: the inner one counts
			out = out[:len(out)-1]
		}
		if len(out) == 0 || out[len(out)-1].hop != hop {
			out = append(out, rangeStart{at, hop})
		}
	}
	end := func() { // the innermost span is over
		ended := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		outer := HopID(0)
		if len(stack) > 0 {
			outer = stack[len(stack)-1].hop
			if stack[len(stack)-1].last == ended.last {
				return // over at the same point, and so on outwards
			}
		}
		if ended.last.Lo != ^uint64(0) || ended.last.Hi != ^uint64(0) {
			begin(next(ended.last), outer)
		}
	}
	for _, s := range spans {
		for len(stack) > 0 && compare(stack[len(stack)-1].last, s.first) < 0 {
			end()
		}
		stack = append(stack, s)
		begin(s.first, s.hop)
	}
	for len(stack) > 0 {
		end()
	}
	// IPv4 lives inside the IPv6 space: its last range may begin beyond it.
	if n := len(out); n > 1 && base.Is4() && !out[n-1].first.Is4() {
		out = out[:n-1]
	}
	return out
}

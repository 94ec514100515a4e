package balance

import "slices"

// maxPeriod bounds the length of the sequence of turns, and with it what a
// weighted Set costs to build and to keep in cache.
const maxPeriod = 1 << 16

// reduce divides the weights by their greatest common divisor. Where the sum
// is still above maxPeriod it scales them down instead, each to the nearest
// whole number but at least 1: a share is then wrong by at most half a turn of
// about 65,536, or by up to one turn where it would have been none.
func reduce(w []uint32) []uint32 {
	var sum uint64
	var div uint32
	for _, x := range w {
		sum += uint64(x)
		div = gcd(div, x)
	}
	if len(w) == 0 {
		return w
	}
	out := slices.Clone(w)
	if sum/uint64(div) <= maxPeriod {
		for i := range out {
			out[i] /= div
		}
		return out
	}
	// Rounding adds less than 1 to each, so room for one each keeps the sum
	// within maxPeriod. Below 2^48, nothing overflows.
	room := uint64(maxPeriod - len(w))
	for i := range out {
		out[i] = max(1, uint32((uint64(out[i])*room+sum/2)/sum))
	}
	return out
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// class is the backends of one weight. They earn alike, so they take their
// turns among themselves in order, and only the next one of each class can
// have the lead.
type class struct {
	weight  int64
	members []uint16
	next    int
	credit  int64 // of members[next:]; those before have paid once more
}

// turns returns one period of the smooth weighted round robin: at each step
// every backend earns its weight, the one with the highest credit (the first
// in order among equals) takes the turn and pays the sum of all weights. After
// as many steps as that sum all credits are 0 again and the sequence repeats.
//
// Grouping by weight makes a step cost as many comparisons as there are
// different weights, at most 361 when they sum to 65,536, instead of one for
// each backend.
func turns(weights []uint32) []uint16 {
	var sum int64
	var classes []*class
	byWeight := map[uint32]*class{}
	for i, w := range weights {
		sum += int64(w)
		c := byWeight[w]
		if c == nil {
			c = &class{weight: int64(w)}
			byWeight[w] = c
			classes = append(classes, c)
		}
		c.members = append(c.members, uint16(i))
	}
	out := make([]uint16, 0, sum)
	for range sum {
		var lead *class
		for _, c := range classes {
			c.credit += c.weight
			if lead == nil || c.credit > lead.credit ||
				c.credit == lead.credit && c.members[c.next] < lead.members[lead.next] {
				lead = c
			}
		}
		out = append(out, lead.members[lead.next])
		lead.pay(sum)
	}
	return out
}

// pay moves on to the next member; when all have had their turn, all have paid.
func (c *class) pay(sum int64) {
	if c.next++; c.next == len(c.members) {
		c.next = 0
		c.credit -= sum
	}
}

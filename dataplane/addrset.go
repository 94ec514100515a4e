package dataplane

import (
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// addrSet is an immutable set of addresses that may miss some: an address has one
// place, so that the question takes one comparison and no branch, and of several with
// the same place the set has the first. Empty places hold the zero address.
type addrSet struct {
	places []packet.Addr
	factor uint64
	shift  uint8
}

// maxPlaces bounds a set to a quarter of a megabyte, which a core's own cache has
// room for.
const maxPlaces = 14 // binary logarithm

// newAddrSet tries to find a way of giving each address a place of its own. With 16
// places for each there is one for some dozens of addresses; of a thousand it misses 3
// in a hundred.
func newAddrSet(addrs []packet.Addr) addrSet {
	var best addrSet
	log := min(max(4, bits.Len(uint(16*len(addrs)))), maxPlaces)
	tries := uint64(1 + 8192/(1+len(addrs))) // of many addresses no way is much better than the first
	for most, try := -1, uint64(1); try <= tries && most < len(addrs); try++ {
		s := addrSet{places: make([]packet.Addr, 1<<log), factor: try*0x9e3779b97f4a7c15 | 1, shift: uint8(64 - log)}
		n := 0
		for _, a := range addrs {
			if at := s.place(a); at.IsZero() {
				*at = a
				n++
			}
		}
		if n > most {
			most, best = n, s
		}
	}
	return best
}

// place is where a is if it is there. The halves are turned against each other: hosts
// are often numbered as their networks are, and would all have one place.
func (s *addrSet) place(a packet.Addr) *packet.Addr {
	return &s.places[((bits.RotateLeft64(a.Hi, 32)^a.Lo)*s.factor>>(s.shift&63))&uint64(len(s.places)-1)]
}

// differs is zero if the set has a.
func (s *addrSet) differs(a packet.Addr) uint64 {
	at := s.place(a)
	return (at.Hi ^ a.Hi) | (at.Lo ^ a.Lo)
}

package balance

import (
	"cmp"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// tableSize is the number of slots of a hash table: a prime, so that every
// step visits all slots, and a hundred times the number of backends that a
// service is likely to have (the size used in the Maglev paper, section 5.3).
// At two bytes a slot it stays in a core's second-level cache.
const tableSize = 65537

// Independent keys for the uses of mix; digits of the fractional part of pi.
const (
	pickKey   = 0x243f6a8885a308d3
	offsetKey = 0x13198a2e03707344
	skipKey   = 0xa4093822299f31d0
	hiKey     = 0x082efa98ec4e6c89
	loKey     = 0x452821e638d01377
	portKey   = 0xbe5466cf34e90c6c
)

// mix spreads the entropy of x over all bits: multiply to 128 bits by an odd
// constant, fold, and once more, so that low bits reach high ones and back. It
// has no secret; the caller xors its key in.
func mix(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	hi, lo = bits.Mul64(hi^lo, 0xa0761d6478bd642f)
	return hi ^ lo
}

// scale maps a well mixed x to [0, n) by a multiplication instead of a division.
func scale(x uint64, n uint32) uint32 {
	hi, _ := bits.Mul64(x, uint64(n))
	return uint32(hi)
}

// Identity returns the stable name of a backend for Backend.Identity: a pure
// function of its address and port (host order), the same on every machine and
// in every version.
func Identity(addr packet.Addr, port uint16) uint64 {
	return mix(mix(mix(addr.Hi^hiKey)^addr.Lo^loKey) ^ uint64(port) ^ portKey)
}

// Key hashes the client fields that the Set's kind asks for, keyed by the seed
// of New, so that machines with equal Sets choose alike. It allocates nothing.
// port is in host order.
func (s *Set) Key(client packet.Addr, port uint16) uint64 {
	h := mix(mix(client.Hi^s.seed^loKey) ^ client.Lo ^ hiKey)
	if s.kind == SourceHash {
		return h
	}
	return mix(h ^ uint64(port) ^ portKey)
}

func compareIdentity(a, b Backend) int {
	return cmp.Or(cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.ID, b.ID))
}

// walk is a backend's permutation of the slots: offset, offset+skip, ...
// modulo tableSize. skip is never 0 and the size is prime, so it is complete.
type walk struct{ slot, skip uint32 }

func newWalk(identity, seed uint64) walk {
	return walk{
		slot: scale(mix(mix(identity^seed)^offsetKey), tableSize),
		skip: 1 + scale(mix(mix(identity^seed)^skipKey), tableSize-1),
	}
}

// maglevTable fills the hash table as the Maglev paper has it: the backends
// take turns, and at each turn one claims the first slot of its permutation
// that is still free. Weights come in through the turns, which are those of
// the smooth weighted round robin over the same backends, over and over.
// backends must be sorted by identity, for equal tables from any order.
//
// When one of N backends leaves, its 1/N of the slots change owner, and some of
// the others': less than 1/N for N up to 100, about 1 % of the table beyond.
func maglevTable(backends []Backend, turns []uint16, seed uint64) []uint16 {
	if len(backends) == 0 {
		return nil
	}
	walks := make([]walk, len(backends))
	for i, b := range backends {
		walks[i] = newWalk(b.Identity, seed)
	}
	table := make([]uint16, tableSize)
	taken := make([]bool, tableSize)
	turn := 0
	for range tableSize {
		b := turns[turn]
		if turn++; turn == len(turns) {
			turn = 0
		}
		w := &walks[b]
		for taken[w.slot] {
			if w.slot += w.skip; w.slot >= tableSize {
				w.slot -= tableSize
			}
		}
		taken[w.slot] = true
		table[w.slot] = b
	}
	return table
}

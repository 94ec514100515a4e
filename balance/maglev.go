package balance

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// Independent keys for the uses of mix; digits of the fractional part of pi.
const (
	pickKey   = 0x243f6a8885a308d3
	offsetKey = 0x13198a2e03707344
	skipKey   = 0xa4093822299f31d0
	phaseKey  = 0x3f84d5b5b5470917
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

// Key hashes the client fields that the Set's choice depends on, keyed by the
// seed of New, so that machines with equal Sets choose alike. It allocates
// nothing. port is in host order.
func (s *Set) Key(client packet.Addr, port uint16) uint64 {
	h := mix(mix(client.Hi^s.seed^loKey) ^ client.Lo ^ hiKey)
	if s.fields == ClientAddress {
		return h
	}
	return mix(h ^ uint64(port) ^ portKey)
}

func compareIdentity(a, b Backend) int {
	return cmp.Or(cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.ID, b.ID))
}

// Numbers of slots of a hash table. More slots make the shares of the backends more
// even: a share deviates from the weight's by about 1 in the square root of twice its
// slots, 7 % for 100 slots and 1 % for 5,000. At two bytes a slot, a table of the
// default size stays in a core's second-level cache.
const (
	slotsPerBackend = 100
	MinSlots        = 251
	MaxSlots        = 8388617
)

// slotSizes are the numbers of slots that Slots gives, primes above powers of two.
var slotSizes = [...]int{65537, 131101, 262147, 524309, 1048583, 2097169, 4194319, MaxSlots}

// Slots is the number of slots of the table of a hashed kind for so many backends,
// drained ones too, where Policy.Slots does not say it: 65537, which is the size in
// the Maglev paper (section 5.3), or more where that is not 100 for each. With
// another number everything moves, so it must change seldom.
func Slots(backends int) int {
	for _, m := range slotSizes {
		if m >= slotsPerBackend*backends {
			return m
		}
	}
	return MaxSlots
}

// checkSlots says whether a table may have m slots for so many backends.
func checkSlots(m, backends int) error {
	if m < MinSlots || m > MaxSlots || m < backends {
		return fmt.Errorf("%w: %d for %d backends", ErrSlots, m, backends)
	}
	for d := 2; d*d <= m; d++ {
		if m%d == 0 {
			return fmt.Errorf("%w: %d is no prime", ErrSlots, m)
		}
	}
	return nil
}

// walk is a backend's way through the slots: offset, offset+skip, ... modulo the
// number of slots. skip is never 0 and the number is prime, so it is complete.
type walk struct {
	slot, skip uint32
	passed     uint32 // slots
	phase      uint64 // in units of unit, less than one step's time
	pace       uint64 // 2^63 / weight
}

// unit is one in fixed point, of a time.
const unit = 1 << 44

func newWalk(b *Backend, m uint32, seed uint64) walk {
	id := mix(b.Identity ^ seed)
	return walk{
		slot:  scale(mix(id^offsetKey), m),
		skip:  1 + scale(mix(id^skipKey), m-1),
		phase: uint64(scale(mix(id^phaseKey), uint32(min(unit/uint64(m), math.MaxUint32)))),
		pace:  1 << 63 / uint64(b.Weight),
	}
}

// when is the time at which the walk comes to its next slot, given that of a walk
// with weight 1 and without phase.
func (w *walk) when(times []uint64) uint64 {
	t, _ := bits.Mul64(times[w.passed]+w.phase, w.pace)
	return t
}

// maglevTable fills a hash table of m slots, a prime. As in the Maglev paper every
// backend has a permutation of the slots by which it claims them. In the paper they
// take turns, and who finds a slot taken claims its next one in the same turn; so all
// have equally many, but when one leaves, the turns of all others shift, and with
// 1,000 backends and 65537 slots seven times as many slots change hands as have
// to. Here nobody makes up for what it finds taken: a slot belongs to whoever comes to
// it first. That depends on no third backend, so what moves when one leaves or
// comes is its own slots and nothing else.
//
// The price is that shares are not exact, see slotsPerBackend. That they follow the
// weights is a matter of when a backend comes to its slots. By weight w times as
// many in a time would not do: of two backends, that of weight 2 comes to half of the
// slots first and to a quarter of the rest too late for the other, and has three
// quarters. Times as those of a radioactive decay have no memory, and the first of
// several is each one's in proportion to its rate: the k-th of m slots
// comes at 1/m + 1/(m-1) + ... (k terms), divided by the weight.
//
// backends must be sorted by identity, for equal tables from any order.
func maglevTable(backends []Backend, m uint32, seed uint64) []uint16 {
	if len(backends) == 0 {
		return nil
	}
	walks, weight := make([]walk, len(backends)), uint64(0)
	for i := range backends {
		walks[i] = newWalk(&backends[i], m, seed)
		weight += uint64(backends[i].Weight)
	}
	const nobody = math.MaxUint64
	best := make([]uint64, m) // the first who came: time, then index into backends
	for i := range best {
		best[i] = nobody
	}
	times := make([]uint64, 1, m)
	free := m
	// As many go on at once as make m/8 steps together.
	span := max(1, unit/2/8/weight)
	for end := span; free > 0; end += span {
		for i := range walks {
			w := &walks[i]
			for w.passed < m {
				if int(w.passed) == len(times) {
					times = append(times, times[w.passed-1]+unit/uint64(m-w.passed+1))
				}
				t := w.when(times)
				if t >= end {
					break
				}
				if v, first := t<<16|uint64(i), &best[w.slot]; v < *first {
					if *first == nobody {
						free--
					}
					*first = v
				}
				w.passed++
				if w.slot += w.skip; w.slot >= m {
					w.slot -= m
				}
			}
		}
	}
	table := make([]uint16, m)
	for i, v := range best {
		table[i] = uint16(v)
	}
	feed(table, backends, m, seed)
	return table
}

// feed gives a slot to each backend that has none, since its share is less than one:
// the first on its way whose owner has others.
func feed(table []uint16, backends []Backend, m uint32, seed uint64) {
	slots := make([]uint32, len(backends))
	for _, b := range table {
		slots[b]++
	}
	for i := range backends {
		if slots[i] > 0 {
			continue
		}
		w := newWalk(&backends[i], m, seed)
		for slots[table[w.slot]] < 2 {
			w.slot = (w.slot + w.skip) % m
		}
		slots[table[w.slot]]--
		table[w.slot], slots[i] = uint16(i), 1
	}
}

package balance

import (
	"math/bits"
	"slices"
)

// State is what one worker remembers of one service between flows. The zero
// value is a valid start for the kinds whose Set does not look; Start spreads the
// workers and makes the rest.
type State struct {
	next  uint32 // place in the turns, or how often has been drawn
	first uint32 // the slot of ids that try 0 chose
	slot  uint32 // the one that Pick gave last
	view  *view  // of a Set that looks
}

// view is what a worker knows, for a tick, of the backends of a Set that looks.
type view struct {
	refused    []uint64 // bits by slot
	numRefused uint32
	tick       uint32
	seen       bool // Look has been called
	due        int  // loads still to be read in this tick
	at         int  // where to go on
	seed       uint64
	loads      *Loads
	least      least
}

// lonely is a view in cache lines of its own, and with none of others next to them.
type lonely struct {
	_ [128]byte
	view
	_ [128]byte
}

// Start returns the State of one of several workers, placed so that the
// workers together do not all begin with the same backend. loads are the flows of
// the backends, for a Set that looks. Bad arguments give the zero State.
func (s *Set) Start(worker, workers int, loads *Loads) State {
	if worker < 0 || worker >= workers || s.hashed && !s.policy.Refuses {
		return State{}
	}
	part := func(n int) uint32 { return uint32(uint64(n) * uint64(worker) / uint64(workers)) }
	st := State{next: part(len(s.order))}
	if s.counts && loads == nil || !s.Looks() {
		return st
	}
	st.view = &new(lonely).view
	st.view.loads, st.view.seed = loads, mix(s.seed^uint64(worker))
	if s.policy.Refuses {
		st.view.refused = apart[uint64]((len(s.ids)+63)/64, 16)
	}
	if s.counts && s.order == nil {
		st.view.least.start(s.weights, part(len(s.ids)))
	}
	return st
}

// apart makes n elements that share no cache line with anything else, nor the line
// next to one's own, which processors fetch along; so many elements are 128 bytes.
func apart[T any](n, distance int) []T {
	return make([]T, distance+n+distance)[distance : distance+n : distance+n]
}

// Carry takes over what old remembers that is of use with another Set: its place
// in the turns.
func (st *State) Carry(old *State) { st.next = old.next }

// Copy is a State that goes on by itself, for something to be tried out; loads stand in
// for those of st.
func (st *State) Copy(loads *Loads) State {
	out := *st
	if st.view == nil {
		return out
	}
	v := &new(lonely).view
	*v = *st.view
	v.refused, v.loads = slices.Clone(st.view.refused), loads
	v.least.leaves, v.least.nodes = slices.Clone(st.view.least.leaves), slices.Clone(st.view.least.nodes)
	out.view = v
	return out
}

// turn returns the next place below n.
func (st *State) turn(n uint32) uint32 {
	pos := st.next
	if pos >= n {
		// The end of the period, or a State that was used with a longer one.
		pos %= n
	}
	st.next = pos + 1
	return pos
}

// Refuse takes the backend that Pick gave last out of st's choice until the next
// tick: it has as many flows as it may have. The Set's policy must say that this
// may happen.
func (s *Set) Refuse(st *State) {
	v := st.view
	if v == nil || int(st.slot/64) >= len(v.refused) {
		return
	}
	if word, bit := &v.refused[st.slot/64], uint64(1)<<(st.slot%64); *word&bit == 0 {
		*word |= bit
		v.numRefused++
	}
	if v.least.leaves != nil {
		v.least.refuse(s.weights, st.slot)
	}
}

// passOver returns slot, or if it is refused one of n that is not, the next one from
// a place that mixed decides, so that a full backend's flows do not all go to its
// neighbour. It looks at n/64 words at most.
func (v *view) passOver(slot, n uint32, mixed uint64) (uint32, bool) {
	if v.refused[slot/64]&(1<<(slot%64)) == 0 {
		return slot, true
	}
	if v.numRefused >= n {
		return 0, false
	}
	from := scale(mix(mixed^phaseKey), n)
	k := from / 64
	open := ^v.refused[k] &^ (1<<(from%64) - 1)
	for {
		if last := (n - 1) / 64; k == last {
			open &= ^uint64(0) >> (63 - (n-1)%64)
		}
		if open != 0 {
			return 64*k + uint32(bits.TrailingZeros64(open)), true
		}
		if k++; k > (n-1)/64 {
			k = 0
		}
		open = ^v.refused[k]
	}
}

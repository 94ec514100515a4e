package balance

import (
	"errors"
	"fmt"
	"slices"
)

// Kind is a way to choose among backends.
type Kind uint8

// The kinds. There is no default: the zero value is not a kind, so that a
// forgotten field is an error of New and not a silent policy.
const (
	// RoundRobin takes every live backend in turn; weights above 0 are alike.
	RoundRobin Kind = iota + 1
	// WeightedRoundRobin takes turns in proportion to the weights, spread so
	// that no backend gets its whole share in one go.
	WeightedRoundRobin
	// SourceHash sends all flows of a client address to one backend, in
	// proportion to the weights over many clients.
	SourceHash
	// Maglev sends a client address and port to one backend and keeps most of
	// that assignment when the set of backends changes (Eisenbud et al., NSDI
	// 2016, section 3.4).
	Maglev
)

// Fields is a set of the fields that a kind's hash must cover.
type Fields uint8

// The fields.
const (
	ClientAddress Fields = 1 << iota
	ClientPort
)

// String returns the name used in the configuration.
func (k Kind) String() string {
	switch k {
	case RoundRobin:
		return "rr"
	case WeightedRoundRobin:
		return "wrr"
	case SourceHash:
		return "sh"
	case Maglev:
		return "maglev"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// KeyFields returns what the hash given to Pick must cover. It is 0 for the
// kinds that take turns; they use the hash only to spread second choices.
func (k Kind) KeyFields() Fields {
	switch k {
	case SourceHash:
		return ClientAddress
	case Maglev:
		return ClientAddress | ClientPort
	}
	return 0
}

// Backend is one candidate of a Set.
type Backend struct {
	// ID is what Pick returns; its meaning is the caller's.
	ID uint32
	// Weight is the share of new flows relative to the other backends. 0 takes
	// none: the backend is drained.
	Weight uint32
	// Identity is a stable 64-bit name, see the function Identity. Only the
	// hashed kinds read it. Equal identities are ordered by ID.
	Identity uint64
}

// MaxBackends is the largest number of backends with a weight above 0 in a Set.
const MaxBackends = 1<<16 - 1

// Errors of New.
var (
	ErrKind            = errors.New("balance: unknown scheduler")
	ErrTooManyBackends = fmt.Errorf("balance: more than %d backends", MaxBackends)
)

// Set is an immutable set of backends under one scheduler. It may be used by
// any number of workers at once. The zero value and a Set without a live
// backend choose nothing.
type Set struct {
	ids    []uint32 // live backends only
	sorted []uint32 // the same by number
	// order holds indices into ids: one period of the turns, or the hash table
	// of tableSize slots.
	order  []uint16
	kind   Kind
	hashed bool
	seed   uint64
}

// New builds a Set; backends is not kept. It costs milliseconds for the hashed
// kinds and belongs to the control plane. The order of backends matters for
// the kinds that take turns only. The seed keys the table of the hashed kinds
// and Key.
//
// The errors are ErrKind and ErrTooManyBackends.
func New(kind Kind, backends []Backend, seed uint64) (*Set, error) {
	if kind < RoundRobin || kind > Maglev {
		return nil, fmt.Errorf("%w: %d", ErrKind, uint8(kind))
	}
	live := slices.DeleteFunc(slices.Clone(backends), func(b Backend) bool { return b.Weight == 0 })
	if len(live) > MaxBackends {
		return nil, fmt.Errorf("%w: %d", ErrTooManyBackends, len(live))
	}
	s := &Set{kind: kind, hashed: kind.KeyFields() != 0, seed: seed}
	if s.hashed {
		slices.SortFunc(live, compareIdentity)
	}
	weights := make([]uint32, len(live))
	s.ids = make([]uint32, len(live))
	for i, b := range live {
		s.ids[i], weights[i] = b.ID, b.Weight
		if kind == RoundRobin {
			weights[i] = 1
		}
	}
	s.sorted = slices.Sorted(slices.Values(s.ids))
	s.order = turns(reduce(weights))
	if s.hashed {
		s.order = maglevTable(live, s.order, seed)
	}
	return s, nil
}

// Kind returns the scheduler the Set was built for.
func (s *Set) Kind() Kind { return s.kind }

// Len returns how many backends can be chosen, those of weight 0 not counted.
func (s *Set) Len() int { return len(s.ids) }

// Contains reports whether id can be chosen: for SYNs, not for each packet.
func (s *Set) Contains(id uint32) bool {
	_, ok := slices.BinarySearch(s.sorted, id)
	return ok
}

// State is what one worker remembers of one service between flows. The zero
// value is a valid start; Start spreads the workers.
type State struct{ next uint32 }

// Start returns the State of one of several workers, placed so that the
// workers together do not all begin with the same backend. Bad arguments give
// the zero State.
func (s *Set) Start(worker, workers int) State {
	if worker < 0 || worker >= workers || s.hashed {
		return State{}
	}
	return State{next: uint32(uint64(len(s.order)) * uint64(worker) / uint64(workers))}
}

// turn returns a position below n: a fresh one, or the last one again.
func (st *State) turn(n uint32, again bool) uint32 {
	pos := st.next
	if again {
		if pos == 0 || pos > n {
			pos = n
		}
		return pos - 1
	}
	if pos >= n {
		// The end of the period, or a State that was used with a longer one.
		pos %= n
	}
	st.next = pos + 1
	return pos
}

// Pick chooses the backend of a new flow and returns its ID. The hash must
// cover the fields that Kind.KeyFields names, keyed by the caller or made by
// Key; entropy in any of its bits is enough.
//
// try is 0 at first. If that backend will not do, try 1, 2, ... give the other
// live backends, each exactly once, beginning at a place that h decides and
// regardless of weight. ok is false when there is no live backend (left).
//
// Pick allocates nothing and takes constant time. st is written only at try 0,
// and only by the kinds that take turns.
func (s *Set) Pick(st *State, h uint64, try int) (id uint32, ok bool) {
	n := uint32(len(s.ids))
	if uint(try) >= uint(n) {
		return 0, false
	}
	mixed := mix(h ^ pickKey)
	var pos uint32
	if s.hashed {
		pos = scale(mixed, tableSize)
	} else {
		pos = st.turn(uint32(len(s.order)), try > 0)
	}
	first := uint32(s.order[pos])
	if try == 0 {
		return s.ids[first], true
	}
	// The n-1 others in a ring, entered where the hash says.
	i := scale(mix(mixed), n-1) + uint32(try) - 1
	if i >= n-1 {
		i -= n - 1
	}
	if i >= first {
		i++
	}
	return s.ids[i], true
}

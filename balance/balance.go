package balance

import (
	"errors"
	"fmt"
	"slices"

	"github.com/l4fwd/l4fwd/packet"
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
	// LeastConn takes the backend with the fewest flows; weights above 0 are alike.
	LeastConn
	// WeightedLeastConn takes the one with the fewest flows for its weight.
	WeightedLeastConn
	// SourceHash sends all flows of a client address to one backend, in
	// proportion to the weights over many clients.
	SourceHash
	// Maglev sends a client address and port to one backend. Of that assignment
	// nothing changes, when the set of backends does, but what has to (after Eisenbud
	// et al., NSDI 2016, section 3.4; see maglevTable for the difference).
	Maglev
	// TwoChoices draws two backends at random, in proportion to the weights, and takes
	// the one with fewer flows for its weight (Mitzenmacher, "The power of two choices
	// in randomized load balancing", 2001).
	TwoChoices
	numKinds = iota
)

// Fields is a set of the client's fields that a choice depends on.
type Fields uint8

// The fields.
const (
	ClientAddress Fields = 1 << iota
	ClientPort
)

var kindNames = [...]string{
	RoundRobin: "rr", WeightedRoundRobin: "wrr", LeastConn: "lc", WeightedLeastConn: "wlc",
	SourceHash: "sh", Maglev: "maglev", TwoChoices: "p2c",
}

// String returns the name used in the configuration.
func (k Kind) String() string {
	if k == 0 || k > numKinds {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// Hashed reports whether the kind chooses by the client's fields alone.
func (k Kind) Hashed() bool { return k == SourceHash || k == Maglev }

// Counts reports whether the kind asks how many flows the backends have.
func (k Kind) Counts() bool {
	return k == LeastConn || k == WeightedLeastConn || k == TwoChoices
}

// Backend is one candidate of a Set.
type Backend struct {
	// ID is what Pick returns; its meaning is the caller's.
	ID uint32
	// Weight is the share of new flows relative to the other backends, at most
	// MaxWeight. 0 takes none: the backend is drained.
	Weight uint32
	// Identity is a stable 64-bit name, see the function Identity. Only the
	// hashed kinds read it. Equal identities are ordered by ID.
	Identity uint64
}

// Policy says how a Set chooses.
type Policy struct {
	Kind Kind
	// Fields are what a hashed kind's choice depends on. 0 is the kind's own: the
	// address for SourceHash, address and port for Maglev. The other kinds do not
	// care.
	Fields Fields
	// Slots is the size of a hashed kind's table, a prime from MinSlots to MaxSlots;
	// 0 is what the function Slots says.
	Slots int
	// Refuses says that backends may be refused, see Set.Refuse.
	Refuses bool
}

// MaxBackends is the largest number of backends with a weight above 0 in a Set.
const MaxBackends = 1<<16 - 1

// MaxWeight is the largest weight.
const MaxWeight = 1<<16 - 1

// Errors of New.
var (
	ErrKind            = errors.New("balance: unknown scheduler")
	ErrTooManyBackends = fmt.Errorf("balance: more than %d backends", MaxBackends)
	ErrWeight          = fmt.Errorf("balance: weight above %d", MaxWeight)
	ErrSlots           = errors.New("balance: impossible size of a hash table")
)

// Set is an immutable set of backends under one scheduler. It may be used by
// any number of workers at once. The zero value and a Set without a live
// backend choose nothing.
type Set struct {
	ids    []uint32 // live backends only
	sorted []uint32 // the same by number
	// order holds indices into ids: one period of the turns, or the hash table.
	order []uint16
	// weights are those of ids for the kinds that count, 1 each for LeastConn.
	weights []uint32
	policy  Policy
	fields  Fields
	hashed  bool
	counts  bool
	plain   bool // neither, and somebody can be chosen
	seed    uint64
}

// New builds a Set; backends is not kept. It costs milliseconds for the hashed
// kinds and belongs to the control plane. The order of backends matters for
// the kinds that are not hashed only. The seed keys the table of the hashed kinds
// and Key.
//
// The errors are ErrKind, ErrTooManyBackends, ErrWeight and ErrSlots.
func New(p Policy, backends []Backend, seed uint64) (*Set, error) {
	if p.Kind == 0 || p.Kind > numKinds {
		return nil, fmt.Errorf("%w: %d", ErrKind, uint8(p.Kind))
	}
	live := slices.DeleteFunc(slices.Clone(backends), func(b Backend) bool { return b.Weight == 0 })
	if len(live) > MaxBackends {
		return nil, fmt.Errorf("%w: %d", ErrTooManyBackends, len(live))
	}
	s := &Set{policy: p, hashed: p.Kind.Hashed(), counts: p.Kind.Counts(), fields: p.Fields, seed: seed}
	if s.fields == 0 && p.Kind != SourceHash {
		s.fields = ClientAddress | ClientPort
	} else if s.fields == 0 {
		s.fields = ClientAddress
	}
	if s.hashed {
		slices.SortFunc(live, compareIdentity)
	}
	weights := make([]uint32, len(live))
	s.ids = make([]uint32, len(live))
	for i, b := range live {
		if b.Weight > MaxWeight {
			return nil, fmt.Errorf("%w: %d", ErrWeight, b.Weight)
		}
		s.ids[i], weights[i] = b.ID, b.Weight
		if p.Kind == RoundRobin || p.Kind == LeastConn {
			weights[i] = 1
		}
	}
	s.sorted = slices.Sorted(slices.Values(s.ids))
	return s, s.fill(live, weights, len(backends))
}

// fill makes what the kind chooses by; all counts the drained too.
func (s *Set) fill(live []Backend, weights []uint32, all int) error {
	if s.counts {
		s.weights = weights
	}
	switch {
	case s.hashed:
		slots := s.policy.Slots
		if slots == 0 {
			slots = Slots(all)
		}
		if err := checkSlots(slots, len(live)); err != nil {
			return err
		}
		s.order = maglevTable(live, uint32(slots), s.seed)
	case !s.counts || s.policy.Kind == TwoChoices:
		s.order = turns(reduce(weights))
		s.plain = !s.counts && len(live) > 0
	}
	return nil
}

// Kind returns the scheduler the Set was built for.
func (s *Set) Kind() Kind { return s.policy.Kind }

// Len returns how many backends can be chosen, those of weight 0 not counted.
func (s *Set) Len() int { return len(s.ids) }

// Contains reports whether id can be chosen: for SYNs, not for each packet.
func (s *Set) Contains(id uint32) bool {
	_, ok := slices.BinarySearch(s.sorted, id)
	return ok
}

// Looks reports whether Look has to be called before Pick.
func (s *Set) Looks() bool { return s.counts || s.policy.Refuses }

// Look lets st, of a Set that looks, see how things have changed since the last
// tick: a number that grows with time, some ten times a second. It is called before
// each flow's first Pick; most calls find nothing to do. Once a tick it reads the
// counts of the other workers, no more than lookStep of them in one call, and refused
// backends may be chosen again. It allocates nothing.
func (s *Set) Look(st *State, tick uint32) {
	v := st.view
	if v == nil || v.seen && v.tick == tick && v.due == 0 {
		return
	}
	n := len(s.ids)
	if !v.seen || v.tick != tick {
		clear(v.refused)
		v.numRefused, v.tick, v.due = 0, tick, 0
		if v.least.leaves != nil {
			v.due = n
		}
	}
	if v.due > 0 {
		k := max(1, lookStep/len(v.loads.of))
		if !v.seen {
			k = n // what has never been read looks as if it were empty
		}
		v.due -= s.readLoads(v, min(k, v.due))
	}
	v.seen = true
}

// lookStep bounds how many counters one call of Look reads.
const lookStep = 4096

// PickFor is Pick for a client, whose Key it makes where that matters. port is in host
// order.
func (s *Set) PickFor(st *State, client packet.Addr, port uint16, try int) (id uint32, ok bool) {
	if try == 0 && s.plain && st.view == nil {
		st.first = uint32(s.order[st.turn(uint32(len(s.order)))])
		st.slot = st.first
		return s.ids[st.first], true
	}
	return s.Pick(st, s.Key(client, port), try)
}

// Pick chooses the backend of a new flow and returns its ID. The hash is that of
// Key, or any other over the same fields; entropy in any of its bits is enough.
//
// try is 0 at first. If that backend will not do, try 1, 2, ... give the other
// live backends, each exactly once, beginning at a place that h decides and
// regardless of weight and flows. What has been refused is passed over, the next
// one then given twice perhaps. ok is false when there is no live backend (left).
//
// Pick allocates nothing. It takes constant time but for the kinds that count: in
// the order of the logarithm of the number of backends for LeastConn and
// WeightedLeastConn, of the number of workers for TwoChoices.
func (s *Set) Pick(st *State, h uint64, try int) (id uint32, ok bool) {
	n := uint32(len(s.ids))
	if uint(try) >= uint(n) {
		return 0, false
	}
	mixed := mix(h ^ pickKey)
	if try == 0 {
		switch {
		case s.hashed:
			st.first = uint32(s.order[scale(mixed, uint32(len(s.order)))])
		case s.counts:
			st.first = s.pickByLoad(st)
		default:
			st.first = uint32(s.order[st.turn(uint32(len(s.order)))])
		}
		st.slot = st.first
	} else {
		// The n-1 others in a ring, entered where the hash says.
		i := scale(mix(mixed), n-1) + uint32(try) - 1
		if i >= n-1 {
			i -= n - 1
		}
		if i >= min(st.first, n-1) {
			i++
		}
		st.slot = i
	}
	if v := st.view; v != nil && v.numRefused > 0 {
		if st.slot, ok = v.passOver(st.slot, n, mixed); !ok {
			return 0, false
		}
	}
	return s.ids[st.slot], true
}

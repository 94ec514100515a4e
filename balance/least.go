package balance

// least finds the backend with the fewest flows for its weight: a tournament, in
// which each match is won by the less loaded of two. To choose is to look at the
// winner, to change one load is to play the matches on its way again: the logarithm
// of the number of backends.
//
// The loads are as they were when the worker last read them, in this tick, and since
// then as if the other workers did what this one does: each choice adds as many
// flows as there are workers. Else all of them would send all that comes within a tick
// to a backend that is new and empty. Flows that end are seen at the next tick.
type least struct {
	leaves []leaf
	// nodes are the matches, by winner; nodes[1] is the last. The players of k are
	// the winners of 2k and 2k+1, or where those are len(nodes) and more, the leaves.
	nodes []uint16
	clock uint64
}

// leaf is one backend.
type leaf struct {
	load uint64 // flows
	// Of equals the one with the least start is chosen, and then earns a later one by its
	// weight: backends without flows take turns as in WeightedRoundRobin. It wraps, after
	// some billion choices, and is compared by difference.
	start uint64
}

const (
	none   = 1<<16 - 1 // a leaf that there is not
	full   = 1 << 48   // above every load times every weight
	stride = 1 << 32
)

// start begins with the backend first.
func (l *least) start(weights []uint32, first uint32) {
	size := 1
	for size < len(weights) {
		size *= 2
	}
	l.leaves, l.nodes = apart[leaf](len(weights), 8), apart[uint16](size, 64)
	for i := range l.nodes {
		l.nodes[i] = none
	}
	for i := range l.leaves {
		l.leaves[(int(first)+i)%len(weights)].start = uint64(i)
	}
	if len(weights) > 0 {
		l.settle(weights, 0, len(weights))
	}
}

// player is the leaf that node k stands for.
func (l *least) player(k int) uint16 {
	if k < len(l.nodes) {
		return l.nodes[k]
	}
	if k -= len(l.nodes); k < len(l.leaves) {
		return uint16(k)
	}
	return none
}

// before reports whether leaf a is to be chosen rather than b.
func (l *least) before(weights []uint32, a, b uint16) bool {
	if b == none || a == none {
		return b == none
	}
	x, y := &l.leaves[a], &l.leaves[b]
	p, q := x.load*uint64(weights[b]), y.load*uint64(weights[a])
	return p < q || p == q && int64(x.start-y.start) <= 0
}

// settle plays the matches of leaves from up to, but not including, to.
func (l *least) settle(weights []uint32, from, to int) {
	a, b := from+len(l.nodes), to-1+len(l.nodes)
	for a > 1 {
		a, b = a/2, b/2
		for k := a; k <= b; k++ {
			left, right := l.player(2*k), l.player(2*k+1)
			if !l.before(weights, left, right) {
				left = right
			}
			l.nodes[k] = left
		}
	}
}

// pick is the winner, who then has more flows. There must be leaves.
func (l *least) pick(weights []uint32, more uint64) uint32 {
	i := l.player(1)
	x := &l.leaves[i]
	x.load += more
	// A backend that was not among equals for long has no claim to all its turns at
	// once.
	if int64(x.start-l.clock) > 0 {
		l.clock = x.start
	}
	x.start = l.clock + stride/uint64(weights[i])
	l.settle(weights, int(i), int(i)+1)
	return uint32(i)
}

// refuse makes leaf i the last choice.
func (l *least) refuse(weights []uint32, i uint32) {
	l.leaves[i].load = full
	l.settle(weights, int(i), int(i)+1)
}

// readLoads brings k leaves up to date, from where the last call ended, and returns
// how many it did.
func (s *Set) readLoads(v *view, k int) int {
	from := v.at
	to := min(from+k, len(s.ids))
	if v.at = to; to == len(s.ids) {
		v.at = 0
	}
	for i := from; i < to; i++ {
		if len(v.refused) > 0 && v.refused[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		v.least.leaves[i].load = v.loads.Sum(s.ids[i])
	}
	if from < to {
		v.least.settle(s.weights, from, to)
	}
	return to - from
}

// pickByLoad chooses a slot by the backends' flows. There must be backends.
func (s *Set) pickByLoad(st *State) uint32 {
	v := st.view
	switch {
	case v == nil: // a State that was not made by Start
		return 0
	case v.least.leaves != nil:
		return v.least.pick(s.weights, uint64(len(v.loads.of)))
	}
	n := uint32(len(s.order))
	st.next++
	r := mix(uint64(st.next) ^ v.seed)
	a := uint32(s.order[scale(r, n)])
	b := a
	for range 4 { // a heavy backend is drawn twice in a row, but not for ever
		r = mix(r ^ pickKey)
		if b = uint32(s.order[scale(r, n)]); b != a {
			break
		}
	}
	if v.loads.Sum(s.ids[b])*uint64(s.weights[a]) < v.loads.Sum(s.ids[a])*uint64(s.weights[b]) {
		return b
	}
	return a
}

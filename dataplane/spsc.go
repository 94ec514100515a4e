package dataplane

import "sync/atomic"

// spsc is a bounded ring between exactly two threads: one pushes, one pops.
// The indices only grow, 64 bits wide; the slots hold frame descriptors packed
// by packDesc, so that one ring type serves hand-off and frames going home.
type spsc struct {
	slots []uint64
	mask  uint64
	_     [32]byte
	head  atomic.Uint64 // next to pop; written by the consumer
	seen  uint64        // consumer's copy of tail
	_     [48]byte
	tail  atomic.Uint64 // next to push; written by the producer
	free  uint64        // producer's copy of head
	_     [48]byte
}

func newSPSC(size int) *spsc {
	n := uint64(1)
	for n < uint64(size) {
		n <<= 1
	}
	return &spsc{slots: make([]uint64, n), mask: n - 1}
}

// push appends as much of v as fits and returns how much that was.
func (r *spsc) push(v []uint64) int {
	tail := r.tail.Load()
	room := uint64(len(r.slots)) - (tail - r.free)
	if room < uint64(len(v)) {
		r.free = r.head.Load()
		room = uint64(len(r.slots)) - (tail - r.free)
	}
	n := min(uint64(len(v)), room)
	for i := range n {
		r.slots[(tail+i)&r.mask] = v[i]
	}
	if n > 0 {
		r.tail.Store(tail + n)
	}
	return int(n)
}

// pop moves up to len(v) values out and returns how many.
func (r *spsc) pop(v []uint64) int {
	head := r.head.Load()
	if r.seen == head {
		if r.seen = r.tail.Load(); r.seen == head {
			return 0
		}
	}
	n := min(uint64(len(v)), r.seen-head)
	for i := range n {
		v[i] = r.slots[(head+i)&r.mask]
	}
	r.head.Store(head + n)
	return int(n)
}

// room is how many the producer can push now.
func (r *spsc) room() int {
	tail := r.tail.Load()
	if tail-r.free == uint64(len(r.slots)) {
		r.free = r.head.Load()
	}
	return len(r.slots) - int(tail-r.free)
}

// len is exact only while both threads rest.
func (r *spsc) len() int { return int(r.tail.Load() - r.head.Load()) }

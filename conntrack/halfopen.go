package conntrack

import "github.com/l4fwd/l4fwd/packet"

// halfOpenAtFirst reports whether a new flow must prove that both ends exist.
// UDP whose answers do not come by never could.
func halfOpenAtFirst(e *Entry) bool {
	return e.Proto == packet.ProtoTCP || !e.Mode.OneWay()
}

// pushHalfOpen counts r as the youngest half-open flow.
func (t *Table) pushHalfOpen(r Ref) {
	last := t.half[0].prev
	t.half[r] = halfLink{prev: last}
	t.half[last].next = uint32(r)
	t.half[0].prev = uint32(r)
	t.entries[r].Flags |= HalfOpen
	t.hdr.halfLen++
}

// dropHalfOpen stops counting r.
func (t *Table) dropHalfOpen(r Ref) {
	l := t.half[r]
	t.half[l.prev].next = l.next
	t.half[l.next].prev = l.prev
	t.entries[r].Flags &^= HalfOpen
	t.hdr.halfLen--
}

// evict removes the oldest half-open flow and leaves a copy in *copied.
func (t *Table) evict(copied *Entry) {
	r := Ref(t.half[0].next)
	if copied != nil {
		*copied = t.entries[r]
	}
	t.Remove(r)
	t.hdr.stats.EvictedHalfOpen++
	t.foresee()
}

// foresee asks the processor for what the next two evictions will touch. In a flood
// one follows another, the oldest flows are in no cache, and the buckets of one are
// known only once its entry is there: so that of the one after it is asked for now.
func (t *Table) foresee() {
	next := t.half[0].next
	t.PrefetchRemoval([]Ref{Ref(next)}) // of entry 0, if there is none
	t.prefetchFlow(t.half[next].next)
}

// OldestHalfOpen is the flow the next eviction would hit, 0 if there is none.
func (t *Table) OldestHalfOpen() Ref { return Ref(t.half[0].next) }

// postpone makes r, if it is half-open, the last that an eviction would hit
// instead of whatever its age makes it.
func (t *Table) postpone(r Ref) {
	if t.entries[r].Flags&HalfOpen != 0 {
		t.dropHalfOpen(r)
		t.pushHalfOpen(r)
	}
}

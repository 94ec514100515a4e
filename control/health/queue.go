package health

import (
	"container/heap"
	"time"
)

// queue is a heap of entries by when something is to be done with them, which stands
// beside each: with ten thousand of them looking into one is a cache miss.
type queue []place

// place is an entry in the queue.
type place struct {
	at time.Time // what its next said
	*entry
}

// set puts an entry where it belongs, which may be nowhere.
func (q *queue) set(t *entry) {
	at, waits := t.next()
	switch {
	case t.gone || !waits:
		q.remove(t)
	case t.at < 0:
		heap.Push(q, place{at, t})
	default:
		(*q)[t.at].at = at
		heap.Fix(q, t.at)
	}
}

func (q *queue) remove(t *entry) {
	if t.at >= 0 {
		heap.Remove(q, t.at)
	}
}

// Len is of heap.Interface.
func (q queue) Len() int { return len(q) }

// Less is of heap.Interface.
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

// Swap is of heap.Interface.
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].entry.at, q[j].entry.at = i, j
}

// Push is of heap.Interface.
func (q *queue) Push(x any) {
	p := x.(place)
	p.entry.at = len(*q)
	*q = append(*q, p)
}

// Pop is of heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = place{}
	*q = (*q)[:last]
	p.entry.at = -1
	return p
}

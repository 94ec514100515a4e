package dataplane

import "github.com/l4fwd/l4fwd/packet"

// EventKind is what a worker wants the control plane to know.
type EventKind uint8

// The kinds of Event.
const (
	EventResolve  EventKind = iota // Addr's next hop is not resolved
	EventPortDown                  // a queue of NIC failed: the interface is gone or down
)

// Event is a word from a worker to the control plane. Events are hints: when
// the ring is full they are lost and counted, and the cause sends another.
type Event struct {
	Kind EventKind
	NIC  uint8
	Addr packet.Addr
}

// eventSlots bounds what a worker can have to say before anybody listens.
const eventSlots = 256

// spscEvents is spsc for events: the worker pushes, one control goroutine pops.
type spscEvents struct {
	ring  *spsc // carries indices into slots, so that there is one ring code
	slots [eventSlots]Event
	next  uint64
	lost  uint64 // worker's
}

func newEvents() *spscEvents {
	// Half as many ring slots as events: a slot is written again only after
	// its index has been popped and read, or never was pushed.
	return &spscEvents{ring: newSPSC(eventSlots / 2)}
}

func (r *spscEvents) push(e Event) bool {
	i := r.next & (eventSlots - 1)
	if r.ring.room() == 0 {
		r.lost++
		return false
	}
	r.slots[i] = e
	r.ring.put(i)
	r.ring.publish()
	r.next++
	return true
}

// pop returns the oldest event.
func (r *spscEvents) pop() (Event, bool) {
	var one [1]uint64
	if r.ring.pop(one[:]) == 0 {
		return Event{}, false
	}
	return r.slots[one[0]], true
}

package dataplane

import "sync/atomic"

// spsc is a bounded ring between exactly two threads: one puts values in and
// publishes them, one pops. The indices only grow, 64 bits wide; the slots hold
// frame descriptors packed by packDesc, so that one ring type serves hand-off and
// frames sent back.
//
// What is published has a cache line of its own, and so has what each thread keeps
// to itself: a line that one writes and the other reads costs both of them a journey
// between the cores, so it should be written once a burst and not once a packet.
type spsc struct {
	slots []uint64
	mask  uint64
	_     [ringPad]byte
	tail  atomic.Uint64 // all below are published; written by the producer
	_     [ringPad]byte
	head  atomic.Uint64 // next to pop; written by the consumer
	_     [ringPad]byte
	next  uint64 // producer's: next to put
	limit uint64 // producer's copy of head, plus the number of slots
	_     [ringPad]byte
	at    uint64 // consumer's copy of head
	seen  uint64 // consumer's copy of tail
	due   uint64 // consumer's: seen when overdue was asked last
	_     [ringPad]byte
}

// ringPad keeps what different threads write two cache lines apart: processors fetch
// the neighbour of a line along.
const ringPad = 128

func newSPSC(size int) *spsc {
	r := new(spsc)
	r.init(size)
	return r
}

func (r *spsc) init(size int) {
	n := uint64(1)
	for n < uint64(size) {
		n <<= 1
	}
	r.slots, r.mask, r.limit = make([]uint64, n), n-1, n
}

// put appends a value, which the consumer sees after publish; false if there is no
// room.
func (r *spsc) put(v uint64) bool {
	if r.next == r.limit && r.room() == 0 {
		return false
	}
	r.slots[r.next&r.mask] = v
	r.next++
	return true
}

// publish lets the consumer see what has been put, and returns how much that is.
func (r *spsc) publish() int {
	n := r.next - r.tail.Load()
	r.tail.Store(r.next)
	return int(n)
}

// room is how many the producer can put now.
func (r *spsc) room() int {
	if r.next == r.limit {
		r.limit = r.head.Load() + uint64(len(r.slots))
	}
	return int(r.limit - r.next)
}

// look is the first max of the values that can be popped now, in two pieces, for the
// ring may wrap between them; they stay where they are.
func (r *spsc) look(max uint64) (first, rest []uint64) {
	r.seen = r.tail.Load()
	n := min(r.seen-r.at, max)
	at := r.at & r.mask
	first = r.slots[at:min(at+n, uint64(len(r.slots)))]
	return first, r.slots[:n-uint64(len(first))]
}

// pop moves up to len(v) values out and returns how many.
func (r *spsc) pop(v []uint64) int {
	n := r.ready(len(v))
	for i := range v[:n] {
		v[i] = r.slots[(r.at+uint64(i))&r.mask]
	}
	r.popped(n)
	return n
}

// ready is how many values, max at most, can be read from at on.
func (r *spsc) ready(max int) int {
	if r.seen == r.at {
		r.seen = r.tail.Load()
	}
	return int(min(uint64(max), r.seen-r.at))
}

// popped gives the first n of what is ready back to the producer.
func (r *spsc) popped(n int) {
	if n > 0 {
		r.at += uint64(n)
		r.head.Store(r.at)
	}
}

// waits reports whether something can be popped of what was there to see.
func (r *spsc) waits() bool { return r.at != r.seen }

// overdue reports whether something waits that waited when it was asked before.
func (r *spsc) overdue() bool {
	late := r.at < r.due
	r.due = r.seen
	return late
}

// len is exact only while both threads rest.
func (r *spsc) len() int { return int(r.tail.Load() - r.head.Load()) }

// packetRing is an spsc for packets: beside each descriptor is the hash of its tuple, or
// 0 where who put it has not looked.
type packetRing struct {
	spsc
	hashes []uint32
}

func newPacketRing(size int) *packetRing {
	r := new(packetRing)
	r.init(size)
	r.hashes = make([]uint32, len(r.slots))
	return r
}

// put is spsc's, with a hash.
func (r *packetRing) put(v uint64, hash uint32) bool {
	if r.next == r.limit && r.room() == 0 {
		return false
	}
	at := r.next & r.mask
	r.slots[at], r.hashes[at] = v, hash
	r.next++
	return true
}

// popHashed is pop, with the hashes. There must be room for as many of them as of values.
func (r *packetRing) popHashed(v []uint64, hashes []uint32) int {
	n := r.ready(len(v))
	for i := range v[:n] {
		at := (r.at + uint64(i)) & r.mask
		v[i], hashes[i] = r.slots[at], r.hashes[at]
	}
	r.popped(n)
	return n
}

package afxdp

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The rings of if_xdp.h are single-producer, single-consumer. Both indices are
// free-running 32-bit counters that wrap; the slot is index & (size-1), and
// "filled" is producer - consumer in modulo arithmetic. Each side keeps its own
// index privately and looks at the other side's only when what it last saw is
// used up, so the shared cache lines move once a burst and not once a packet.
//
// Entries are written before, and read after, the atomic access to the index
// that publishes them. Go's atomics are sequentially consistent, so the store of
// the producer index is also ordered before the load of the NEED_WAKEUP flag,
// which the kernel's protocol asks for.

type entry interface{ uint64 | unix.XDPDesc }

// producer is our end of the fill and TX rings.
type producer[T entry] struct {
	slots    []T // length is the ring size, a power of two
	next     uint32
	seen     uint32  // consumer index when last looked at
	shared   *uint32 // producer index, ours to write
	consumed *uint32 // consumer index, the kernel's to write
	flags    *uint32
}

// free returns how many slots can be written, at most want.
func (p *producer[T]) free(want uint32) uint32 {
	size := uint32(len(p.slots))
	n := size - (p.next - p.seen)
	if n < want {
		p.seen = atomic.LoadUint32(p.consumed)
		if n = size - (p.next - p.seen); n > size {
			return 0 // the consumer is ahead of us: not a ring any more
		}
	}
	return min(n, want)
}

// publish makes the slots up to, not including, next visible to the kernel.
func (p *producer[T]) publish(next uint32) {
	p.next = next
	atomic.StoreUint32(p.shared, next)
}

// pending returns how many published entries the kernel has not taken yet.
func (p *producer[T]) pending() uint32 {
	p.seen = atomic.LoadUint32(p.consumed)
	return p.next - p.seen
}

// needWakeup tells whether the kernel asks for a system call. It must be asked
// after publish.
func (p *producer[T]) needWakeup() bool {
	return atomic.LoadUint32(p.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}

// consumer is our end of the RX and completion rings.
type consumer[T entry] struct {
	slots    []T
	next     uint32
	seen     uint32  // producer index when last looked at
	shared   *uint32 // consumer index, ours to write
	produced *uint32 // producer index, the kernel's to write
}

// take copies at most len(dst) entries out, gives their slots back to the
// kernel, and returns how many there were. The copy is made once: what the
// caller then checks cannot change under it.
func (c *consumer[T]) take(dst []T) int {
	size := uint32(len(c.slots))
	want := uint32(min(len(dst), int(size)))
	n := c.seen - c.next
	if n < want {
		c.seen = atomic.LoadUint32(c.produced)
		if n = c.seen - c.next; n > size {
			c.seen = c.next // more than fits: not a ring any more
			return 0
		}
	}
	n = min(n, want)
	if n == 0 {
		return 0
	}
	at := c.next & (size - 1)
	first := copy(dst[:n], c.slots[at:])
	copy(dst[first:n], c.slots)
	c.next += n
	atomic.StoreUint32(c.shared, c.next)
	return int(n)
}

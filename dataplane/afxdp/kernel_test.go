package afxdp

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// kernelRing is the kernel's end of one ring in plain memory, written in the
// most obvious way: every access is atomic and nothing is cached.
type kernelRing[T entry] struct {
	producer, consumer, flags uint32
	slots                     []T
}

func newKernelRing[T entry](size int, start uint32) *kernelRing[T] {
	return &kernelRing[T]{producer: start, consumer: start, slots: make([]T, size)}
}

func (r *kernelRing[T]) ourProducer() producer[T] {
	return producer[T]{slots: r.slots, next: r.producer, seen: r.consumer, shared: &r.producer, consumed: &r.consumer, flags: &r.flags}
}

func (r *kernelRing[T]) ourConsumer() consumer[T] {
	return consumer[T]{slots: r.slots, next: r.consumer, seen: r.producer, shared: &r.consumer, produced: &r.producer}
}

// put produces one entry; false when the ring is full.
func (r *kernelRing[T]) put(v T) bool {
	p := atomic.LoadUint32(&r.producer)
	if p-atomic.LoadUint32(&r.consumer) == uint32(len(r.slots)) {
		return false
	}
	r.slots[int(p)%len(r.slots)] = v
	atomic.StoreUint32(&r.producer, p+1)
	return true
}

// get consumes one entry; false when the ring is empty.
func (r *kernelRing[T]) get() (v T, ok bool) {
	c := atomic.LoadUint32(&r.consumer)
	if c == atomic.LoadUint32(&r.producer) {
		return v, false
	}
	v = r.slots[int(c)%len(r.slots)]
	atomic.StoreUint32(&r.consumer, c+1)
	return v, true
}

// fakeKernel stands behind a Socket that has no file descriptor.
type fakeKernel struct {
	rx, tx           *kernelRing[unix.XDPDesc]
	fill, completion *kernelRing[uint64]
}

// newFakeSocket returns a socket over 2048-byte frames whose rings all start at
// index start, so that tests can begin just before the indices wrap.
func newFakeSocket(frames, ring int, start uint32, check bool) (*Socket, *fakeKernel) {
	k := &fakeKernel{
		rx: newKernelRing[unix.XDPDesc](ring, start), tx: newKernelRing[unix.XDPDesc](ring, start),
		fill: newKernelRing[uint64](ring, start), completion: newKernelRing[uint64](ring, start),
	}
	s := &Socket{
		rx: k.rx.ourConsumer(), tx: k.tx.ourProducer(),
		fill: k.fill.ourProducer(), completion: k.completion.ourConsumer(),
		held: make([]uint8, frames), returned: make([]uint64, 0, ring),
		size: 2048, shift: 11, id: 1, fd: 1 << 30, umem: &UMEM{},
	}
	if check {
		s.owners = make([]atomic.Uint32, frames)
	}
	return s, k
}

// frameAddrs returns the addresses of frames from up to, not including, to.
func frameAddrs(from, to int) []uint64 {
	a := make([]uint64, 0, to-from)
	for f := from; f < to; f++ {
		a = append(a, uint64(f)*2048)
	}
	return a
}

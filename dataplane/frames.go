package dataplane

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

// pool is a worker's stack of free frames. LIFO, so that the frame used next is the one
// most likely still in cache. All workers begin with as many. A frame that is handed over
// stays with who has got it, who sends another back only if he has become richer by it.
type pool struct {
	free []uint64 // chunk addresses; capacity is all frames there are, append never grows
}

// newPool is a pool of the frames between lo and hi, of all in a UMEM.
func newPool(lo, hi, frameSize uint64, all int) pool {
	p := pool{free: make([]uint64, 0, all)}
	for a := hi; a > lo; a -= frameSize {
		p.free = append(p.free, a-frameSize)
	}
	return p
}

// take removes up to n frames and returns them; the slice is valid until the
// next put.
func (p *pool) take(n int) []uint64 {
	n = min(n, len(p.free))
	k := len(p.free) - n
	t := p.free[k:]
	p.free = p.free[:k]
	return t
}

func (p *pool) put(chunk uint64) { p.free = append(p.free, chunk) }

// packDesc squeezes a descriptor and the NIC it came from into one word for a
// hand-off ring: 40 bits of address, 15 of length, glancedV6, 8 of NIC and known.
func packDesc(d *unix.XDPDesc, nic uint8) uint64 {
	return d.Addr | uint64(d.Len)<<40 | uint64(nic)<<56
}

func unpackDesc(v uint64) (unix.XDPDesc, uint8) {
	return unix.XDPDesc{Addr: v & (1<<40 - 1), Len: uint32(v>>40) & (maxFrameSize - 1)}, uint8(v >> 56)
}

// maxFrameSize is what a length in packDesc's word has room for: a frame's data is shorter
// than its chunk, which has headroom.
const maxFrameSize = 1 << 15

// glancedV6 is set in packDesc's word if a glance has found IPv6.
const glancedV6 = 1 << 55

// release gives a frame back to the pool.
func (w *Worker) release(addr uint64) { w.pool.put(addr &^ (w.frameSize - 1)) }

// releaseAll releases frames. The pool is held in registers meanwhile: appending to it
// in memory, each frame would wait for the one before.
func (w *Worker) releaseAll(addrs []uint64) {
	free, mask := w.pool.free, w.frameSize-1
	for _, a := range addrs {
		free = append(free, a&^mask)
	}
	w.pool.free = free
}

// collect takes the frames that other workers have sent back.
func (w *Worker) collect() {
	for k, r := range w.repaid {
		for {
			n := r.pop(w.strays[:])
			if n == 0 {
				break
			}
			w.owed[w.peer(k)] += n
			w.pool.free = append(w.pool.free, w.strays[:n]...)
		}
	}
}

// repay sends frames to those workers from which this one has got more than they have from
// here, save what may be owed for long. As the pool is a stack, they are mostly those that
// were handed over in this round.
func (w *Worker) repay() {
	for id, n := range w.owed {
		if n <= w.mesh.credit {
			continue
		}
		r := w.repayments[id]
		back := w.pool.take(min(n-w.mesh.credit, r.room()))
		for _, a := range back {
			r.put(a)
		}
		r.publish()
		w.owed[id] -= len(back)
	}
}

// peer is the number of the worker that the kth of inbox and repaid come from.
func (w *Worker) peer(k int) int {
	if k >= w.id {
		k++
	}
	return k
}

// mesh joins every pair of workers by two rings: packets for a flow's owner, and frames
// that are sent back for them. Indexed [from][to]; the diagonal is nil.
type mesh struct {
	frames     uint64 // what a worker begins with
	credit     int    // frames that one may owe another for long
	shift      uint8  // a frame's size is 1<<shift
	packets    [][]*packetRing
	repayments [][]*spsc
}

// handoffSlots bounds what may wait for one worker from another: 32 bursts.
const handoffSlots = 2048

// What goes one way is mostly as much as what goes the other, a few bursts more or less.
// All others together must not owe a worker more than a small part of what it has.
const (
	mostCredit  = 4 * BurstSize
	creditShare = 16
)

func newMesh(workers int, frames, frameSize uint64) *mesh {
	m := &mesh{frames: frames, shift: uint8(bits.TrailingZeros64(frameSize))}
	m.credit = min(mostCredit, int(frames)/(creditShare*max(1, workers-1)))
	for from := range workers {
		var p []*packetRing
		var h []*spsc
		for to := range workers {
			if from == to {
				p, h = append(p, nil), append(h, nil)
				continue
			}
			p = append(p, newPacketRing(handoffSlots))
			h = append(h, newSPSC(int(frames)))
		}
		m.packets, m.repayments = append(m.packets, p), append(m.repayments, h)
	}
	return m
}

package dataplane

import (
	"math"
	"math/bits"

	"golang.org/x/sys/unix"
)

// pool is a worker's stack of free frames, all of them its own: a frame's home
// is the worker whose span it lies in. LIFO, so that the frame used next is
// the one most likely still in cache.
type pool struct {
	free   []uint64 // chunk addresses; capacity is the whole span, append never grows
	lo, hi uint64   // the span
}

func newPool(lo, hi, frameSize uint64) pool {
	p := pool{free: make([]uint64, 0, (hi-lo)/frameSize), lo: lo, hi: hi}
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

// home reports whether the frame at addr belongs here.
func (p *pool) home(addr uint64) bool { return addr-p.lo < p.hi-p.lo }

func (p *pool) put(chunk uint64) { p.free = append(p.free, chunk) }

// packDesc squeezes a descriptor and the NIC it came from into one word for a
// hand-off ring: 40 bits of address, 16 of length, 8 of NIC and known.
func packDesc(d *unix.XDPDesc, nic uint8) uint64 {
	return d.Addr | uint64(d.Len)<<40 | uint64(nic)<<56
}

func unpackDesc(v uint64) (unix.XDPDesc, uint8) {
	return unix.XDPDesc{Addr: v & (1<<40 - 1), Len: uint32(v>>40) & 0xffff}, uint8(v >> 56)
}

// release gives a frame back to its home: the pool here, or the ring to its
// worker, which sees it after publishStrays. That ring holds as many slots as its
// worker has frames, so it cannot be full.
func (w *Worker) release(addr uint64) {
	chunk := addr &^ (w.frameSize - 1)
	if w.pool.home(chunk) {
		w.pool.put(chunk)
		return
	}
	w.sendHome(chunk)
}

// sendHome is release for another worker's frame.
func (w *Worker) sendHome(chunk uint64) {
	home := w.mesh.home(chunk)
	w.homeward[home].put(chunk)
	w.astray.add(home)
}

// releaseAll releases frames. The pool is held in registers meanwhile: appending to it
// in memory, each frame would wait for the one before.
func (w *Worker) releaseAll(addrs []uint64) {
	free, mask := w.pool.free, w.frameSize-1
	for _, a := range addrs {
		if chunk := a &^ mask; w.pool.home(chunk) {
			free = append(free, chunk)
		} else {
			w.sendHome(chunk)
		}
	}
	w.pool.free = free
}

// collect takes back what other workers have finished with.
func (w *Worker) collect() {
	for _, r := range w.homecoming {
		for {
			n := r.pop(w.strays[:])
			if n == 0 {
				break
			}
			w.pool.free = append(w.pool.free, w.strays[:n]...)
		}
	}
}

// mesh joins every pair of workers by two rings: packets for a flow's owner,
// and frames on their way home. Indexed [from][to]; the diagonal is nil.
type mesh struct {
	frames   uint64 // a worker is home to
	inverse  uint64 // ceil(2^64 / frames), see home
	shift    uint8  // a frame's size is 1<<shift
	packets  [][]*spsc
	homeward [][]*spsc
}

// handoffSlots bounds what may wait for one worker from another: 32 bursts.
const handoffSlots = 2048

// home is the worker that a frame goes back to: its number divided by frames, by a
// multiplication, as in ownership.localPort.
func (m *mesh) home(chunk uint64) int {
	w, _ := bits.Mul64(m.inverse, chunk>>(m.shift&63))
	return int(w)
}

func newMesh(workers int, frames, frameSize uint64) *mesh {
	m := &mesh{frames: frames, inverse: math.MaxUint64/frames + 1, shift: uint8(bits.TrailingZeros64(frameSize))}
	for from := range workers {
		var p, h []*spsc
		for to := range workers {
			if from == to {
				p, h = append(p, nil), append(h, nil)
				continue
			}
			p = append(p, newSPSC(handoffSlots))
			h = append(h, newSPSC(int(frames)))
		}
		m.packets, m.homeward = append(m.packets, p), append(m.homeward, h)
	}
	return m
}

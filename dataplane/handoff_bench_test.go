package dataplane

import (
	"encoding/binary"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkHandOver is the least that handing packets over costs between two cores
// that do it to each other: one line of each frame written, a descriptor put into a
// ring, the line read and written by the other core, and the frame given back by a
// ring ("back") or kept there for the next packet ("kept"). Nanoseconds are those of
// one core for a packet that it hands over and one that it is handed. "alone" is the
// same work by each core on frames of its own.
func BenchmarkHandOver(b *testing.B) {
	for _, how := range []string{"alone", "back", "kept"} {
		b.Run(how, func(b *testing.B) {
			const frames, size = 1024, 2048
			umem := make([]byte, 2*frames*size)
			var over, home [2]*spsc
			for i := range 2 {
				over[i], home[i] = newSPSC(handoffSlots), newSPSC(frames)
			}
			var both sync.WaitGroup
			for me := range 2 {
				p := newPool(uint64(me)*frames*size, uint64(me+1)*frames*size, size, 2*frames)
				h := hander{umem: umem, pool: p, in: over[1-me], out: over[me], back: home[me], home: home[1-me], keep: how == "kept"}
				if how == "alone" {
					h.in, h.keep = h.out, true
				}
				both.Go(func() { h.run(me, b.N) })
			}
			both.Wait()
		})
	}
}

// hander is one of the two.
type hander struct {
	umem                []byte
	pool                pool
	in, out, back, home *spsc
	keep                bool
	burst               [BurstSize / 2]uint64
}

// run hands over n packets and takes as many.
func (h *hander) run(cpu, n int) {
	runtime.LockOSThread() // and ends with its goroutine
	var one unix.CPUSet
	one.Set(cpu)
	_ = unix.SchedSetaffinity(0, &one) // where that is not allowed it runs where it may
	for given, taken := 0, 0; given < n || taken < n; {
		for _, at := range h.pool.take(min(len(h.burst), n-given)) {
			line := h.umem[at : at+64]
			for k := 0; k < len(line); k += 8 {
				binary.NativeEndian.PutUint64(line[k:], uint64(given))
			}
			if !h.out.put(at) {
				panic("the ring has room for all frames")
			}
			given++
		}
		h.out.publish()
		taken += h.take()
	}
}

func (h *hander) take() int {
	first, rest := h.in.look(uint64(len(h.burst)))
	prefetchFrames(h.umem, first)
	prefetchFrames(h.umem, rest)
	n := h.in.pop(h.burst[:])
	for _, at := range h.burst[:n] {
		line := h.umem[at : at+64]
		for k := 0; k < len(line); k += 8 {
			binary.NativeEndian.PutUint64(line[k:], binary.NativeEndian.Uint64(line[k:])+1)
		}
		if h.keep {
			h.pool.put(at)
		} else {
			h.back.put(at)
		}
	}
	h.back.publish()
	taken := n
	for n = h.home.pop(h.burst[:]); n > 0; n = h.home.pop(h.burst[:]) {
		h.pool.free = append(h.pool.free, h.burst[:n]...)
	}
	return taken
}

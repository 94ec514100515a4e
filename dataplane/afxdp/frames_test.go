package afxdp

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// frameTwin knows for each frame where it is, in the slowest way.
type frameTwin struct {
	s         *Socket
	k         *fakeKernel
	pool      []uint64        // the worker's
	kernelHas map[uint64]bool // given by Fill or Transmit, not back yet
	filled    []uint64        // read from the fill ring by the kernel
	sending   []uint64        // read from the TX ring by the kernel
	desc      [32]unix.XDPDesc
	addr      [32]uint64
}

func (w *frameTwin) take(n int) []uint64 {
	n = min(n, len(w.pool))
	out := slices.Clone(w.pool[:n])
	w.pool = w.pool[n:]
	return out
}

func (w *frameTwin) gave(addrs []uint64, n int) {
	for _, a := range addrs[:n] {
		w.kernelHas[a] = true
	}
	w.pool = append(w.pool, addrs[n:]...)
}

func (w *frameTwin) back(t *rapid.T, a uint64) {
	if !w.kernelHas[a] {
		t.Fatalf("frame %#x came back though it was not given, or twice", a)
	}
	delete(w.kernelHas, a)
	w.pool = append(w.pool, a)
}

func (w *frameTwin) workerStep(t *rapid.T, n int) {
	switch rapid.IntRange(0, 3).Draw(t, "worker") {
	case 0:
		give := w.take(n)
		w.gave(give, w.s.Fill(give))
	case 1:
		for _, x := range w.desc[:w.s.Receive(w.desc[:n])] {
			w.back(t, x.Addr-rxOffset)
		}
	case 2:
		give := w.take(n)
		for i, a := range give { // some lengths are impossible
			w.desc[i] = unix.XDPDesc{Addr: a + 300, Len: rapid.SampledFrom([]uint32{60, 0, 1748, 1749}).Draw(t, "len")}
		}
		w.gave(give, w.s.Transmit(w.desc[:len(give)]))
	case 3:
		for _, a := range w.addr[:w.s.Reclaim(w.addr[:n])] {
			w.back(t, a)
		}
	}
}

func (w *frameTwin) kernelStep(t *rapid.T, n int) {
	switch rapid.IntRange(0, 3).Draw(t, "kernel") {
	case 0:
		for a, ok := w.k.fill.get(); ok && n > 0; n-- {
			w.filled = append(w.filled, a)
			if n > 1 {
				a, ok = w.k.fill.get()
			}
		}
	case 1:
		for ; len(w.filled) > 0 && n > 0 && w.k.rx.put(unix.XDPDesc{Addr: w.filled[0] + rxOffset, Len: 60}); n-- {
			w.filled = w.filled[1:]
		}
	case 2:
		for ; n > 0; n-- {
			if x, ok := w.k.tx.get(); ok {
				w.sending = append(w.sending, x.Addr)
			}
		}
	case 3: // completions come in any order
		for ; len(w.sending) > 0 && n > 0; n-- {
			i := rapid.IntRange(0, len(w.sending)-1).Draw(t, "completes")
			if !w.k.completion.put(w.sending[i]) {
				return
			}
			w.sending = slices.Delete(w.sending, i, i+1)
		}
	}
}

// The socket against the twin, with a kernel that completes in any order and a
// worker that sends impossible lengths: no frame is ever lost or doubled.
func TestFramesAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const frames = 32
		size := 1 << rapid.IntRange(0, 4).Draw(t, "log2 ring")
		s, k := newFakeSocket(frames, size, rapid.SampledFrom(starts).Draw(t, "start"), false)
		w := &frameTwin{s: s, k: k, pool: frameAddrs(0, frames), kernelHas: map[uint64]bool{}}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			n := rapid.IntRange(0, 8).Draw(t, "n")
			if rapid.Bool().Draw(t, "who") {
				w.workerStep(t, n)
			} else {
				w.kernelStep(t, n)
			}
			if got := len(s.Held(nil)) + len(s.returned); got != len(w.kernelHas) || len(w.pool)+got != frames {
				t.Fatalf("kernel has %d, held says %d, pool %d", len(w.kernelHas), got, len(w.pool))
			}
		}
		if s.count.doubled.Load() != 0 {
			t.Fatalf("%d frames doubled", s.count.doubled.Load())
		}
	})
}

// Whatever stands in the RX and completion rings, what comes out lies inside its
// frame, each frame at most once, and only frames that the kernel had.
func FuzzKernelNonsense(f *testing.F) {
	f.Add([]byte{})
	f.Add(binary.LittleEndian.AppendUint64(nil, 2048+256))
	f.Fuzz(func(t *testing.T, raw []byte) {
		const frames, ring = 16, 8
		s, k := newFakeSocket(frames, ring, 1<<32-3, false)
		s.Fill(frameAddrs(0, 6))
		for i := 6; i < 12; i++ {
			s.Transmit([]unix.XDPDesc{{Addr: uint64(i)*2048 + 300, Len: 60}})
		}
		had := map[uint64]bool{}
		for _, a := range s.Held(nil) {
			had[a] = true
		}
		for i := 0; len(raw) >= 12; i++ {
			addr, length := binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint32(raw[8:])
			if raw = raw[12:]; i%2 == 0 {
				k.rx.put(unix.XDPDesc{Addr: addr, Len: length, Options: length})
			} else {
				k.completion.put(addr)
			}
		}
		desc, addr := make([]unix.XDPDesc, ring), make([]uint64, ring)
		desc, addr = desc[:s.Receive(desc)], addr[:s.Reclaim(addr)]
		for _, d := range desc {
			a := d.Addr &^ 2047
			if end := d.Addr + uint64(d.Len); end > a+2048 {
				t.Errorf("%+v leaves its frame", d)
			}
			addr = append(addr, a)
		}
		for _, a := range addr {
			if !had[a] {
				t.Errorf("frame %#x was not the kernel's, or came twice", a)
			}
			delete(had, a)
		}
		if left := len(s.Held(nil)); left != len(had) {
			t.Errorf("%d frames held, want %d", left, len(had))
		}
	})
}

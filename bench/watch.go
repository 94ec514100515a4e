package bench

import "github.com/l4fwd/l4fwd/dataplane"

// watcher feeds bursts to the only worker of a synth and says what became of
// each packet.
type watcher struct {
	s      *synth
	origin []uint8 // by chunk: the place of the frame it received last
	// The methods as ports want them, made once: each time anew would allocate.
	onReceive func(int, []byte)
	onSend    func([]byte)
	sent      [dataplane.BurstSize]struct {
		n    int // bytes, 0 if it did not leave
		head [handshakeRoom]byte
	}
}

func newWatcher(s *synth) *watcher {
	w := &watcher{s: s, origin: make([]uint8, len(s.r.umem.used)/s.r.chunk)}
	w.onReceive, w.onSend = w.received, w.leaves
	return w
}

// feed feeds at most a burst at the workers' time now and returns how long that
// took. What left is in sent, by place in frames.
func (w *watcher) feed(frames [][]byte, now int64) int64 {
	w.on(len(frames))
	took := w.s.burst(frames, now)
	w.off()
	return took
}

// on has what becomes of the next n frames noted, until off.
func (w *watcher) on(n int) {
	for i := range n {
		w.sent[i].n = 0
	}
	p := w.s.r.ports[0]
	p.OnReceive, p.OnSend = w.onReceive, w.onSend
}

func (w *watcher) off() { w.s.r.ports[0].OnReceive, w.s.r.ports[0].OnSend = nil, nil }

func (w *watcher) received(i int, f []byte) { w.origin[w.s.r.chunkOf(f)] = uint8(i) }

func (w *watcher) leaves(f []byte) {
	o := &w.sent[w.origin[w.s.r.chunkOf(f)]]
	o.n = copy(o.head[:], f)
}

// burst feeds the only worker a burst and returns how long it took.
func (s *synth) burst(frames [][]byte, now int64) int64 {
	from := s.busy.Now()
	s.feed(0, frames, now)
	return s.busy.Since(from)
}

// feed feeds worker q a burst.
func (s *synth) feed(q int, frames [][]byte, now int64) {
	w, p := s.r.dp.Workers[q], s.r.ports[q]
	p.Feed(frames, 1)
	for !p.Idle() {
		w.Poll(now)
	}
}

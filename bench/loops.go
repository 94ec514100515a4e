package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/l4fwd/l4fwd/dataplane"
)

// tell reports progress and whether to go on.
func (m *meter) tell(ctx context.Context, done float64) error {
	if m.o.Progress != nil {
		m.o.Progress(done)
	}
	return ctx.Err()
}

// firstShare is how much of the whole work loop 1 is, about.
func (m *meter) firstShare() float64 {
	if m.o.Duration > 0 {
		return 0
	}
	return 1 / float64(m.o.Loops)
}

// done is how much of the work is done.
func (m *meter) done() float64 {
	if m.o.Duration > 0 {
		return min(float64(m.now()-m.since)/float64(m.o.Duration), 1)
	}
	return float64(m.loops) / float64(m.o.Loops)
}

// more reports whether another loop is to begin.
func (m *meter) more() bool {
	if m.o.Duration > 0 {
		return m.now()-m.since < int64(m.o.Duration)
	}
	return m.loops < m.o.Loops
}

// lane is what one worker is fed in the later loops.
type lane struct {
	frames [][]byte
	times  []int64

	loops int    // begun
	fed   uint64 // packets
	nanos int64  // in the worker, where output is written between
}

// size is how many bytes were fed.
func (l *lane) size() (n uint64) {
	var one, part uint64
	for i, f := range l.frames {
		one += uint64(len(f))
		if i < int(l.fed%uint64(len(l.frames))) {
			part += uint64(len(f))
		}
	}
	if l.fed == 0 {
		return 0
	}
	return l.fed/uint64(len(l.frames))*one + part
}

// lanes spreads what loop 1 fed over the workers, as a NIC would, without what
// opens and closes connections.
func (m *meter) lanes() []lane {
	out := make([]lane, m.o.Workers)
	for _, i := range m.order {
		if m.a.frames[i].mark&(markOpening|markClosing) != 0 {
			continue
		}
		f := m.c.Frames[i]
		l := &out[m.r.queue(f)]
		l.frames, l.times = append(l.frames, f), append(l.times, m.c.Times[i])
	}
	for w := range out {
		// Held back replies are fed later than they were captured.
		for i := 1; i < len(out[w].times); i++ {
			out[w].times[i] = max(out[w].times[i], out[w].times[i-1])
		}
	}
	return out
}

// laterLoops feeds what is between the opening and the end of connections,
// over and over. Every worker goes at its own pace in a thread of its own, or
// here if it is the only one.
func (m *meter) laterLoops(ctx context.Context) error {
	lanes := m.lanes()
	fed := 0
	for i := range lanes {
		fed += len(lanes[i].frames)
	}
	if fed == 0 && m.several() && (m.o.Profile || m.o.CPUProfile != nil) {
		return fmt.Errorf("%w: nothing of the capture is fed after the first loop, so there is nothing to measure", ErrOptions)
	}
	if !m.several() || fed == 0 {
		return nil
	}
	stop, err := startProfile(m.o.CPUProfile)
	if err != nil {
		return err
	}
	defer stop()
	m.watch()
	m.since = m.now()
	if m.out != nil && m.o.Workers > 1 {
		return m.lockstep(ctx)
	}
	settle()
	var before uint64
	var nanos int64
	switch {
	case m.o.Limit:
		if before, nanos, err = m.beside(ctx, &lanes[0]); err != nil {
			return err
		}
	case m.o.Workers == 1:
		before = allocated()
		from := m.now()
		m.drive(ctx, 0, &lanes[0])
		nanos = m.now() - from
		if m.out != nil { // writing is not the pipeline's
			nanos = lanes[0].nanos
		}
	default:
		before, nanos = m.together(ctx, lanes)
	}
	m.allocs, m.allocsOver = allocated()-before, 0
	for i := range lanes {
		m.allocsOver += lanes[i].fed
		m.bytes += lanes[i].size()
		m.loops = max(m.loops, 1+lanes[i].loops)
	}
	m.part[1].packets, m.part[1].nanos = m.allocsOver, nanos
	return ctx.Err()
}

// settle collects garbage now, not while it is measured, and waits for what
// that sets going in the background, which allocates.
func settle() {
	runtime.GC()
	time.Sleep(2 * time.Millisecond)
}

// lookEvery is how many bursts pass between two looks at the clock.
const lookEvery = 1024

// drive feeds a worker its lane until the loops or the time are over.
func (m *meter) drive(ctx context.Context, id int, l *lane) {
	w, p := m.r.dp.Workers[id], m.r.ports[id]
	span := m.c.span()
	bursts, now := 0, m.time
	for len(l.frames) > 0 && (m.o.Duration > 0 || 1+l.loops < m.until) {
		l.loops++
		offset := base + int64(l.loops)*span
		for at := 0; at < len(l.frames); at += dataplane.BurstSize {
			end := min(at+dataplane.BurstSize, len(l.frames))
			was := now
			now = max(offset+l.times[end-1], now)
			idle(w, was, now)
			p.Feed(l.frames[at:end], 1)
			if m.out == nil {
				for !p.Idle() {
					w.Poll(now)
				}
				if m.sampler != nil {
					m.sampler.note(end - at)
				}
			} else {
				from := m.now()
				for !p.Idle() {
					w.Poll(now)
				}
				l.nanos += m.now() - from
				m.out.write(now)
			}
			l.fed += uint64(end - at)
			if bursts++; bursts%lookEvery == 0 && m.over(ctx, id, l, at) {
				return
			}
		}
		if m.over(ctx, id, l, 0) {
			return
		}
	}
}

// idleStep is the longest a worker is left without a round. It bounds what it
// does about timers in one, so that after a leap in time it would lag behind.
const idleStep = int64(5 * time.Second)

// idle gives a worker its rounds over a time without packets.
func idle(w *dataplane.Worker, from, to int64) {
	for from += idleStep; from < to; from += idleStep {
		w.Poll(from)
	}
}

// over tells the progress and reports whether to stop.
func (m *meter) over(ctx context.Context, id int, l *lane, at int) bool {
	done := m.done()
	if m.o.Duration == 0 {
		done = (float64(l.loops) + float64(at)/float64(len(l.frames))) / float64(m.o.Loops)
	}
	if id == 0 && m.o.Progress != nil {
		m.o.Progress(min(done, 1))
	}
	return ctx.Err() != nil || m.o.Duration > 0 && done >= 1
}

// together runs all workers side by side and returns how many heap objects
// there had been at the start, and the time until the last was done.
func (m *meter) together(ctx context.Context, lanes []lane) (before uint64, nanos int64) {
	var ready, done sync.WaitGroup
	var finished atomic.Int32
	start := make(chan struct{})
	for id := range lanes {
		ready.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			defer apart(id, len(lanes))()
			ready.Done()
			<-start
			m.drive(ctx, id, &lanes[id])
			// Go on with what others hand over.
			w := m.r.dp.Workers[id]
			now := m.time + int64(1+lanes[id].loops)*m.c.span()
			finished.Add(1)
			for int(finished.Load()) < len(lanes) {
				w.Poll(now)
			}
			for w.Poll(now) > 0 {
			}
		}()
	}
	ready.Wait()
	before = allocated()
	from := m.now()
	close(start)
	done.Wait()
	return before, m.now() - from
}

package bench

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/l4fwd/l4fwd/bench/cpu"
)

// sideBySide is a round of several workers, each in a thread of its own on a CPU
// of its own. Each thread makes its worker's packets itself, so that they lie in the
// cache of its core as those of a worker alone do; all wait for each other, feed, and
// wait for each other again, as often as the round takes batches. Only feeding
// counts: a worker's time is from its first packet until it has moved its last one,
// those that others hand over included, and the round takes what the slowest takes.
//
// With limits, each thread feeds one of these instead, which shows how much the
// machine itself does better with more cores: what it calls two may be one for now.
type sideBySide struct {
	s       *synth
	limits  []*limit // by worker
	batches int
	each    int   // packets a batch
	since   int64 // of the workers' clock
	begun   []meeting
	fed     []meeting
	shares  []share // by worker
}

// share is what a round was for one worker, in nanoseconds.
type share struct {
	wall, busy int64 // busy is processor time of the thread
	bytes      uint64
}

// meeting is where the threads wait for each other, once.
type meeting struct {
	arrived atomic.Int32
	_       [2*cacheLine - 4]byte
}

// spins is how often a thread looks for the others before it lets another have its
// core: for ever, so to speak, unless there are more threads than cores. To let
// others have it costs the rest of them, too: a locked thread gives its place away by
// waking another thread, on whatever core.
const spins = 1 << 26

// arrive says that one more is there.
func (m *meeting) arrive() { m.arrived.Add(1) }

// over reports whether all are there.
func (m *meeting) over(all int) bool { return int(m.arrived.Load()) >= all }

// meet waits for all.
func (m *meeting) meet(all int) {
	m.arrive()
	for n := 1; !m.over(all); n++ {
		if n%spins == 0 {
			runtime.Gosched()
		}
	}
}

func newSideBySide(s *synth, n int, limits []*limit) *sideBySide {
	all := len(s.batches)
	b := &sideBySide{s: s, limits: limits, since: s.time}
	b.each = min((n+all-1)/all, cap(s.batches[0].frames))
	b.batches = (n + all*b.each - 1) / (all * b.each)
	b.begun, b.fed = make([]meeting, b.batches), make([]meeting, b.batches)
	b.shares = make([]share, all)
	return b
}

// run feeds as many packets as asked for or a few more, and returns how many.
func (b *sideBySide) run() (fed int) {
	var done sync.WaitGroup
	for q := range b.shares {
		done.Go(func() { b.shares[q] = b.thread(q) })
	}
	done.Wait()
	if b.limits == nil {
		b.s.time = b.start(b.batches)
		for _, sh := range b.shares {
			b.s.bytes += sh.bytes
		}
	}
	return len(b.shares) * b.batches * b.each
}

// apart makes the calling thread, one of all, worker q's alone, on a CPU of its own
// if there are enough: left to itself the kernel may run two of them on one CPU, with
// another idle, for as long as a round takes. Where that is refused they run as they
// can.
func apart(q, all int) (undo func()) {
	runtime.LockOSThread()
	if all <= runtime.NumCPU() {
		if restore, err := cpu.Pin(cpu.Nth(q)); err == nil {
			return func() { _ = restore(); runtime.UnlockOSThread() }
		}
	}
	return runtime.UnlockOSThread
}

// start is when batch i begins by the workers' clock.
func (b *sideBySide) start(i int) int64 {
	return b.since + int64(i)*int64(b.each+1)*packetGap
}

// thread is worker q's.
func (b *sideBySide) thread(q int) (sh share) {
	s, all := b.s, len(b.shares)
	defer apart(q, all)()
	for i := range b.batches {
		sh.bytes += s.batches[q].make(s, q, b.each)
		b.begun[i].meet(all)
		busy, from := s.busy.Now(), s.clock.Now()
		moved, used := b.feed(q, i)
		sh.wall += moved - from
		sh.busy += used - busy
	}
	return sh
}

// feed is what of batch i counts in worker q's thread. It returns when the last
// packet was moved, by the clock of the wall and by that of the thread; then it has
// waited for the others. By each clock of its own: a thread that waits may have lost
// its core to somebody else.
func (b *sideBySide) feed(q, i int) (moved, used int64) {
	s, all := b.s, len(b.shares)
	if b.limits != nil {
		b.limits[q].feed(s.batches[q].frames)
		moved, used = s.clock.Now(), s.busy.Now()
		b.fed[i].meet(all)
		return moved, used
	}
	w, end := s.r.dp.Workers[q], b.start(i+1)
	s.drive(q, b.start(i))
	moved, used = s.clock.Now(), s.busy.Now()
	b.fed[i].arrive()
	for last, more := false, false; ; {
		if w.Poll(end) > 0 {
			moved, more = s.clock.Now(), true
			continue
		}
		if more { // the thread's clock is too slow to be read after each burst
			used, more = s.busy.Now(), false
		}
		if last {
			return moved, used
		}
		last = b.fed[i].over(all) // what they have handed over comes with the next look
	}
}

// times are how long the slowest worker took, by the clock, and the processor time of all.
func (b *sideBySide) times() (wall, busy int64) {
	for _, sh := range b.shares {
		wall, busy = max(wall, sh.wall), busy+sh.busy
	}
	return wall, busy
}

package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnfinished is wrapped by the error of a Do whose function has begun and not come to
// its end: it has panicked, which ends the worker.
var ErrUnfinished = errors.New("did not finish what it was to do")

// Do runs f on the worker's thread between two bursts and waits for it. No
// packet of this worker moves meanwhile: keep f short. The worker must be in
// Run. An error means that f did not run and will not, unless it is ErrUnfinished.
func (w *Worker) Do(ctx context.Context, f func(*Worker)) error {
	j := &job{run: f, done: make(chan struct{})}
	for !w.job.CompareAndSwap(nil, j) { // somebody else's job: bursts away
		select {
		case <-ctx.Done():
			return fmt.Errorf("worker %d: %w", w.id, ctx.Err())
		case <-time.After(100 * time.Microsecond):
		}
	}
	w.wakeUp()
	select {
	case <-j.done:
	case <-ctx.Done():
		if w.job.CompareAndSwap(j, nil) {
			return fmt.Errorf("worker %d: %w", w.id, ctx.Err())
		}
		<-j.done // it has begun
	}
	if !j.ok {
		return fmt.Errorf("worker %d: %w", w.id, ErrUnfinished)
	}
	return nil
}

// do is the job on the worker's thread. Who waits for it is told that it is over also
// if it panics: the control loop would wait for ever, with XDP attached.
func (j *job) do(w *Worker) {
	defer close(j.done)
	j.run(w)
	j.ok = true
}

// Event returns the oldest unread word from the worker. One goroutine may call
// it.
func (w *Worker) Event() (Event, bool) { return w.events.pop() }

// wake rouses another worker that a packet waits for.
func (w *Worker) wake(id int) { w.peers[id].wakeUp() }

// wakeUp ends the worker's sleep, if it sleeps. The caller has published what
// there is to see before; sleep looks again after it has said that it sleeps.
func (w *Worker) wakeUp() {
	// Whoever takes the sleep away makes the system call, once: a burst handed
	// over must not make one a packet.
	if !w.asleep.Load() || !w.asleep.CompareAndSwap(true, false) {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// The only error is a full counter, and then it wakes anyway.
	_, _ = unix.Write(w.wakeFD, one[:])
}

// Run options.
type Run struct {
	CPU      int  // core to pin the thread to; negative leaves it where it is
	Adaptive bool // sleep when idle instead of spinning for ever
	Clock    Clock
	Stop     *atomic.Bool // ends Run; Wake the worker after setting it
}

// idleSpin is how long an adaptive worker spins before it sleeps: longer than
// the gap between a request and its answer on a local network, so that a
// conversation finds it awake.
const idleSpin = int64(200 * time.Microsecond)

// maxSleep bounds a sleep so that flows expire in time.
const maxSleep = 100 * time.Millisecond

// hungrySleep bounds it where frames are missing: nothing arrives that could
// end it, and nobody says when others send frames back.
const hungrySleep = time.Millisecond

// hungry reports whether a queue is short of frames to receive into and there
// are none to give it.
func (w *Worker) hungry() bool {
	if len(w.pool.free) >= BurstSize {
		return false
	}
	for i := range w.queues {
		if q := &w.queues[i]; !q.down && q.FillFree() >= BurstSize {
			return true
		}
	}
	return false
}

// Run forwards until Stop is set. It takes the calling goroutine's thread for
// itself. Go's scheduler still preempts it every 10 ms to look after the rest
// of the process: a few microseconds, if the core is its own.
func (w *Worker) Run(o Run) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.CPU >= 0 {
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return fmt.Errorf("worker %d: affinity: %w", w.id, err)
		}
		one.Set(o.CPU)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("worker %d: pin to cpu %d: %w", w.id, o.CPU, err)
		}
		// The thread goes back to the runtime afterwards.
		defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	}
	busy := o.Clock()
	for !o.Stop.Load() {
		now := o.Clock()
		if w.Poll(now) > 0 {
			busy = now
		} else if o.Adaptive && now-busy > idleSpin {
			w.sleep()
		}
	}
	return nil
}

// sleep waits in poll(2) for a packet, a neighbour's hand-off, a job, or
// maxSleep.
func (w *Worker) sleep() {
	w.asleep.Store(true)
	defer w.asleep.Store(false)
	if w.job.Load() != nil || w.nextSnap.Load() != w.snap || w.table.Behind(w.tick) {
		return
	}
	for _, r := range w.inbox {
		if r.len() > 0 {
			return
		}
	}
	fds := w.pollFDs[:0]
	fds = append(fds, unix.PollFd{Fd: int32(w.wakeFD), Events: unix.POLLIN})
	for i := range w.queues {
		if q := &w.queues[i]; !q.down && q.FD() >= 0 {
			fds = append(fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
		}
	}
	w.pollFDs = fds
	sleep := maxSleep
	if w.hungry() {
		sleep = hungrySleep
	}
	// Every error means "look at the rings again", which happens anyway.
	if n, _ := unix.Poll(fds, int(sleep.Milliseconds())); n > 0 && fds[0].Revents != 0 {
		var b [8]byte
		_, _ = unix.Read(w.wakeFD, b[:])
	}
}

// Wake makes a sleeping worker look around; after setting Run.Stop.
func (w *Worker) Wake() { w.wakeUp() }

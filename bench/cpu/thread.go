package cpu

import "golang.org/x/sys/unix"

// Thread tells the processor time of the calling thread, in nanoseconds: what
// others take of the core does not count. It is the goroutine's only while that is
// locked to its thread. Reading it is a system call.
type Thread struct{ cost int64 }

// NewThread measures what a reading costs.
func NewThread() *Thread {
	t := &Thread{}
	t.cost = cost(t.Now)
	return t
}

// Now is the time so far; -1 where the kernel does not keep it, which it does
// since Linux 2.6.12.
func (t *Thread) Now() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return -1
	}
	return ts.Nano()
}

// Since is what has passed since from, a former Now, without a reading's cost.
func (t *Thread) Since(from int64) int64 { return max(t.Now()-from-t.cost, 0) }

// Cost is how many nanoseconds a Now takes.
func (t *Thread) Cost() int64 { return t.cost }

package growth

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The larger size is factor times the smaller one; work in proportion takes about as many
// times longer, work in the square factor*factor times. Memory that does not fit into a
// cache any more costs another factor of two or three.
const (
	factor = 8
	most   = 4 * factor
	turns  = 3 // of which the fastest counts
)

// Proportional fails the test if work for 8n takes more than 32 times the CPU time of work
// for n. prepare makes what the work needs, untimed, each time anew; all of work has to be
// done on the calling goroutine.
func Proportional(t *testing.T, n int, prepare func(n int) (work func())) {
	t.Helper()
	small, large := fastest(n, prepare)
	t.Logf("%d: %v, %d: %v, %.1f times as long", n, small, factor*n, large, float64(large)/float64(small))
	if large > most*small {
		t.Errorf("%d times the size takes %.1f times as long", factor, float64(large)/float64(small))
	}
}

// fastest times n and factor*n, in turn: what a host takes from its machines for a while,
// which may count as their CPU time, does not fall on all turns of one of them.
func fastest(n int, prepare func(n int) func()) (small, large time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	once := func(n int) time.Duration {
		work := prepare(n)
		runtime.GC()
		percent := debug.SetGCPercent(-1)
		before := spent()
		work()
		took := spent() - before
		debug.SetGCPercent(percent)
		return max(took, time.Microsecond)
	}
	small, large = once(n), once(factor*n)
	for range turns - 1 {
		small, large = min(small, once(n)), min(large, once(factor*n))
	}
	return small, large
}

// spent is the CPU time of the calling thread.
func spent() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(ts.Nano())
}

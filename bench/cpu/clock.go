package cpu

import (
	"bytes"
	"math"
	"os"
	"time"
)

// Clock tells nanoseconds at a price of some of them. Its methods may be called
// from any goroutine.
type Clock struct {
	start   time.Time
	first   uint64  // ticks at start
	perTick float64 // nanoseconds; 0: the monotonic clock
	cost    int64
}

// calibration is how long the counter is compared with the monotonic clock: a
// reading is off by 100 ns at worst, so the rate by one in 100,000.
const calibration = 10 * time.Millisecond

// NewClock calibrates a clock, which takes about 10 ms.
func NewClock() *Clock {
	c := &Clock{}
	c.start, c.first = together(time.Now, ticks)
	if c.first != 0 && invariant() {
		for time.Since(c.start) < calibration {
		}
		end, n := together(time.Now, ticks)
		c.perTick = float64(end.Sub(c.start)) / float64(n-c.first)
	}
	c.cost = cost(c.Now)
	return c
}

// together reads both clocks at one moment: of several times the one that took the
// shortest, for the thread may lose its core between two readings.
func together(now func() time.Time, ticks func() uint64) (at time.Time, n uint64) {
	shortest := time.Duration(math.MaxInt64)
	for range 10 {
		from := now()
		t := ticks()
		if took := now().Sub(from); took < shortest {
			shortest, at, n = took, from, t
		}
	}
	return at, n
}

// cost is what a reading takes, by the shortest of several series: an interrupt in
// the one there was would have it cost more than what it is to be taken off from.
func cost(now func() int64) int64 {
	const series, reads = 10, 100
	least := int64(math.MaxInt64)
	for range series {
		from := now()
		for range reads {
			now()
		}
		least = min(least, (now()-from)/(reads+1))
	}
	return least
}

// Now is nanoseconds since the clock was made.
func (c *Clock) Now() int64 {
	if c.perTick == 0 {
		return int64(time.Since(c.start))
	}
	return int64(float64(ticks()-c.first) * c.perTick)
}

// Cost is how many nanoseconds a Now takes.
func (c *Clock) Cost() int64 { return c.cost }

// Source names what the time is read from.
func (c *Clock) Source() string {
	if c.perTick == 0 {
		return "monotonic clock"
	}
	return "time stamp counter"
}

// invariant reports whether the counter runs at one rate, always. On arm64 it
// is so by definition (CNTVCT_EL0, the architected timer).
func invariant() bool {
	if architected {
		return true
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(b, []byte(" constant_tsc")) && bytes.Contains(b, []byte(" nonstop_tsc"))
}

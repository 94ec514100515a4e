package cpu_test

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
)

// The clock goes as the monotonic one does.
func TestClock(t *testing.T) {
	c := cpu.NewClock()
	t.Logf("%s, %d ns a reading", c.Source(), c.Cost())
	if c.Cost() < 0 || c.Cost() > 10_000 {
		t.Errorf("a reading costs %d ns", c.Cost())
	}
	// The thread may lose its core between two readings: the closest of many.
	best := 1.0
	for range 20 {
		from, was := time.Now(), c.Now()
		for time.Since(from) < 5*time.Millisecond {
		}
		took, is := time.Since(from), c.Now()
		off := float64(is-was)/float64(took) - 1
		best = min(best, max(off, -off))
	}
	if best > 0.001 {
		t.Errorf("off by %g at best", best)
	}
	last := c.Now()
	for range 10_000 {
		now := c.Now()
		if now < last {
			t.Fatalf("%d after %d", now, last)
		}
		last = now
	}
}

// A hint about anything is harmless.
func TestPrefetch(t *testing.T) {
	m := make([]byte, 4096)
	cpu.Prefetch(m, nil)
	cpu.Prefetch(nil, []uint64{0})
	cpu.Prefetch(m, []uint64{0, 64, 4095, 1 << 40})
	if n := testing.AllocsPerRun(10, func() { cpu.Prefetch(m, []uint64{0, 64}) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// Waiting takes no processor time, work does.
func TestThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := cpu.NewThread()
	t.Logf("%d ns a reading", c.Cost())
	from := c.Now()
	time.Sleep(100 * time.Millisecond)
	if took := c.Since(from); took > int64(20*time.Millisecond) {
		t.Errorf("a sleep took %d ns", took)
	}
	from = c.Now()
	for wall := time.Now(); c.Since(from) < int64(time.Millisecond); {
		if time.Since(wall) > 10*time.Second {
			t.Fatal("work takes no time")
		}
	}
	if n := testing.AllocsPerRun(10, func() { c.Now() }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// Every CPU that the thread may use is the nth of them, once, and no other is; a
// pinned thread has one, and afterwards those it had.
func TestPin(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, seen, now unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for n := range before.Count() {
		c := cpu.Nth(n)
		restore, err := cpu.Pin(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedGetaffinity(0, &now); err != nil || now.Count() != 1 || !now.IsSet(c) {
			t.Errorf("not bound to CPU %d alone: %v", c, err)
		}
		if again := cpu.Nth(0); again != c || cpu.Nth(1) != -1 {
			t.Errorf("bound to CPU %d, may use %d and %d", c, again, cpu.Nth(1))
		}
		seen.Set(c)
		if err := restore(); err != nil {
			t.Fatal(err)
		}
	}
	if seen != before || cpu.Nth(before.Count()) != -1 {
		t.Errorf("%v are not %v", seen, before)
	}
	if restore, err := cpu.Pin(-1); err != nil || restore() != nil {
		t.Errorf("no CPU: %v", err)
	}
}

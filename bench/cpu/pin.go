package cpu

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Pin binds the calling thread, to which its goroutine must be locked, to a CPU;
// a negative one leaves it where it is. restore puts it back.
func Pin(cpu int) (restore func() error, err error) {
	if cpu < 0 {
		return func() error { return nil }, nil
	}
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("affinity: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, fmt.Errorf("pin to cpu %d: %w", cpu, err)
	}
	return func() error { return unix.SchedSetaffinity(0, &before) }, nil
}

// Nth is the n-th of the CPUs that the calling thread may use, from 0, or -1, which
// Pin takes as well, if it may not use so many.
func Nth(n int) int {
	var allowed unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil {
		return -1
	}
	for cpu := range 64 * len(allowed) {
		if !allowed.IsSet(cpu) {
			continue
		}
		if n == 0 {
			return cpu
		}
		n--
	}
	return -1
}

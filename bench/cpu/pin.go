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

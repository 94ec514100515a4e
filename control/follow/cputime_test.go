package follow

import (
	"errors"
	"testing"
	"time"
)

// TestCPUTime: work counts, waiting does not.
func TestCPUTime(t *testing.T) {
	broken := errors.New("broken")
	waited, err := cpuTime(func() error { time.Sleep(100 * time.Millisecond); return broken })
	if !errors.Is(err, broken) || waited > 50*time.Millisecond {
		t.Errorf("%s of 100 ms asleep, %v", waited, err)
	}
	sum := 0
	worked, err := cpuTime(func() error {
		for i := range 50_000_000 { // some 20 ms
			sum += i
		}
		return nil
	})
	if err != nil || worked < 2*time.Millisecond {
		t.Errorf("%s for 50 million additions (%d), %v", worked, sum, err)
	}
}

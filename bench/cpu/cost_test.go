package cpu

import "testing"

// TestCost: an interrupt, or being put off the core, costs a reading nothing.
func TestCost(t *testing.T) {
	var now int64
	n := 0
	got := cost(func() int64 {
		now += 20
		if n++; n == 50 || n == 333 {
			now += 4e6
		}
		return now
	})
	if got != 20 {
		t.Errorf("%d ns a reading, want 20", got)
	}
}

package cpu

import (
	"testing"
	"time"
)

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

// TestTogether: nor does it come between the readings of two clocks that are compared.
func TestTogether(t *testing.T) {
	var now uint64
	n := 0
	read := func() uint64 {
		if now += 20; n%7 < 3 { // in most pairs
			now += 4e6
		}
		n++
		return now
	}
	at, ticks := together(func() time.Time { return time.Unix(0, int64(read())) }, read)
	if off := int64(ticks) - at.UnixNano(); off != 20 {
		t.Errorf("%d ns between two readings, want 20", off)
	}
}

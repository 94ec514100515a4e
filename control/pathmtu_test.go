package control

import (
	"testing"
	"time"
)

// TestQuotesPerSecond: workers are asked so often in each second and not more.
func TestQuotesPerSecond(t *testing.T) {
	var p perSecond
	now := time.Unix(1000, 0)
	for second := range 3 {
		allowed := 0
		for range 3 * maxQuotes {
			if p.allow(now.Add(time.Duration(second) * time.Second)) {
				allowed++
			}
		}
		if allowed != maxQuotes {
			t.Errorf("second %d: %d", second, allowed)
		}
	}
}

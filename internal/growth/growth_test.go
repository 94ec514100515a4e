package growth

import "testing"

// TestTells: what is in proportion and what is in the square are told apart.
func TestTells(t *testing.T) {
	sum := 0
	ratio := func(power int) float64 {
		prepare := func(n int) func() {
			return func() {
				rounds := n
				if power == 2 {
					rounds = n * n / 1000
				}
				for i := range rounds * 2000 {
					sum += i ^ sum
				}
			}
		}
		small, large := fastest(1000, prepare)
		return float64(large) / float64(small)
	}
	if r := ratio(1); r > most {
		t.Errorf("in proportion: %.1f times as long", r)
	}
	if r := ratio(2); r < most {
		t.Errorf("in the square: %.1f times as long", r)
	}
}

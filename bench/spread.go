package bench

import (
	"maps"
	"slices"
)

// Spread is nanoseconds a packet over several rounds.
type Spread struct {
	Rounds int     `json:"rounds"`
	Median float64 `json:"median_ns_per_packet"`
	Best   float64 `json:"best_ns_per_packet"`
	Worst  float64 `json:"worst_ns_per_packet"`
}

func newSpread(ns []float64) *Spread {
	return &Spread{Rounds: len(ns), Median: median(ns), Best: slices.Min(ns), Worst: slices.Max(ns)}
}

// LimitReport is what the limit took, see the package comment, and what the
// forwarder took beside it.
type LimitReport struct {
	Spread
	// Ratio is the median of the rounds' ratios, forwarder to limit: two halves of
	// a round follow on each other, so that what the machine does besides weighs
	// on both.
	Ratio float64 `json:"ratio"`
	// BestRatio is that of the best rounds: what is left when nobody disturbs.
	BestRatio float64 `json:"best_ratio"`
}

func newLimitReport(ns, limits []float64) *LimitReport {
	return &LimitReport{Spread: *newSpread(limits), Ratio: median(ratios(ns, limits)), BestRatio: slices.Min(ns) / slices.Min(limits)}
}

// median leaves v as it is.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// sortedKeys are the keys of both maps.
func sortedKeys[V any](a, b map[string]V) []string {
	keys := slices.Collect(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

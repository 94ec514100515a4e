package peers

import "fmt"

// Target is something that l4fwd wants to be, and whether it is.
type Target struct {
	Work    string  `json:"work"`
	Metric  string  `json:"metric"`
	Against string  `json:"against,omitempty"` // a forwarder; empty: Bound is absolute
	Bound   float64 `json:"bound"`             // of the ratio to that forwarder, or in the metric's unit
	// AtMost: the figure, or ratio, must not exceed the bound. Else it must reach it.
	AtMost bool `json:"at_most,omitempty"`

	Measured bool    `json:"measured"`
	Value    float64 `json:"value"` // the ratio, or the figure
	Met      bool    `json:"met"`
}

// targets are all there are.
func targets() (out []Target) {
	for _, w := range []string{UDP256, UDP50k} {
		out = append(out,
			Target{Work: w, Metric: rateName, Against: Testpmd, Bound: 0.97},
			Target{Work: w, Metric: rateName, Against: Bare, Bound: 0.95},
			Target{Work: w, Metric: rateName, Against: Nft, Bound: 1.6},
			Target{Work: w, Metric: rateName, Against: NftHere, Bound: 1.6})
	}
	out = append(out,
		Target{Work: HTTP, Metric: "connections", Against: HAProxy, Bound: 2.2},
		Target{Work: HTTP, Metric: "connections", Against: HAProxyHere, Bound: 2.2},
		Target{Work: HTTP, Metric: "connections", Against: Nginx, Bound: 2.2},
		Target{Work: HTTP, Metric: "connections", Against: NginxHere, Bound: 2.2},
		Target{Work: HTTP, Metric: "connections", Against: Nft, Bound: 0.8},
		Target{Work: HTTP, Metric: "connections", Against: NftHere, Bound: 0.8},
		Target{Work: HTTP, Metric: "connections", Against: Bare, Bound: 0.95},
		Target{Work: Iperf1, Metric: "received", Against: Nft, Bound: 1},
		Target{Work: Iperf1, Metric: "received", Against: NftHere, Bound: 1},
		Target{Work: Iperf1, Metric: "received", Against: Bare, Bound: 0.95},
		Target{Work: Iperf4, Metric: "received", Against: Nft, Bound: 1},
		Target{Work: Iperf4, Metric: "received", Against: NftHere, Bound: 1},
		Target{Work: Iperf4, Metric: "received", Against: Bare, Bound: 0.95},
		Target{Work: Latency, Metric: "p50", Against: Nft, Bound: 1, AtMost: true},
		Target{Work: Latency, Metric: "p50", Against: NftHere, Bound: 1, AtMost: true},
		Target{Work: Latency, Metric: "p99", Against: Nft, Bound: 1, AtMost: true},
		Target{Work: Latency, Metric: "p99", Against: NftHere, Bound: 1, AtMost: true},
		Target{Work: Idle, Metric: idleCPU, Bound: 2, AtMost: true},
		Target{Work: Idle, Metric: idleFirst, Bound: 200, AtMost: true},
	)
	return out
}

// judge compares the medians with the targets. What was not measured is not
// judged.
func (r *Report) judge() {
	r.Targets = targets()
	for i := range r.Targets {
		t := &r.Targets[i]
		m := r.metric(t.Work, t.Metric)
		if m == nil {
			continue
		}
		ours := m.row(L4fwd)
		if ours == nil {
			continue
		}
		t.Value = ours.Median
		if t.Against != "" {
			theirs := m.row(t.Against)
			if theirs == nil {
				continue
			}
			if t.Value = ratio(ours.Rounds, theirs.Rounds); t.Value == 0 {
				continue
			}
		}
		t.Measured = true
		t.Met = t.Value >= t.Bound && !t.AtMost || t.Value <= t.Bound && t.AtMost
	}
}

// want is the target in words.
func (t *Target) want(unit string) string {
	sign := "≥"
	if t.AtMost {
		sign = "≤"
	}
	if t.Against == "" {
		return fmt.Sprintf("%s %s %s", sign, format(t.Bound), unit)
	}
	return fmt.Sprintf("%s %s × %s", sign, format(t.Bound), t.Against)
}

// verdict is the outcome in a word.
func (t *Target) verdict() string {
	switch {
	case !t.Measured:
		return "not measured"
	case t.Met:
		return "met"
	}
	return "missed"
}

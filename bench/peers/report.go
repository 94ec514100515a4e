package peers

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Report is the result of Run.
type Report struct {
	Date    time.Time `json:"date"`
	Command string    `json:"command"`
	Host    Host      `json:"host"`
	CPUs    CPUs      `json:"cpus"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // of a measurement
	// Adopted says where arrangements were tried that are an earlier report's, nil if that
	// was here.
	Adopted    *Trials         `json:"adopted,omitempty"`
	Forwarders []ForwarderInfo `json:"forwarders"`
	Works      []WorkReport    `json:"works"`
	Targets    []Target        `json:"targets"`
	Lacks      []Lack          `json:"missing,omitempty"`
}

// Trials says when and on what CPU arrangements were tried.
type Trials struct {
	Date time.Time `json:"date"`
	CPU  string    `json:"cpu"`
}

// trials says where those of the report were, if there are any.
func (r *Report) trials() *Trials {
	switch {
	case r == nil:
		return nil
	case r.Adopted != nil:
		return r.Adopted
	}
	return &Trials{Date: r.Date, CPU: r.Host.CPU}
}

// ForwarderInfo says who was measured.
type ForwarderInfo struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Does    string `json:"does"`
	Version string `json:"version"`
	Setup   string `json:"setup"` // commands and configuration
}

// WorkReport has the figures of one work.
type WorkReport struct {
	Name    string         `json:"name"`
	Title   string         `json:"title"`
	How     string         `json:"how"`
	Metrics []MetricReport `json:"metrics"`
}

// MetricReport has one figure of every forwarder.
type MetricReport struct {
	Metric
	Rows []Row `json:"rows"`
}

// Row is a forwarder's figure.
type Row struct {
	Forwarder   string      `json:"forwarder"`
	Arrangement Arrangement `json:"arrangement"`
	Rounds      []float64   `json:"rounds"` // in order
	Median      float64     `json:"median"`
	Least       float64     `json:"least"`
	Most        float64     `json:"most"`
	// Ratio is the median of the rounds' ratios to l4fwd's figure of the same round,
	// which drift less than the figures; 0 if l4fwd has none.
	Ratio  float64 `json:"ratio_to_l4fwd"`
	Failed string  `json:"failed,omitempty"` // why there are no more rounds
	// Trials are the arrangements that were tried, by the work's chief metric; only
	// that one's row has them.
	Trials []Trial `json:"trials,omitempty"`
}

// Trial is an arrangement tried before the rounds.
type Trial struct {
	Arrangement
	Rounds []float64 `json:"rounds"`
	Value  float64   `json:"median"`
	Failed string    `json:"failed,omitempty"`
}

// rowData is what a forwarder does at a work, all metrics of it.
type rowData struct {
	arrangement Arrangement
	rounds      [][]float64
	trials      []Trial
	adopted     bool // of an earlier report
	err         error
}

// adopt takes what an earlier report, or nil, has found out about a forwarder's
// arrangements at a work, and reports whether that was anything.
func (d *rowData) adopt(r *Report, work, forwarder string) bool {
	if r == nil {
		return false
	}
	for i := range r.Works {
		if r.Works[i].Name != work {
			continue
		}
		for _, m := range r.Works[i].Metrics {
			if row := m.row(forwarder); row != nil {
				d.arrangement, d.adopted = row.Arrangement, true
				d.trials = append(d.trials, row.Trials...)
			}
		}
	}
	return d.adopted
}

// propose notes arrangements to be tried. A single one needs no trial.
func (d *rowData) propose(candidates []Arrangement) {
	if len(candidates) < 2 {
		return
	}
	for _, a := range candidates {
		d.trials = append(d.trials, Trial{Arrangement: a})
	}
}

// settle chooses the best arrangement of those that worked whenever they were
// tried. That others did not is no failure then.
func (d *rowData) settle(m *Metric) {
	best := -1
	for i := range d.trials {
		t := &d.trials[i]
		if t.Failed != "" || len(t.Rounds) == 0 {
			continue
		}
		t.Value = median(slices.Sorted(slices.Values(t.Rounds)))
		if best < 0 || m.better(t.Value, d.trials[best].Value) {
			best = i
		}
	}
	if best >= 0 {
		d.arrangement, d.err = d.trials[best].Arrangement, nil
	}
}

// row is that for one metric.
func (d *rowData) row(forwarder string, metric int) Row {
	r := Row{Forwarder: forwarder, Arrangement: d.arrangement}
	for _, v := range d.rounds {
		r.Rounds = append(r.Rounds, v[metric])
	}
	if d.err != nil {
		r.Failed = firstLine(d.err)
	}
	if len(r.Rounds) == 0 {
		return r
	}
	v := slices.Sorted(slices.Values(r.Rounds))
	r.Median, r.Least, r.Most = median(v), v[0], v[len(v)-1]
	return r
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// median is that of sorted values.
func median(v []float64) float64 {
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// spread is how far the rounds lie apart, as part of the median.
func (r *Row) spread() float64 {
	if r.Median == 0 {
		return 0
	}
	return (r.Most - r.Least) / r.Median
}

// ratios fills in the ratios.
func (m *MetricReport) ratios() {
	if ours := m.row(L4fwd); ours != nil {
		for i := range m.Rows {
			m.Rows[i].Ratio = ratio(m.Rows[i].Rounds, ours.Rounds)
		}
	}
}

// ratio is the median of what a is of b, round by round; 0 if there is none.
func ratio(a, b []float64) float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			all = append(all, a[i]/b[i])
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return median(all)
}

// row is a forwarder's; nil if it has no figure.
func (m *MetricReport) row(forwarder string) *Row {
	for i := range m.Rows {
		if m.Rows[i].Forwarder == forwarder && len(m.Rows[i].Rounds) > 0 {
			return &m.Rows[i]
		}
	}
	return nil
}

// metric finds a figure; nil if it was not measured.
func (r *Report) metric(work, name string) *MetricReport {
	for i := range r.Works {
		for j := range r.Works[i].Metrics {
			if r.Works[i].Name == work && r.Works[i].Metrics[j].Name == name {
				return &r.Works[i].Metrics[j]
			}
		}
	}
	return nil
}

// Failures are the forwarders that failed at a work, with the reason.
func (r *Report) Failures() (out []string) {
	for _, w := range r.Works {
		for _, row := range w.Metrics[0].Rows {
			if row.Failed != "" {
				out = append(out, row.Forwarder+", "+w.Name+": "+row.Failed)
			}
		}
	}
	return out
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// ReadReport reads what WriteJSON has written to a file.
func ReadReport(name string) (*Report, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("earlier report: %w", err)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("earlier report %s: %w", name, err)
	}
	return &r, nil
}

package peers

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// format is a figure with three significant digits, or all before the point.
func format(v float64) string {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	digits := max(2-int(math.Floor(math.Log10(math.Abs(v)))), 0)
	s := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// cell is a forwarder's figure in the table: median, how far the rounds lie
// apart, ratio to l4fwd.
func (r *Row) cell() string {
	if len(r.Rounds) == 0 {
		return "failed"
	}
	s := format(r.Median)
	if r.Ratio != 0 && r.Forwarder != L4fwd {
		s += fmt.Sprintf(" · %s×", strconv.FormatFloat(r.Ratio, 'f', 2, 64))
	}
	if len(r.Rounds) > 1 {
		s += fmt.Sprintf(" (±%.0f %%)", 50*r.spread())
	}
	if r.Failed != "" {
		s += " failed later"
	}
	return s
}

// WriteText writes the report in Markdown: the figures, the targets, and what
// must be known of them.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	r.writeFigures(&b)
	r.writeTargets(&b)
	r.writeArrangements(&b)
	r.writeTrials(&b)
	r.writeLacks(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) writeFigures(b *strings.Builder) {
	fmt.Fprintf(b, "Medians of %d rounds of %s s, in turn; behind the dot the median of the rounds' ratios to l4fwd,\nin brackets half the distance of the extremes. %s, Linux %s.\n\n",
		r.Rounds, format(r.Seconds), r.Host.CPU, r.Host.Kernel)
	if r.Host.Stolen >= 0.1 {
		fmt.Fprintf(b, "The host of this virtual machine took %s %% of its CPU time for others meanwhile.\n\n", format(r.Host.Stolen))
	}
	b.WriteString("| work |")
	rule := "\n|---|"
	for _, f := range r.Forwarders {
		fmt.Fprintf(b, " %s |", f.Title)
		rule += "---|"
	}
	b.WriteString(rule + "\n")
	for _, work := range r.Works {
		for i := range work.Metrics {
			m := &work.Metrics[i]
			fmt.Fprintf(b, "| %s: %s, %s |", work.Title, m.Name, m.Unit)
			for _, f := range r.Forwarders {
				text := "–"
				for j := range m.Rows {
					if m.Rows[j].Forwarder == f.Name {
						text = m.Rows[j].cell()
					}
				}
				fmt.Fprintf(b, " %s |", text)
			}
			b.WriteString("\n")
		}
	}
}

func (r *Report) writeTargets(b *strings.Builder) {
	b.WriteString("\nThe bare loop is the ceiling that the kernel's copy mode puts on whatever works over AF_XDP here: where\n" +
		"a target is missed and that of the bare loop is met, copy mode is the limit.\n")
	b.WriteString("\n| target | measured | |\n|---|---|---|\n")
	for i := range r.Targets {
		t := &r.Targets[i]
		m := r.metric(t.Work, t.Metric)
		if m == nil {
			continue // nobody asked for the work, or it could not be done, which is said below
		}
		value := format(t.Value)
		if !t.Measured {
			value = "–"
		} else if t.Against != "" {
			value = strconv.FormatFloat(t.Value, 'f', 2, 64) + "×"
		}
		fmt.Fprintf(b, "| %s, %s: %s | %s | %s |\n", t.Work, t.Metric, t.want(m.Unit), value, t.verdict())
	}
}

func (r *Report) writeArrangements(b *strings.Builder) {
	fmt.Fprintf(b, "\nWhere the kernel works (CPU %d: generator, clients, servers; CPU %d: the forwarder):\n\n"+
		"| work | forwarder | packets to it | packets from it |\n|---|---|---|---|\n", r.CPUs.Load, r.CPUs.Forward)
	for _, w := range r.Works {
		for _, row := range w.Metrics[0].Rows {
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", w.Name, row.Forwarder, row.Arrangement.Near, row.Arrangement.Far)
		}
	}
}

// writeTrials shows what each arrangement gave when it was tried.
func (r *Report) writeTrials(b *strings.Builder) {
	if !r.tried() {
		return
	}
	where := ""
	if a := r.Adopted; a != nil {
		where = fmt.Sprintf(" on %s, %s", a.Date.Format(time.DateOnly), a.CPU)
	}
	fmt.Fprintf(b, "\n| work, tried %d times%s | forwarder | packets to it | packets from it | |\n|---|---|---|---|---|\n", passes, where)
	for _, w := range r.Works {
		for i := range w.Metrics {
			m := &w.Metrics[i]
			for _, row := range m.Rows {
				for _, t := range row.Trials {
					outcome := format(t.Value) + " " + m.Unit
					switch {
					case t.Failed != "":
						outcome = "failed: " + t.Failed
					case t.Arrangement == row.Arrangement:
						outcome += " (chosen)"
					}
					fmt.Fprintf(b, "| %s, %s | %s | %s | %s | %s |\n", w.Name, m.Name, row.Forwarder, t.Near, t.Far, outcome)
				}
			}
		}
	}
}

func (r *Report) tried() bool {
	for _, w := range r.Works {
		for _, m := range w.Metrics {
			if slices.ContainsFunc(m.Rows, func(row Row) bool { return len(row.Trials) > 0 }) {
				return true
			}
		}
	}
	return false
}

func (r *Report) writeLacks(b *strings.Builder) {
	for _, f := range r.Failures() {
		fmt.Fprintf(b, "\nFailed: %s\n", f)
	}
	if len(r.Lacks) == 0 {
		return
	}
	b.WriteString("\nNot measured for want of something:\n\n")
	for _, l := range r.Lacks {
		fmt.Fprintf(b, "- %s: %s", l.What, l.Program)
		if l.Package != "" {
			fmt.Fprintf(b, " (Debian: %s)", l.Package)
		}
		b.WriteString("\n")
	}
	if how := Install(r.Lacks); how != "" {
		fmt.Fprintf(b, "\n    %s\n", how)
	}
}

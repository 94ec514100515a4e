package peers

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// Measures of a chart, in pixels.
const (
	chartWidth = 720
	chartTop   = 46 // title and subtitle
	chartRow   = 30
	chartBar   = 18
	chartLeft  = 130 // names
	chartRight = 150 // figures
	chartFoot  = 12
)

// chartStyle is legible on light and on dark pages.
const chartStyle = `text{font:13px system-ui,sans-serif;fill:#1f2328}.t{font-weight:600}.s{font-size:11px;fill:#59636e}` +
	`.o{fill:#1a7f5a}.p{fill:#8c9aa8}.w{stroke:#1f2328;stroke-width:1.2}` +
	`@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.o{fill:#3fb68b}.p{fill:#5d6975}.w{stroke:#e6edf3}}`

// WriteChart draws a figure of all forwarders as an SVG: bars of medians with a
// line from the least to the most.
func (r *Report) WriteChart(w io.Writer, work *WorkReport, m *MetricReport) error {
	var rows []Row
	most := 0.0
	for _, row := range m.Rows {
		if len(row.Rounds) > 0 {
			rows = append(rows, row)
			most = max(most, row.Most)
		}
	}
	height := chartTop + chartRow*len(rows) + chartFoot
	better := "more is better"
	if m.LowerIsBetter {
		better = "less is better"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n", chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n<style>%s</style>\n", escaped(work.Title), chartStyle)
	fmt.Fprintf(&b, `<text class="t" x="0" y="16">%s</text>`+"\n", escaped(work.Title))
	fmt.Fprintf(&b, `<text class="s" x="0" y="34">%s, %s; %s; medians of %d rounds, line: least to most</text>`+"\n", escaped(m.Name), escaped(m.Unit), better, r.Rounds)
	scale := 0.0
	if most > 0 {
		scale = float64(chartWidth-chartLeft-chartRight) / most
	}
	for i := range rows {
		r.drawRow(&b, &rows[i], chartTop+i*chartRow, scale)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// drawRow draws a bar at height y; scale is pixels for a unit.
func (r *Report) drawRow(b *strings.Builder, row *Row, y int, scale float64) {
	class := "p"
	if row.Forwarder == L4fwd {
		class = "o"
	}
	middle := y + chartBar/2
	text := format(row.Median)
	if row.Ratio != 0 && row.Forwarder != L4fwd {
		text += fmt.Sprintf(" (%.2f×)", row.Ratio)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, chartLeft-8, middle+5, escaped(r.title(row.Forwarder)))
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`, class, chartLeft, y, row.Median*scale, chartBar)
	fmt.Fprintf(b, `<line class="w" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`, chartLeft+row.Least*scale, middle, chartLeft+row.Most*scale, middle)
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", chartLeft+max(row.Median, row.Most)*scale+8, middle+5, text)
}

// title is how a forwarder is called in print.
func (r *Report) title(forwarder string) string {
	for _, f := range r.Forwarders {
		if f.Name == forwarder {
			return f.Title
		}
	}
	return forwarder
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

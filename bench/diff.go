package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// DiffSummary counts what Diff found.
type DiffSummary struct {
	Alike     int // packets that are the same to the byte
	Different int // packets with a counterpart that is not the same
	Missing   int // packets of the first capture without a counterpart
	Extra     int // packets of the second capture without one
	Moved     int // packets that come later in one capture than others of another flow
	Times     int // packets at another distance from the capture's first; no difference
	Fields    map[string]int
}

// Same reports whether the captures hold the same packets in the same order.
// Times do not count: they differ between any two captures of a network.
func (s *DiffSummary) Same() bool {
	return s.Different+s.Missing+s.Extra+s.Moved == 0
}

// Diff explains to w, in words, how capture b differs from capture a, packet by
// packet and field by field. No more than limit packets are explained, all are
// counted; limit 0 is no limit.
//
// Packets are compared within their flow, one direction of one tuple. A flow that
// the other capture does not have is compared with one of its leftovers that
// shares all but the port or address of one end, in order of appearance: so
// another local port is told as such. Within a flow a packet missing or too many
// is found by what gives the fewest differences, except in flows too long for
// that (see alignLimit), which are compared in order.
//
// The error is w's.
func Diff(w io.Writer, a, b *Capture, limit int) (DiffSummary, error) {
	d := &differ{
		w: bufio.NewWriter(w), a: newSide(a), b: newSide(b), limit: limit,
		sum: DiffSummary{Fields: map[string]int{}},
	}
	for _, m := range matchFlows(d.a.flows, d.b.flows) {
		d.flow(m)
	}
	d.findings()
	d.order()
	d.summary()
	if err := d.w.Flush(); err != nil {
		return d.sum, fmt.Errorf("diff: %w", err)
	}
	return d.sum, nil
}

// finding is a packet to be explained: its place in a or b, -1 for none, and its
// number within the flow, from 1.
type finding struct {
	a, b   int
	number int
}

// differ is a comparison under way.
type differ struct {
	w     *bufio.Writer // keeps its first error
	a, b  *side
	limit int
	sum   DiffSummary
	found []finding
	pairs []finding // every packet with a counterpart
}

// flow compares two flows, or counts the one there is.
func (d *differ) flow(m flowMatch) {
	var as, bs []int
	if m.a >= 0 {
		as = d.a.flows[m.a].packets
	}
	if m.b >= 0 {
		bs = d.b.flows[m.b].packets
	}
	for _, p := range align(d.a.traits, as, d.b.traits, bs) {
		f := finding{-1, -1, max(p.a, p.b) + 1}
		if p.a >= 0 {
			f.a, f.number = as[p.a], p.a+1
		}
		if p.b >= 0 {
			f.b = bs[p.b]
		}
		switch {
		case f.b < 0:
			d.sum.Missing++
		case f.a < 0:
			d.sum.Extra++
		default:
			d.pairs = append(d.pairs, f)
			if d.a.c.Times[f.a] != d.b.c.Times[f.b] {
				d.sum.Times++
			}
			if bytes.Equal(d.a.c.Frames[f.a], d.b.c.Frames[f.b]) {
				d.sum.Alike++
				continue
			}
			d.sum.Different++
		}
		d.found = append(d.found, f)
	}
}

// findings prints in the order of the captures.
func (d *differ) findings() {
	slices.SortStableFunc(d.found, func(x, y finding) int { return max(x.a, x.b) - max(y.a, y.b) })
	for i, f := range d.found {
		told := d.limit == 0 || i < d.limit
		if told {
			d.head(f)
		}
		if f.a < 0 || f.b < 0 {
			continue
		}
		for _, x := range diffFields(d.a.c.Frames[f.a], d.b.c.Frames[f.b]) {
			d.sum.Fields[x.name]++
			if told {
				d.printf("    %s: %s in %s, %s in %s\n", x.name, orNone(x.a), d.a.c.Name, orNone(x.b), d.b.c.Name)
			}
		}
	}
	if rest := len(d.found) - d.limit; d.limit > 0 && rest > 0 {
		d.printf("... and %d more\n", rest)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// head says which packet it is about.
func (d *differ) head(f finding) {
	switch {
	case f.b < 0:
		d.printf("%s, packet %d: only in %s (packet %d)\n", d.a.name(f.a), f.number, d.a.c.Name, f.a+1)
	case f.a < 0:
		d.printf("%s, packet %d: only in %s (packet %d)\n", d.b.name(f.b), f.number, d.b.c.Name, f.b+1)
	default:
		d.printf("%s, packet %d (packet %d of %s, %d of %s):\n", d.a.name(f.a), f.number, f.a+1, d.a.c.Name, f.b+1, d.b.c.Name)
	}
}

// order looks for packets that others have overtaken.
func (d *differ) order() {
	slices.SortFunc(d.pairs, func(x, y finding) int { return x.a - y.a })
	last := finding{-1, -1, 0}
	for _, p := range d.pairs {
		if p.b > last.b {
			last = p
			continue
		}
		if d.sum.Moved == 0 {
			d.printf("another order: packet %d of %s (%s) is packet %d of %s, before packet %d, which comes earlier in %s\n",
				p.a+1, d.a.c.Name, d.a.name(p.a), p.b+1, d.b.c.Name, last.b+1, d.a.c.Name)
		}
		d.sum.Moved++
	}
}

func (d *differ) summary() {
	s := &d.sum
	d.printf("%s has %s, %s has %s: ", d.a.c.Name, packets(len(d.a.c.Frames)), d.b.c.Name, packets(len(d.b.c.Frames)))
	if s.Same() {
		d.printf("all the same\n")
	} else {
		d.printf("%d the same, %d different, %d only in %s, %d only in %s, %d in another order\n",
			s.Alike, s.Different, s.Missing, d.a.c.Name, s.Extra, d.b.c.Name, s.Moved)
	}
	names := make([]string, 0, len(s.Fields))
	for name := range s.Fields {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		if n := s.Fields[y] - s.Fields[x]; n != 0 {
			return n
		}
		return strings.Compare(x, y)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, s.Fields[name])
	}
	if len(names) > 0 {
		d.printf("fields that differ: %s\n", strings.Join(names, ", "))
	}
	if s.Times > 0 {
		d.printf("times, which do not count, differ in %s\n", packets(s.Times))
	}
}

func packets(n int) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

// printf leaves errors to the Flush at the end.
func (d *differ) printf(format string, args ...any) { _, _ = fmt.Fprintf(d.w, format, args...) }

package metrics

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/l4fwd/l4fwd/dataplane"
)

// kind is a metric's type.
type kind string

const (
	counter   kind = "counter"
	gauge     kind = "gauge"
	histogram kind = "histogram"
)

// family is all series of one name.
type family struct {
	name   string
	kind   kind
	help   string
	labels []string
	emit   func(*writer, *Sample)
}

// writer writes families as text. It remembers its first error and writes no more.
type writer struct {
	out  *bufio.Writer
	f    *family
	line []byte // scratch
	err  error
}

func newWriter(w io.Writer) *writer { return &writer{out: bufio.NewWriterSize(w, chunk)} }

// page writes families.
func (w *writer) page(families []family, s *Sample) error {
	for i := range families {
		w.f = &families[i]
		w.line = append(w.line[:0], "# HELP "...)
		w.line = append(append(w.line, w.f.name...), ' ')
		w.line = append(append(w.line, w.f.help...), "\n# TYPE "...)
		w.line = append(append(w.line, w.f.name...), ' ')
		w.line = append(append(w.line, w.f.kind...), '\n')
		w.flushLine()
		if w.f.emit(w, s); w.err != nil {
			return w.err
		}
	}
	return w.out.Flush()
}

func (w *writer) flushLine() {
	if w.err == nil {
		_, w.err = w.out.Write(w.line)
	}
}

// count writes a series of a whole number, values in the order of the family's labels.
func (w *writer) count(v uint64, values ...string) {
	w.start("", values)
	w.close(values)
	w.line = append(strconv.AppendUint(w.line, v, 10), '\n')
	w.flushLine()
}

// number is count for any number.
func (w *writer) number(v float64, values ...string) {
	w.start("", values)
	w.close(values)
	w.line = append(appendFloat(w.line, v), '\n')
	w.flushLine()
}

// times writes the series of a histogram.
func (w *writer) times(t *dataplane.Times, values ...string) {
	n := uint64(0)
	for i, in := range t.Buckets {
		n += in
		bound, ok := dataplane.TimeBound(i)
		le := math.Inf(1)
		if ok {
			le = bound.Seconds()
		}
		w.start("_bucket", values)
		w.line = appendFloat(append(w.line, `le="`...), le)
		w.line = append(w.line, `"} `...)
		w.line = append(strconv.AppendUint(w.line, n, 10), '\n')
		w.flushLine()
	}
	w.start("_sum", values)
	w.close(values)
	w.line = append(appendFloat(w.line, float64(t.Micros)/1e6), '\n')
	w.flushLine()
	w.start("_count", values)
	w.close(values)
	w.line = append(strconv.AppendUint(w.line, n, 10), '\n')
	w.flushLine()
}

// start begins a series with name and labels, after which another label may follow.
func (w *writer) start(suffix string, values []string) {
	w.line = append(append(w.line[:0], w.f.name...), suffix...)
	if len(values) > 0 || suffix == "_bucket" {
		w.line = append(w.line, '{')
	}
	for i, v := range values {
		w.line = append(append(w.line, w.f.labels[i]...), `="`...)
		w.line = append(appendEscaped(w.line, v), `",`...)
	}
}

// close ends the labels.
func (w *writer) close(values []string) {
	if len(values) > 0 {
		w.line[len(w.line)-1] = '}' // in place of the comma
	}
	w.line = append(w.line, ' ')
}

// appendEscaped escapes what the format wants escaped in a label's value.
func appendEscaped(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\"\\\n") {
		return append(b, s...)
	}
	for _, c := range []byte(s) {
		switch c {
		case '\n':
			b = append(b, `\n`...)
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return b
}

func appendFloat(b []byte, v float64) []byte {
	if math.IsInf(v, 1) {
		return append(b, "+Inf"...)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

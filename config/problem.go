package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong, or doubtful, with a configuration.
type Problem struct {
	// File as it was named to Parse, or the flag where the value came from one.
	File string
	// Line and Column count from 1; 0 where there is none.
	Line, Column int
	// Path of the field, such as services[0].backends[1].address. Empty where the
	// problem is that of the whole file.
	Path string
	// Message says what is wrong and what was expected.
	Message string
}

// String returns file:line:column: path: message, without the parts that there
// are none of.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Errors is everything that is wrong with a configuration, in the order of the
// file. Parse never returns an empty one.
type Errors []Problem

// Error returns one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// position is where a field's value stands: in the file, in a flag, or in a document.
type position struct {
	line, column int
	flag         string
	doc          *docPosition // nil unless in a document
}

// docPosition is which document, and the path of the service or backend that it is.
type docPosition struct{ source, path string }

// Problem returns a problem with a field of c, placed where the field's value
// stands, or the nearest field around it where the file does not have it. It
// lets other packages report what only they can find out.
func (c *Config) Problem(path, format string, args ...any) Problem {
	p := Problem{File: c.file, Path: path, Message: fmt.Sprintf(format, args...)}
	for around := path; ; around = around[:max(0, strings.LastIndexAny(around, ".["))] {
		if at, ok := c.position(around); ok {
			if at.flag != "" {
				p.File, p.Path = at.flag, ""
			}
			if at.doc != nil {
				p.File, p.Path = at.doc.source, strings.TrimPrefix(strings.TrimPrefix(path, at.doc.path), ".")
			}
			p.Line, p.Column = at.line, at.column
			return p
		}
		if around == "" {
			return p
		}
	}
}

// expected returns the error of a value that is not what it should be; hint
// may be empty.
func expected(want, got, hint string) error {
	if hint != "" {
		hint = "; " + hint
	}
	return errors.New("expected " + want + ", got " + shorten(got) + hint)
}

// shorten quotes a value for a message.
func shorten(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// didYouMean returns a question about the known word that got was probably
// meant to be, or nothing.
func didYouMean(got string, known []string) string {
	if len(got) > 40 {
		return ""
	}
	best, bestDistance := "", 1+min(2, len(got)/3)
	folded := fold(got)
	for _, k := range known {
		word := fold(k)
		d := distance(folded, word)
		if len(k) > 3 && strings.HasPrefix(folded, word) {
			d = 1 // warning for warn
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %s?", best)
}

// fold takes away what people confuse most: case, hyphens, underscores, spaces.
func fold(s string) string {
	return unhyphened.Replace(strings.ToLower(s))
}

var unhyphened = strings.NewReplacer("-", "", "_", "", " ", "")

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, prev, row = prev, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(prev[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

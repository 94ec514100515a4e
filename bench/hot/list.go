package hot

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Finding is something in a hot file, at so many places with the same text: a
// line's number changes too easily.
type Finding struct {
	File   string // from the module's root
	What   string // a kind of bounds check, or what is called
	Source string // the line, without the space around it
	Count  int
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.File, f.What, f.Source) }

// New is what is has beyond was.
func New(was, is []Finding) (out []Finding) {
	known := map[Finding]int{}
	for _, f := range was {
		n := f.Count
		f.Count = 0
		known[f] = n
	}
	for _, f := range is {
		key := f
		key.Count = 0
		if f.Count -= known[key]; f.Count > 0 {
			out = append(out, f)
		}
	}
	return out
}

// Write writes a list, a finding a line: file, what, how often, source, with tabs
// between.
func Write(w io.Writer, list []Finding) error {
	for _, f := range list {
		if _, err := fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", f.File, f.What, f.Count, f.Source); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote. The error names the line.
func Read(r io.Reader) (list []Finding, err error) {
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		cell := strings.SplitN(in.Text(), "\t", 4)
		if len(cell) != 4 {
			return nil, fmt.Errorf("line %d: %d fields, want 4", n, len(cell))
		}
		f := Finding{File: cell[0], What: cell[1], Source: cell[3]}
		if f.Count, err = strconv.Atoi(cell[2]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, f)
	}
	return list, in.Err()
}

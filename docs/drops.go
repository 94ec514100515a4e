package docs

import (
	_ "embed" // drops.md
	"strings"
)

//go:embed drops.md
var dropsPage string

// Drop is what drops.md says of a reason for which packets are dropped, or another
// outcome.
type Drop struct {
	Reason string // as in the statistics
	Means  string
	Cause  string // what it is likely to come from, "" where the page has none
	Do     string // what to do about it; "" of an outcome that is no drop
}

// Drops are the rows of drops.md in its order.
func Drops() []Drop {
	var out []Drop
	about := "" // the paragraph before the table
	for line := range strings.SplitSeq(dropsPage, "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		switch {
		case strings.HasPrefix(line, "#"):
			about = ""
		case !strings.HasPrefix(line, "|"):
			if line != "" {
				about = plainText(line)
			}
		case strings.HasPrefix(cells[0], "`") && len(cells) > 1:
			d := Drop{Reason: plainText(cells[0]), Means: plainText(cells[1]), Do: about}
			if len(cells) == 4 {
				d.Cause, d.Do = plainText(cells[2]), plainText(cells[3])
			}
			out = append(out, d)
		}
	}
	return out
}

// plainText is Markdown without its marks: code as it is, of links what they are called.
func plainText(s string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "](")
		if !found {
			break
		}
		open := strings.LastIndexByte(before, '[')
		_, after, closed := strings.Cut(rest, ")")
		if open < 0 || !closed {
			break
		}
		b.WriteString(before[:open] + before[open+1:])
		s = after
	}
	b.WriteString(s)
	return strings.NewReplacer("`", "", "**", "", `\|`, "|").Replace(b.String())
}

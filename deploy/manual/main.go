package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err == nil {
		_, err = os.Stdout.WriteString(page(string(text)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

const (
	title = "% L4FWD.YAML 5 \"\" l4fwd\n\n# NAME\n\nl4fwd.yaml - configuration of l4fwd\n\n# DESCRIPTION\n"
	head  = "# Configuration\n" // of the page in docs
)

var (
	ruler  = regexp.MustCompile(`^\|(?:\s*:?-+:?\s*\|)+$`)
	within = regexp.MustCompile(`\[([^\]]*)\]\(#[^)]*\)`) // a link to the same page
)

// page is the manual page.
func page(text string) string {
	lines := strings.SplitAfter(within.ReplaceAllString(title+strings.TrimPrefix(text, head), "$1"), "\n")
	var out strings.Builder
	code := false
	for i := 0; i < len(lines); i++ {
		if strings.HasPrefix(lines[i], "```") {
			code = !code
		}
		if code || i+1 == len(lines) || !strings.HasPrefix(lines[i], "|") || !ruler.MatchString(strings.TrimSpace(lines[i+1])) {
			out.WriteString(lines[i])
			continue
		}
		heads := cells(lines[i])
		for i += 2; i < len(lines) && strings.HasPrefix(lines[i], "|"); i++ {
			row := cells(lines[i])
			fmt.Fprintf(&out, "%s\n: %s\n\n", row[0], meaning(heads, row))
		}
		i--
	}
	return out.String()
}

// cells are those of a line of a table.
func cells(line string) []string {
	const bar = "\x00" // one that is text
	line = strings.ReplaceAll(strings.TrimSpace(line), `\|`, bar)
	out := strings.Split(strings.Trim(line, "|"), "|")
	for i := range out {
		out[i] = strings.ReplaceAll(strings.TrimSpace(out[i]), bar, "|")
	}
	return out
}

// meaning is what a row says of its first cell.
func meaning(heads, row []string) string {
	switch {
	case len(row) == 2:
		return row[1]
	case heads[0] == "key" && len(row) == 4 && row[2] == "required":
		return fmt.Sprintf("%s; required. %s", row[1], row[3])
	case heads[0] == "key" && len(row) == 4:
		return fmt.Sprintf("%s; default: %s. %s", row[1], row[2], row[3])
	}
	var parts []string
	for i := 1; i < len(row); i++ {
		parts = append(parts, fmt.Sprintf("*%s*: %s.", heads[i], strings.TrimSuffix(row[i], ".")))
	}
	return strings.Join(parts, " ")
}

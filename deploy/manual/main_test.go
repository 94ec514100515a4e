package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPage(t *testing.T) {
	const text = head + "\nSee [below](#keys) and [etcd](discovery.md).\n\n## Keys\n\n" +
		"| key | type | default | meaning and limits |\n|---|---|---|---|\n" +
		"| `mode` | `a`, `b` | required | One of [two](#two). |\n| `port` | 1–9 | `7` | `x \\| y` |\n\n" +
		"```\n| no | table |\n|---|---|\n```\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n" +
		"\n| name | does | costs |\n|---|---|---|\n| rr | turns. | 0 |\n"
	const want = title + "\nSee below and [etcd](discovery.md).\n\n## Keys\n\n" +
		"`mode`\n: `a`, `b`; required. One of two.\n\n`port`\n: 1–9; default: `7`. `x | y`\n\n\n" +
		"```\n| no | table |\n|---|---|\n```\n\n1\n: 2\n\n\nrr\n: *does*: turns. *costs*: 0.\n\n"
	if diff := cmp.Diff(want, page(text)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestConfigurationPage: the manual page has every key with its own paragraph, and no
// table.
func TestConfigurationPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "github.com/cpuguy83/go-md2man/v2")
	cmd.Stdin = strings.NewReader(page(string(text)))
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	roff, err := cmd.Output()
	if err != nil {
		t.Fatal(err, wrong.String())
	}
	if bytes.Contains(roff, []byte("\n.TS")) {
		t.Error("there is a table")
	}
	var want, got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)` \\|.*\\|.*\\|.*\\|$").FindAllSubmatch(text, -1) {
		want = append(want, string(m[1]))
	}
	for _, m := range regexp.MustCompile(`(?m)^\.TP\n\\fB([a-z0-9_.]+)\\fR$`).FindAllSubmatch(roff, -1) {
		got = append(got, string(m[1]))
	}
	missing := slices.DeleteFunc(slices.Clone(want), func(k string) bool { return slices.Contains(got, k) })
	if len(want) < 100 || len(missing) > 0 {
		t.Errorf("%d keys, not in the manual page: %v", len(want), missing)
	}
}

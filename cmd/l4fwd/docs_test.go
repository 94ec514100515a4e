package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// snippet is a command line that a page shows.
type snippet struct {
	page string
	line int
	args []string // without l4fwd itself
	// whole is one in a block, to be typed as it is; else it stands in a sentence
	// and may lack what the sentence is not about.
	whole bool
}

func (s snippet) String() string {
	return fmt.Sprintf("%s:%d: l4fwd %s", s.page, s.line, strings.Join(s.args, " "))
}

var (
	fence  = regexp.MustCompile("^```([a-z]*)")
	prompt = regexp.MustCompile(`^[$#] `)
	typed  = regexp.MustCompile(`^(?:ExecStart=\S*/|bin/|go run \./cmd/)?l4fwd +([a-z-].*)`)
	inline = regexp.MustCompile("`(?:bin/)?l4fwd ([a-z-][^`]*)`")
	remark = regexp.MustCompile(` +#.*| *[|>&;].*`)
	making = regexp.MustCompile("(?m)[`^]make ([a-z-]+)")
)

// placeholders are what stands for something that a reader has.
var placeholders = map[string]string{"FILE": "l4fwd.yaml", "N": "1000", "MODE": "full-nat"}

// pages are the documents by their path in the repository.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/*/*.md"} {
		names, err := filepath.Glob("../../" + pattern)
		if err != nil || len(names) == 0 {
			t.Fatal(pattern, err)
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(n, "../../")] = string(b)
		}
	}
	return out
}

// snippets are all of a page's.
func snippets(page, text string) (all []snippet) {
	block, yaml := false, false
	for i, line := range strings.Split(text, "\n") {
		if m := fence.FindStringSubmatch(line); m != nil {
			block, yaml = !block, m[1] == "yaml"
			continue
		}
		if yaml && block {
			continue
		}
		if !block {
			for _, m := range inline.FindAllStringSubmatch(line, -1) {
				all = append(all, snippet{page: page, line: i + 1, args: words(m[1])})
			}
			continue
		}
		if m := typed.FindStringSubmatch(prompt.ReplaceAllString(line, "")); m != nil {
			all = append(all, snippet{page: page, line: i + 1, args: words(m[1]), whole: true})
		}
	}
	return all
}

// words are those of a command line, whose quotes hold words together and nothing else.
func words(line string) (out []string) {
	for i, part := range strings.Split(line, "'") {
		if i%2 > 0 {
			out = append(out, part)
			continue
		}
		part, rest := remark.ReplaceAllString(part, ""), part
		for _, w := range strings.Fields(part) {
			if p, ok := placeholders[w]; ok {
				w = p
			}
			out = append(out, w)
		}
		if part != rest {
			break
		}
	}
	return out
}

// TestShownCommands: every command line in the documents is one that the program
// takes, and every flag one of its command's.
func TestShownCommands(t *testing.T) {
	whole := 0
	for page, text := range pages(t) {
		for _, s := range snippets(page, text) {
			cmd, rest, err := root().Find(s.args)
			if err != nil {
				t.Errorf("%s: %v", s, err)
				continue
			}
			if !s.whole {
				for _, w := range rest {
					name, _, _ := strings.Cut(strings.TrimPrefix(w, "--"), "=")
					if strings.HasPrefix(w, "--") && name != "help" && cmd.Flags().Lookup(name) == nil {
						t.Errorf("%s: there is no --%s", s, name)
					}
				}
				continue
			}
			whole++
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: %v", s, err)
				continue
			}
			for _, err := range []error{cmd.ValidateArgs(cmd.Flags().Args()), cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()} {
				if err != nil {
					t.Errorf("%s: %v", s, err)
				}
			}
		}
	}
	if whole < 20 {
		t.Errorf("only %d command lines found", whole)
	}
}

// bring copies a file and puts more at its end.
func bring(from, to, more string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, append(b, more...), 0o644)
}

// TestShownTargets: every make target in the documents is one.
func TestShownTargets(t *testing.T) {
	b, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for page, text := range pages(t) {
		for _, m := range making.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile("(?m)^" + m[1] + ":").Match(b) {
				t.Errorf("%s: there is no make %s", page, m[1])
			}
		}
	}
}

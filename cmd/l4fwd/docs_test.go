package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// snippet is a command line that a page shows.
type snippet struct {
	page string
	line int
	args []string // without l4fwd itself
	// whole is one in a block, to be typed as it is; else it stands in a sentence
	// and may lack what the sentence is not about.
	whole  bool
	output string // what the page shows beneath it
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
	block, yaml, answered := false, false, false // answered: beneath a command with a prompt
	for i, line := range strings.Split(text, "\n") {
		if m := fence.FindStringSubmatch(line); m != nil {
			block, yaml, answered = !block, m[1] == "yaml", false
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
		asks := prompt.MatchString(line)
		m := typed.FindStringSubmatch(prompt.ReplaceAllString(line, ""))
		switch {
		case m != nil:
			all = append(all, snippet{page: page, line: i + 1, args: words(m[1]), whole: true})
			answered = asks
		case answered && !asks:
			all[len(all)-1].output += line + "\n"
		default:
			answered = false
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

// quick are the commands that need neither root nor a NIC, and what makes their work
// small.
var quick = map[string]string{
	"check": "", "version": "",
	"bench matrix": "--flows 100 --packets 1000 --rounds 1",
	"bench replay": "--flows 100 --packets 1000 --rounds 3",
	"bench lives":  "--lives 1000 --kept 1000 --rounds 1",
	"bench flood":  "--live 100 --rate 100000 --duration 100ms",
	"bench limit":  "--flows 100 --packets 1000 --rounds 1",
}

// script is a page as a testscript: its commands, as far as they are quick, beside its
// first configuration, or that of the README.
func script(page, text, readme string) string {
	var b strings.Builder
	expected := map[string]string{}
	for _, s := range snippets(page, text) {
		cmd, _, err := root().Find(s.args)
		if err != nil || !s.whole {
			continue
		}
		smaller, ok := quick[strings.TrimPrefix(cmd.CommandPath(), "l4fwd ")]
		if !ok {
			continue
		}
		line := "l4fwd '" + strings.Join(s.args, "' '") + "' " + smaller
		if fmt.Fprintf(&b, "# line %d\n", s.line); s.output == "" {
			fmt.Fprintf(&b, "exec %s\n", line)
			continue
		}
		name := fmt.Sprintf("line-%d", s.line)
		expected[name] = s.output
		fmt.Fprintf(&b, "exec sh -c '%s 2>&1 || true'\ncmp stdout %s\n", strings.ReplaceAll(line, "'", "\""), name)
	}
	if b.Len() == 0 {
		return ""
	}
	_, example, ok := strings.Cut(text, "```yaml\n")
	if !ok {
		_, example, _ = strings.Cut(readme, "```yaml\n")
	}
	expected["l4fwd.yaml"], _, _ = strings.Cut(example, "```")
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		fmt.Fprintf(&b, "-- %s --\n%s", name, expected[name])
	}
	return b.String()
}

// TestShownCommandsRun runs what a page shows beside the page's own configuration,
// with less work, and compares the output where the page shows some.
func TestShownCommandsRun(t *testing.T) {
	dir := t.TempDir()
	var scripts []string
	all := pages(t)
	for page, text := range all {
		if s := script(page, text, all["README.md"]); s != "" {
			name := filepath.Join(dir, strings.ReplaceAll(page, "/", "-")+".txtar")
			if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
				t.Fatal(err)
			}
			scripts = append(scripts, name)
		}
	}
	testscript.Run(t, testscript.Params{
		Files:               scripts,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			matrix := filepath.Join(e.WorkDir, "bench/testdata/matrix.yaml")
			return errors.Join(
				os.MkdirAll(filepath.Dir(matrix), 0o755),
				bring("../../bench/testdata/matrix.yaml", matrix, "max_flows: 65536\n"), // a small table is soon made
				// Of which a page shows the errors.
				bring("testdata/docs/bad.yaml", filepath.Join(e.WorkDir, "bad.yaml"), ""),
			)
		},
	})
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

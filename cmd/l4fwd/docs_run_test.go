package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// shown is a command that a page shows in a block of its own.
type shown struct {
	page   string
	line   int
	block  int    // of the page
	server bool   // it is for a real server
	text   string // with what continues it
	output string // what the page shows beneath it
}

func (c shown) String() string { return fmt.Sprintf("%s:%d: %s", c.page, c.line, c.text) }

// languages are what blocks may be marked with, so that no command hides in a block
// that nobody runs. sh and console are run, "sh server" on a real server; a console
// has a prompt before its commands, and beneath them what they print.
var languages = map[string]bool{
	"sh": true, "sh server": true, "console": true, "console server": true,
	"text": false, "yaml": false, "yaml fragment": false, "json": false, "go": false,
	"yml": false, "python": false, "ini": false, "promql": false,
}

// hides is a command where nobody runs any.
var hides = regexp.MustCompile(`^[$#]? ?(l4fwd|bin/l4fwd|make|go|ip|sysctl|ethtool|curl|etcdctl|systemctl|apt|podman|tcpdump) [a-z-]`)

// commands are a page's, in its order, and the first words of blocks that are marked
// with none of the languages.
func commands(page, text string) (all []shown, unknown []string) {
	var kind string
	block, inside, goesOn := 0, false, false
	for i, line := range strings.Split(text, "\n") {
		if mark, ok := strings.CutPrefix(line, "```"); ok {
			if inside = !inside; inside {
				block++
				if kind = mark; !slices.Contains(keys(languages), kind) {
					unknown = append(unknown, fmt.Sprintf("%s:%d: a block of %q, want one of %q", page, i+1, kind, keys(languages)))
				}
			}
			goesOn = false
			continue
		}
		if inside && kind == "text" && hides.MatchString(line) {
			unknown = append(unknown, fmt.Sprintf("%s:%d: a command in a block of text: %s", page, i+1, line))
		}
		if !inside || !languages[kind] {
			continue
		}
		console := strings.HasPrefix(kind, "console")
		switch command := prompt.ReplaceAllString(line, ""); {
		case goesOn:
			all[len(all)-1].text += "\n" + line
		case console && command == line:
			if len(all) == 0 {
				unknown = append(unknown, fmt.Sprintf("%s:%d: output of no command", page, i+1))
				continue
			}
			all[len(all)-1].output += line + "\n"
			continue
		case line == "":
			continue
		default:
			all = append(all, shown{page: page, line: i + 1, block: block, server: strings.HasSuffix(kind, " server"), text: command})
		}
		typed, _, _ := strings.Cut(all[len(all)-1].text, " #")
		goesOn = strings.HasSuffix(line, `\`) || strings.Count(typed, "'")%2 > 0
	}
	return all, unknown
}

func keys(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }

// notRun are the commands that no test can run here, by how they begin, and why.
var notRun = map[string]string{
	"make test":                        "this test is part of it",
	"make build":                       "go build, which tests do all the time",
	"make deb":                         "deploy's TestDeb makes the package and unpacks it",
	"make install":                     "it changes the machine",
	"apt install":                      "it changes the machine; deploy's TestDeb unpacks the package",
	"systemctl":                        "systemd is not the first process here; deploy's tests look at the unit",
	"podman":                           "there is no container engine here, as the page says",
	"ip link add link eth1 name eth1.": noVLANs,
	"ip addr add 198.51.100.1/24 dev eth1.10": noVLANs,
	"ip addr add 10.0.1.1/24 dev eth1.20":     noVLANs,
	"ip link set eth1.10":                     noVLANs,
	"ip link set tunl0":                       noTunnels,
	"ip link set ip6tnl0":                     noTunnels,
	"ip link set gre0":                        noTunnels,
	"ip fou add":                              noTunnels,
	"sysctl -w net.ipv4.conf.tunl0":           noTunnels,
	"perf":                                    "a profile of the whole machine, beside a measurement that takes all of it",
	"go build -pgo":                           "everything is compiled anew: minutes",
	"go test -run '^$' -bench":                "a long measurement; TestShownTests looks whether there is such a benchmark",
}

const (
	noVLANs   = "the kernels of our tests have no 802.1Q, as the page says"
	noTunnels = "the kernels of our tests have no such module, as the page says"
)

// excuse is why a command is not run; "" if it is.
func (c shown) excuse() string {
	for begin, why := range notRun {
		if strings.HasPrefix(c.text, begin) {
			return why
		}
	}
	return ""
}

// instead is what is run in place of what a page shows.
var instead = strings.NewReplacer(
	"--pcap FILE", "--pcap packets.pcap", "FILE", "l4fwd.yaml", "--rate N", "--rate 100000", // what a reader has to fill in
	"go run ./cmd/l4fwd", "l4fwd", // the same program, built before
	"--cpus 2,4-5", "--cpus 0", // the machine may have no others
	"--seconds 30", "--seconds 1", "--seconds 5", "--seconds 1",
	"--duration 30s", "--duration 3s", "--duration 1m ", "--duration 3s ", // traffic may be slow
	"/usr/share/doc/l4fwd/examples", "deploy/examples", // what the package would have put there
	"/etc/l4fwd/", "etc/l4fwd/", // the machine's own stays as it is
)

// A treatment is what some commands need, or must be spared.
type treatment struct {
	more string // flags that make its work small: they beat those before them
	// holds is for commands that stay: what one says when it is at work. It is ended by
	// Ctrl-C once it has said so, at the end of its block or, with passes, as soon as
	// some packets have passed.
	holds  string
	passes bool
	status int               // that it ends with
	before func(*site) error // what the page has happen first
	exact  bool              // its output is the same to the letter
	never  string            // what its output must not have
}

// nothing is what a capture says that has missed the packets it is about.
const nothing = "\n0 frames captured"

// treatments are by how the command begins; the longest counts.
var treatments = map[string]treatment{
	"go run ./cmd/l4fwd demo":                {more: "--duration 500ms --requests 20"},
	"bin/l4fwd demo":                         {more: "--duration 500ms --requests 20"},
	"l4fwd run":                              {holds: "ready"},
	"bin/l4fwd run":                          {holds: "ready"},
	"l4fwd rs toa":                           {holds: "ready"},
	"l4fwd rs uoa":                           {holds: "ready"},
	"l4fwd rs decap":                         {holds: "ready"},
	"l4fwd rs status":                        {before: (*site).believe},
	"l4fwd capture":                          {holds: "capturing", passes: true, never: nothing},
	"l4fwd capture --service web --point rx": {never: nothing}, // it ends by itself
	"l4fwd capture --backend 10.0.1.20:8080 --dur": {never: nothing},
	"l4fwd capture --reason no_flow --duration":    {never: nothing},
	"l4fwd check -c bad.yaml":                      {status: exitUsage, exact: true},
	"l4fwd cleanup":                                {before: (*site).crash, exact: true},
	"l4fwd backends --server":                      {before: (*site).reload}, // the token has been made since the start
	"curl":                                         {before: (*site).start},
	"printf 'Authorization":                        {before: (*site).start},
	"l4fwd health":                                 {before: (*site).flap},
	"etcdctl":                                      {before: (*site).start},
	"l4fwd backends web":                           {before: (*site).find},
	"tcpdump":                                      {before: (*site).start},
	"l4fwd bench matrix":                           {more: "--flows 100 --packets 1000 --rounds 1"},
	"l4fwd bench replay":                           {more: "--flows 100 --packets 1000 --rounds 3"},
	"l4fwd bench lives":                            {more: "--lives 1000 --kept 1000 --rounds 1"},
	"l4fwd bench flood":                            {more: "--live 100 --rate 100000 --duration 100ms"},
}

func (c shown) treatment() (how treatment) {
	longest := ""
	for begin, t := range treatments {
		if strings.HasPrefix(c.text, begin) && len(begin) > len(longest) {
			longest, how = begin, t
		}
	}
	return how
}

// asksDaemon reports whether the command is one to the running daemon.
func (c shown) asksDaemon() bool {
	line, ok := strings.CutPrefix(c.text, "l4fwd ")
	if !ok {
		return false
	}
	cmd, _, err := root().Find(strings.Fields(line))
	return err == nil && cmd.Flags().Lookup("socket") != nil
}

// figure is a word that is another each time: it has a digit, or is four digits of a
// hexadecimal number, in tcpdump's name for an experiment's option too.
var figure = regexp.MustCompile(`^(\S*[0-9]\S*|[0-9a-f]{4}|\[exp-[0-9a-f]{4}\],)$`)

// shapeOf is what stays of lines if figures, addresses and the width of columns do not
// count.
func shapeOf(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i, f := range fields {
			fields[i] = figure.ReplaceAllString(f, "#")
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	return strings.Join(lines, "\n")
}

// missing is the first line of those a page shows, in their order, whose shape is not
// that of the beginning of one of the output's. A line of dots stands for any number.
func missing(want, got string) string {
	lines := strings.Split(shapeOf(got), "\n")
	for line := range strings.Lines(want) {
		shape := shapeOf(line)
		if shape == "..." || shape == "" || strings.Contains(line, "│") || strings.Contains(line, "└") { // dots, and what explains
			continue
		}
		at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, shape) })
		if at < 0 {
			return line
		}
		lines = lines[at+1:]
	}
	return ""
}

// TestShownCommandsRun runs what the blocks of the documents show, page by page, on a
// network that has the names and addresses of the documents, beside the page's own
// configuration or else the README's.
func TestShownCommandsRun(t *testing.T) {
	binary, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	all := pages(t)
	_, readme, _ := strings.Cut(all["README.md"], "```yaml\n")
	for page, text := range all {
		cmds, _ := commands(page, text)
		cmds = slices.DeleteFunc(cmds, func(c shown) bool { return c.excuse() != "" })
		if len(cmds) == 0 {
			continue
		}
		t.Run(strings.ReplaceAll(page, "/", "-"), func(t *testing.T) {
			t.Parallel()
			_, config, ok := strings.Cut(text, "```yaml\n")
			if !ok {
				config = readme
			}
			config, _, _ = strings.Cut(config, "```")
			s := newSite(t, binary, config+fragments(config, text))
			s.follow(t, cmds)
			if _, statistics, ok := strings.Cut(text, "\n## Statistics\n"); ok {
				_, example, _ := strings.Cut(statistics, "```json\n")
				s.hasKeys(t, page, example)
			}
			noError(t, s.stop(interrupt))
		})
	}
}

var topLevel = regexp.MustCompile(`(?m)^\w+:`)

// fragments are those of a page whose keys the configuration, or one before, has not.
func fragments(config, page string) (added string) {
	for _, part := range strings.Split(page, "```yaml fragment\n")[1:] {
		part, _, _ = strings.Cut(part, "```")
		if !slices.ContainsFunc(topLevel.FindAllString(part, -1), func(key string) bool {
			return strings.Contains("\n"+config+added, "\n"+key)
		}) {
			added += part
		}
	}
	return added
}

// follow runs a page's commands in their order.
func (s *site) follow(t *testing.T, cmds []shown) {
	var held []*testbed.Process
	release := func() {
		for _, p := range held {
			if err := interrupt(p); err != nil {
				t.Errorf("ended by Ctrl-C: %v\n%s", err, p.Output())
			}
		}
		held = nil
	}
	defer release()
	for i, c := range cmds {
		if i > 0 && c.block != cmds[i-1].block {
			release()
		}
		how := c.treatment()
		if i > 0 && cmds[i-1].text == c.text {
			how.before = nil // that was for the first time
		}
		p, out, err := s.perform(t.Context(), c, how)
		if p != nil {
			held = append(held, p)
		}
		var status *exec.ExitError
		if errors.As(err, &status) && status.ExitCode() == how.status {
			err = nil
		} else if err == nil && how.status != 0 {
			err = fmt.Errorf("want exit status %d", how.status)
		}
		switch {
		case err != nil:
			t.Errorf("%s\n%v\n%s", c, err, out)
		case how.exact && out != c.output:
			t.Errorf("%s\nprinted\n%s\nand not\n%s", c, out, c.output)
		case how.never != "" && strings.Contains(out, how.never):
			t.Errorf("%s\nprinted\n%s", c, out)
		case missing(c.output, out) != "":
			t.Errorf("%s\nprinted nothing like\n%s\nbut\n%s", c, missing(c.output, out), out)
		}
	}
}

// perform runs one command, to its end unless it is returned as a process.
func (s *site) perform(ctx context.Context, c shown, how treatment) (held *testbed.Process, out string, err error) {
	if how.before != nil {
		err = how.before(s)
	} else if c.asksDaemon() {
		err = s.start()
	}
	if err != nil {
		return nil, "", err
	}
	ns, line := s.lb, instead.Replace(c.text)
	if how.more != "" {
		line, _, _ = strings.Cut(line, " #")
		line += " " + how.more
	}
	if c.server {
		ns = s.servers[0]
	}
	if how.holds == "" {
		out, err = s.does(ns, line)
		return nil, out, err
	}
	if strings.Contains(line, "l4fwd run") {
		if err := s.stop(interrupt); err != nil {
			return nil, "", err
		}
	}
	p, err := s.shell(ctx, ns, line, how.holds)
	if err != nil || !how.passes {
		return p, "", err
	}
	if err := s.pass(ctx); err != nil {
		return p, "", err
	}
	err = interrupt(p)
	return nil, p.Output(), err
}

// believe starts what the page's unit starts.
func (s *site) believe() error {
	b, err := os.ReadFile("../../docs/real-servers.md")
	if err != nil {
		return err
	}
	_, line, ok := strings.Cut(string(b), "ExecStart=/usr/local/bin/")
	if !ok {
		return errors.New("the page has no unit")
	}
	line, _, _ = strings.Cut(line, "\n")
	_, err = s.shell(context.Background(), s.servers[0], "exec "+line, "ready") // until the network is closed
	return err
}

// hasKeys compares the keys of statistics that a page shows with those there are.
func (s *site) hasKeys(t *testing.T, page, example string) {
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	out, err := s.does(s.lb, "l4fwd stats -o json")
	if err != nil || !json.Valid([]byte(out)) {
		t.Fatalf("%v: %s", err, out)
	}
	example, _, _ = strings.Cut(example, "```")
	found := regexp.MustCompile(`"\w+":`).FindAllString(example, -1)
	for _, key := range found {
		if !strings.Contains(out, key) {
			t.Errorf("%s shows %s, which the statistics have not: %s", page, key, out)
		}
	}
	if len(found) < 10 {
		t.Errorf("%s: only %d keys", page, len(found))
	}
}

// TestBlocksAreMarked: each block says what it is, and each entry of the lists above
// is of a command that is shown.
func TestBlocksAreMarked(t *testing.T) {
	var all []string
	for page, text := range pages(t) {
		cmds, unknown := commands(page, text)
		for _, u := range unknown {
			t.Error(u)
		}
		for _, c := range cmds {
			all = append(all, c.text)
		}
	}
	if len(all) < 60 {
		t.Errorf("only %d commands found", len(all))
	}
	shownAt := func(begin string) bool {
		return slices.ContainsFunc(all, func(c string) bool { return strings.HasPrefix(c, begin) })
	}
	for begin := range notRun {
		if !shownAt(begin) {
			t.Errorf("no page shows %q any more, which is not to be run", begin)
		}
	}
	for begin := range treatments {
		if !shownAt(begin) {
			t.Errorf("no page shows %q any more, which has its own treatment", begin)
		}
	}
}

var (
	goTest   = regexp.MustCompile("[^`\\n]*-(?:run|bench) [^`\\n]*")
	selected = regexp.MustCompile(`-(run|bench) '?(\w+)`)
	folder   = regexp.MustCompile(`\./[\w/]+`)
)

// TestShownTests: tests and benchmarks that a page has the reader run exist, in the
// folder that it says.
func TestShownTests(t *testing.T) {
	found := 0
	for page, text := range pages(t) {
		for _, line := range goTest.FindAllString(text, -1) {
			dir := folder.FindString(line)
			for _, m := range selected.FindAllStringSubmatch(line, -1) {
				found++
				name := `func \w*` + m[2]
				if m[1] == "bench" {
					name = `func Benchmark\w*` + m[2]
				}
				if out, err := exec.Command("grep", "-rqE", "--include=*_test.go", name, "../../"+dir).CombinedOutput(); dir == "" || err != nil {
					t.Errorf("%s: %s: no %s in %q: %v %s", page, line, m[2], dir, err, out)
				}
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d found", found)
	}
}

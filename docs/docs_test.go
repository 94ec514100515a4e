package docs

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/rs"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pages are the documents by path, the repository's own ones included.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	names := []string{"../README.md", "../CHANGELOG.md"}
	for _, pattern := range []string{"*.md", "benchmarks/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		names = append(names, found...)
	}
	for _, n := range names {
		out[n] = read(t, n)
	}
	return out
}

// row is the line of a table whose first cell is exactly `name`.
func row(page, name string) string {
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "| `"+name+"` |") {
			return line
		}
	}
	return ""
}

var firstCell = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// rows are the names that have a row of their own.
func rows(page string) (names []string) {
	for _, m := range firstCell.FindAllStringSubmatch(page, -1) {
		names = append(names, m[1])
	}
	return names
}

// Every key that `check --show-defaults` prints has a row, and the row says the
// default where there is one.
func TestKeysDocumented(t *testing.T) {
	var shown bytes.Buffer
	if err := config.ShowDefaults(&shown); err != nil {
		t.Fatal(err)
	}
	var top yaml.MapSlice
	if err := yaml.UnmarshalWithOptions(shown.Bytes(), &top, yaml.UseOrderedMap()); err != nil {
		t.Fatal(err)
	}
	page := read(t, "configuration.md")
	// What has no default stands as an example in the output.
	example := map[string]bool{
		"interfaces": true, "local_addresses": true, "services": true, "services.name": true,
		"services.address": true, "services.protocol": true, "services.mode": true,
		"services.backends": true, "services.toa_kind": true, "services.tcp_checks": true, "services.timeouts": true,
		"services.drain_timeout": true,
	}
	keys := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case yaml.MapSlice:
			for _, item := range v {
				key := strings.TrimPrefix(fmt.Sprintf("%s.%v", path, item.Key), ".")
				keys[key] = true
				line := row(page, key)
				if line == "" {
					t.Errorf("no row for the key %s", key)
				}
				plain := fmt.Sprint(item.Value)
				if _, deeper := item.Value.(yaml.MapSlice); deeper || example[key] || strings.HasPrefix(key, "interfaces.") ||
					strings.HasPrefix(key, "local_addresses.") || key == "services.backends.address" {
					walk(key, item.Value)
					continue
				}
				if plain == "" {
					plain = `""`
				}
				if !strings.Contains(line, "`"+plain+"`") {
					t.Errorf("the row of %s does not say its default `%s`: %s", key, plain, line)
				}
			}
		case []any:
			for _, item := range v {
				walk(path, item)
			}
		}
	}
	walk("", top)
	for _, name := range rows(page) {
		if !keys[name] && !strings.HasPrefix(name, "-") {
			t.Errorf("a row for %s, which is no key", name)
		}
	}
}

var flag = regexp.MustCompile(`--[a-z][a-z-]+`)

// Every flag of `run` is explained, and no other.
func TestFlagsDocumented(t *testing.T) {
	help, err := exec.Command("go", "run", "../cmd/l4fwd", "run", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, help)
	}
	page := read(t, "configuration.md")
	_, page, _ = strings.Cut(page, "## Flags of `run`")
	present, told := flag.FindAllString(string(help), -1), flag.FindAllString(page, -1)
	for _, f := range present {
		if f != "--help" && !slices.Contains(told, f) {
			t.Errorf("%s is not explained", f)
		}
	}
	for _, f := range told {
		if !slices.Contains(present, f) {
			t.Errorf("%s is explained and is no flag", f)
		}
	}
}

// Every reason by which a packet ends, at whatever stage, has a row.
func TestReasonsDocumented(t *testing.T) {
	var names []string
	for v := range dataplane.NumVerdicts {
		// packet.ErrNone has a place among the refusals and is never one.
		if name := v.String(); name != packet.ErrNone.String() {
			names = append(names, name)
		}
	}
	for c := range steer.NumCounters {
		names = append(names, steer.Counter(c).String())
	}
	for r := range nat.NumTOAResults {
		names = append(names, r.String())
	}
	for r := range nat.NumUOAResults {
		names = append(names, r.String())
	}
	page := read(t, "drops.md")
	for _, name := range names {
		if row(page, name) == "" {
			t.Errorf("no row for %s", name)
		}
	}
	for _, name := range rows(page) {
		if !slices.Contains(names, name) {
			t.Errorf("a row for %s, which is no outcome", name)
		}
	}
}

// Every counter of the real server's side has a row, and every flag of its commands.
func TestRealServersDocumented(t *testing.T) {
	page := read(t, "real-servers.md")
	var names []string
	for c := range rs.NumTOACounters {
		names = append(names, rs.TOACounter(c).String())
	}
	for c := range rs.NumUOACounters {
		names = append(names, rs.UOACounter(c).String())
	}
	for c := range rs.NumDecapCounters {
		names = append(names, rs.DecapCounter(c).String())
	}
	for _, command := range []string{"toa", "uoa", "decap"} {
		help, err := exec.Command("go", "run", "../cmd/l4fwd", "rs", command, "--help").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, help)
		}
		_, flags, _ := strings.Cut(string(help), "Flags:")
		for _, f := range flag.FindAllString(flags, -1) {
			if f != "--help" {
				names = append(names, f)
			}
		}
	}
	for _, name := range names {
		if row(page, name) == "" {
			t.Errorf("no row for %s", name)
		}
	}
	for _, name := range rows(page) {
		if !slices.Contains(names, name) && !strings.HasPrefix(name, "l4fwd rs") {
			t.Errorf("a row for %s, which is neither counter nor flag", name)
		}
	}
}

// The table of a flow's fields is the struct, byte for byte.
func TestEntryDocumented(t *testing.T) {
	page := read(t, "architecture.md")
	fields := reflect.TypeFor[conntrack.Entry]()
	for i := range fields.NumField() {
		f := fields.Field(i)
		want := fmt.Sprintf("| %d | %d | `%s` |", f.Offset, f.Type.Size(), f.Name)
		if !strings.Contains(page, want) {
			t.Errorf("no row that begins with %s", want)
		}
	}
	if want := fmt.Sprintf("%d bytes", unsafe.Sizeof(conntrack.Entry{})); !strings.Contains(page, want) {
		t.Errorf("the size of an entry is not there: %s", want)
	}
}

// base is a configuration to try fragments in, key by key.
var base = []struct{ key, text string }{
	{"interfaces", "interfaces: [{name: eth1}, {name: eth2}]\n"},
	{"local_addresses", "local_addresses: [10.0.1.10-10.0.1.13, \"2001:db8:1::10\"]\n"},
	{"services", "services: [{name: web, address: \"192.0.2.10:80\", protocol: tcp, mode: full-nat, backends: [{address: \"10.0.1.20:80\"}]}]\n"},
}

var fence = regexp.MustCompile("(?ms)^```yaml( fragment)?\n(.*?)^```$")

// Every example is a configuration that would be taken. A block that is marked
// "yaml fragment" is completed first.
func TestExamplesParse(t *testing.T) {
	total := 0
	for name, page := range pages(t) {
		for _, m := range fence.FindAllStringSubmatch(page, -1) {
			total++
			text := m[2]
			if m[1] != "" {
				for _, b := range base {
					if !strings.HasPrefix(text, b.key+":") && !strings.Contains(text, "\n"+b.key+":") {
						text += b.text
					}
				}
			}
			if _, err := config.Parse(name, []byte(text)); err != nil {
				t.Errorf("an example in %s: %v\n%s", name, err, m[2])
			}
		}
	}
	if total < 6 {
		t.Errorf("only %d examples found", total)
	}
}

var quoted = regexp.MustCompile("`([^`]+)`")

// Every folder with code has its row in the table of folders, and every row is of one.
func TestFoldersDocumented(t *testing.T) {
	_, table, found := strings.Cut(read(t, "architecture.md"), "\n| folder |")
	if !found {
		t.Fatal("no table of folders")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var told []string
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range quoted.FindAllStringSubmatch(first, -1) {
			told = append(told, m[1])
		}
	}
	list, err := exec.Command("go", "list", "-f", "{{.ImportPath}}", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for path := range strings.FieldsSeq(string(list)) {
		there = append(there, strings.TrimPrefix(path, "github.com/l4fwd/l4fwd/"))
	}
	slices.Sort(told)
	slices.Sort(there)
	if diff := cmp.Diff(there, told); diff != "" {
		t.Errorf("folders (-) and what the table has (+):\n%s", diff)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	heading = regexp.MustCompile("(?m)^#+ (.*)$")
	blocks  = regexp.MustCompile("(?ms)^```.*?^```$")
	dropped = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors are what links to a page's headings end in: GitHub leaves out what is
// neither letter, digit, underscore, hyphen nor space, and numbers what comes again.
func anchors(page string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(blocks.ReplaceAllString(page, ""), -1) {
		words := strings.ToLower(dropped.ReplaceAllString(m[1], ""))
		a := "#" + strings.ReplaceAll(words, " ", "-")
		for n, first := 1, a; out[a]; n++ {
			a = fmt.Sprintf("%s-%d", first, n)
		}
		out[a] = true
	}
	return out
}

// A link to a file of the repository leads to one, and to a heading of its if it
// names one.
func TestLinks(t *testing.T) {
	all, named := pages(t), 0
	for name, page := range all {
		for _, m := range link.FindAllStringSubmatch(blocks.ReplaceAllString(page, ""), -1) {
			target := name
			if m[1] != "" {
				target = strings.TrimPrefix(filepath.Join(filepath.Dir(name), m[1]), "../docs/")
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if m[2] == "" {
				continue
			}
			if named++; !anchors(all[target])[m[2]] {
				t.Errorf("%s: %s has no heading %s", name, target, m[2])
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d links to headings found", named)
	}
}

func TestPictureIsXML(t *testing.T) {
	d := xml.NewDecoder(strings.NewReader(read(t, "architecture.svg")))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

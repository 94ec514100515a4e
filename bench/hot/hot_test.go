package hot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const output = `# github.com/l4fwd/l4fwd/dataplane
dataplane/burst.go:4:17: Found IsInBounds
./dataplane/burst.go:4:30: Found IsInBounds
dataplane/fresh.go:4:1: Found IsSliceInBounds
dataplane/counts.go:4:1: Found IsInBounds
dataplane/mailbox.go:4:1: Found IsInBounds
config/config.go:1:1: Found IsInBounds
	0x0000 00000 (/m/dataplane/burst.go:3)	TEXT	github.com/l4fwd/l4fwd/dataplane.(*Worker).run(SB), ABIInternal, $80-8
	0x00c0 00192 (/m/dataplane/burst.go:5)	CALL	runtime.newobject(SB)
	0x00c0 00292 (/m/dataplane/burst.go:5)	CALL	runtime.newobject(SB)
	0x00c4 00193 (/m/dataplane/burst.go:6)	CALL	runtime.newobject(SB)
	0x00c8 00200 (/m/dataplane/burst.go:6)	CALL	runtime.mapaccess1_fast32(SB)
	0x00c8 00208 (/m/dataplane/burst.go:6)	CALL	runtime.panicBounds(SB)
	0x00c8 00216 (/m/dataplane/burst.go:6)	CALL	github.com/l4fwd/l4fwd/dataplane.(*Worker).act(SB)
	0x00c8 00216 (/m/dataplane/burst.go:6)	CALL	github.com/l4fwd/l4fwd/dataplane.(*Worker).Counts(SB)
	0x00c8 00216 (/m/dataplane/burst.go:6)	CALL	github.com/l4fwd/l4fwd/config.Look(SB)
	0x00c8 00216 (/m/dataplane/burst.go:7)	CALL	AX
	0x00c8 00216 (/go/src/sync/mutex.go:5)	CALL	sync.(*Mutex).lockSlow(SB)
	0x00c8 00216 (/m/dataplane/counts.go:6)	CALL	runtime.mapaccess2(SB)
	0x0000 00000 (/m/dataplane/fresh.go:3)	TEXT	github.com/l4fwd/l4fwd/dataplane.(*Worker).act(SB), ABIInternal, $80-8
	0x00c8 00216 (/m/dataplane/fresh.go:5)	CALL	runtime.mapaccess1(SB)
	0x0000 00000 (/m/dataplane/counts.go:3)	TEXT	github.com/l4fwd/l4fwd/dataplane.(*Worker).Counts(SB), ABIInternal, $80-8
	0x00c8 00216 (/m/dataplane/counts.go:5)	CALL	runtime.newobject(SB)
	0x00c8 00216 (/m/dataplane/fresh.go:5)	CALL	runtime.newobject(SB)
	0x0000 00000 (/m/dataplane/mailbox.go:3)	TEXT	github.com/l4fwd/l4fwd/dataplane.(*Worker).Do(SB), ABIInternal, $80-8
	0x00c8 00216 (/m/dataplane/mailbox.go:5)	CALL	runtime.makechan(SB)
	0x0000 00000 (/m/dataplane/fresh.go:9)	TEXT	github.com/l4fwd/l4fwd/dataplane.init(SB), ABIInternal, $80-8
	0x00c8 00216 (/m/dataplane/fresh.go:9)	CALL	runtime.makemap(SB)
`

// source is the same in all files, but for the function's name.
const source = "package dataplane\n\nfunc %s() {\n\tx := a[i] + b[i]\n\ty := new(int)\n\ty := new(int)\n\tf()\n}\n"

// What the compiler says of what packets come to is found, each line once, in files
// that nobody listed, too; of cold functions it is that they are called.
func TestParse(t *testing.T) {
	names := map[string]string{
		"/m/dataplane/burst.go": "run", "/m/dataplane/fresh.go": "act", "/m/dataplane/mailbox.go": "Do",
	}
	got, err := newTree("/m", func(path string) ([]byte, error) {
		if names[path] == "" {
			t.Errorf("reads %s", path)
		}
		return fmt.Appendf(nil, source, names[path]), nil
	}).parse(strings.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	const run = "func run() {"
	want := []Finding{
		{"dataplane/burst.go", "IsInBounds", "x := a[i] + b[i]", 1},
		{"dataplane/burst.go", "cold dataplane.(*Worker).Counts", "y := new(int)", 1},
		{"dataplane/burst.go", "github.com/l4fwd/l4fwd/config.Look", "y := new(int)", 1},
		{"dataplane/burst.go", "indirect call", "f()", 1},
		{"dataplane/burst.go", "runtime.mapaccess1_fast32", "y := new(int)", 1},
		{"dataplane/burst.go", "runtime.mapaccess2", run, 1},
		{"dataplane/burst.go", "runtime.newobject", "y := new(int)", 2},
		{"dataplane/burst.go", "sync.(*Mutex).lockSlow", run, 1},
		{"dataplane/fresh.go", "IsSliceInBounds", "x := a[i] + b[i]", 1},
		{"dataplane/fresh.go", "runtime.mapaccess1", "y := new(int)", 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var b bytes.Buffer
	if err := Write(&b, want); err != nil {
		t.Fatal(err)
	}
	back, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, back); d != "" {
		t.Error(d)
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"a\tb\t1\tc\na\tb\n": "line 2: 2 fields",
		"a\tb\tx\tc\n":       "line 1: ",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestNew(t *testing.T) {
	was := []Finding{{"f", "k", "s", 2}, {"f", "k", "gone", 1}}
	is := []Finding{{"f", "k", "s", 3}, {"f", "k", "fresh", 1}, {"f", "other", "s", 1}}
	want := []Finding{{"f", "k", "s", 1}, {"f", "k", "fresh", 1}, {"f", "other", "s", 1}}
	if d := cmp.Diff(want, New(was, is)); d != "" {
		t.Error(d)
	}
	if d := New(is, is); d != nil {
		t.Errorf("%v is new beside itself", d)
	}
}

// What is called cold is there, and says why.
func TestCold(t *testing.T) {
	tree := newTree("../..", os.ReadFile)
	for name, why := range Cold {
		file, function, one := strings.Cut(name, ":")
		if !slices.Contains(Packages, filepath.Dir(file)) || why == "" {
			t.Errorf("%s: %q", name, why)
		}
		if err := tree.load(file); err != nil {
			t.Error(err)
		}
		if one && !slices.ContainsFunc(tree.funcs[file], func(s span) bool { return s.name == function }) {
			t.Errorf("%s has no function %s", file, function)
		}
	}
}

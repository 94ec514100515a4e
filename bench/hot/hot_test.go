package hot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const output = `# github.com/l4fwd/l4fwd/dataplane
dataplane/burst.go:2:17: Found IsInBounds
./dataplane/burst.go:2:30: Found IsInBounds
dataplane/burst.go:4:1: Found IsSliceInBounds
dataplane/snapshot.go:1:1: Found IsInBounds
	0x00c0 00192 (/m/dataplane/burst.go:3)	CALL	runtime.newobject(SB)
	0x00c0 00292 (/m/dataplane/burst.go:3)	CALL	runtime.newobject(SB)
	0x00c4 00193 (/m/dataplane/burst.go:5)	CALL	runtime.newobject(SB)
	0x00c8 00200 (/m/dataplane/burst.go:5)	CALL	runtime.mapaccess1_fast32(SB)
	0x00c8 00208 (/m/dataplane/burst.go:5)	CALL	runtime.panicBounds(SB)
	0x00c8 00216 (/m/dataplane/burst.go:5)	CALL	github.com/l4fwd/l4fwd/dataplane.(*Worker).act(SB)
	0x00c8 00216 (/go/src/sync/mutex.go:5)	CALL	sync.(*Mutex).lockSlow(SB)
`

var source = strings.Join([]string{"package dataplane", "\tx := a[i] + b[i]", "\ty := new(int)", "\tz := a[i:]", "\ty := new(int)"}, "\n")

// What the compiler says of hot files is found, each line once, and the rest is
// left out.
func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(output), "/m", func(path string) ([]byte, error) {
		if path != "/m/dataplane/burst.go" {
			t.Errorf("reads %s", path)
		}
		return []byte(source), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []Finding{
		{"dataplane/burst.go", "IsInBounds", "x := a[i] + b[i]", 1},
		{"dataplane/burst.go", "IsSliceInBounds", "z := a[i:]", 1},
		{"dataplane/burst.go", "runtime.mapaccess1_fast32", "y := new(int)", 1},
		{"dataplane/burst.go", "runtime.newobject", "y := new(int)", 2},
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

// Every file in the list of hot ones is there.
func TestFiles(t *testing.T) {
	for pkg, files := range Files {
		for _, f := range files {
			if _, err := os.Stat(filepath.Join("../..", pkg, f)); err != nil {
				t.Error(err)
			}
		}
	}
}

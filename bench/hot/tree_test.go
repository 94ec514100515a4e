//go:build benchcheck

package hot_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/bench/hot"
)

var update = flag.Bool("update", false, "write testdata/amd64.txt anew")

const list = "testdata/amd64.txt"

// root is the module's.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func find(t *testing.T, overlay string) []hot.Finding {
	t.Helper()
	is, err := hot.Find(context.Background(), root(t), overlay)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func known(t *testing.T) []hot.Finding {
	t.Helper()
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	was, err := hot.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", list, err)
	}
	return was
}

// The hot files hold no bounds check and no heavy call that is not in the list.
func TestTree(t *testing.T) {
	is := find(t, "")
	if *update {
		var b bytes.Buffer
		if err := hot.Write(&b, is); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(list, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	was := known(t)
	for _, f := range hot.New(was, is) {
		t.Errorf("new, %d times: %s", f.Count, f)
	}
	for _, f := range hot.New(is, was) {
		t.Logf("gone, %d times: %s", f.Count, f)
	}
	if t.Failed() {
		v, _ := exec.Command("go", "version").Output()
		t.Logf("if that is meant, or this is another Go than made the list (%s): make bench-bounds", bytes.TrimSpace(v))
	}
}

// mutants are changes to dataplane/burst.go that must be caught, and what of.
var mutants = []struct {
	name     string
	old, new string
	globals  string
	want     string // found by the compiler
	fails    string // printed by `bench check`; empty: too small for it to see
}{
	{
		name: "a map lookup a packet",
		old:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple)\n",
		new:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple)\n\t\t\tif !seenTuples[p.Tuple] {\n\t\t\t\tseenTuples[p.Tuple] = true\n\t\t\t}\n",
		globals: `
var seenTuples = map[packet.Tuple]bool{}
`,
		want: "runtime.mapaccess", fails: "FAIL ratio",
	},
	{
		name: "an allocation a packet",
		old:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple)\n",
		new:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple)\n\t\t\tlastTuple = &packet.Tuple{Src: p.Src}\n",
		globals: `
var lastTuple *packet.Tuple
`,
		want: "runtime.newobject", fails: "FAIL allocations",
	},
	{
		name: "a bounds check a packet",
		old:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple)\n",
		new:  "\t\t\tb.hash[flows] = w.table.Hash(&p.Tuple) + uint32(w.umem[d.Addr+uint64(p.L4)+uint64(d.Len)]&0)\n",
		want: "IsInBounds",
	},
}

// What must not be is seen: by what the compiler says, and, where it is worth a
// nanosecond, by `bench check` as well.
func TestMutants(t *testing.T) {
	const file = "dataplane/burst.go"
	b, err := os.ReadFile(filepath.Join(root(t), file))
	if err != nil {
		t.Fatal(err)
	}
	was := known(t)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			if strings.Count(string(b), m.old) != 1 {
				t.Fatalf("%s does not hold the line to change", file)
			}
			dir := t.TempDir()
			changed, overlay := filepath.Join(dir, "burst.go"), filepath.Join(dir, "overlay.json")
			text := strings.Replace(string(b), m.old, m.new, 1) + m.globals
			o, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root(t), file): changed}})
			if err != nil {
				t.Fatal(err)
			}
			for path, data := range map[string][]byte{changed: []byte(text), overlay: o} {
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			caught := false
			for _, f := range hot.New(was, find(t, overlay)) {
				t.Logf("found: %s", f)
				caught = caught || f.File == file && strings.HasPrefix(f.What, m.want)
			}
			if !caught {
				t.Errorf("no %s is found in %s", m.want, file)
			}
			if m.fails != "" {
				benchCheck(t, overlay, m.fails)
			}
		})
	}
}

// benchCheck wants `bench check` to fail with what overlay makes of the module.
func benchCheck(t *testing.T, overlay, want string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "l4fwd")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", bin, "./cmd/l4fwd")
	build.Dir = root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check := exec.Command(bin, "bench", "check", "-c", "bench/testdata/matrix.yaml", "--bounds", "bench/bounds.json", "--attempts", "1")
	check.Dir = root(t)
	out, err := check.CombinedOutput()
	t.Logf("%s", out)
	if err == nil || !bytes.Contains(out, []byte(want)) {
		t.Errorf("bench check: %v, want %q", err, want)
	}
}

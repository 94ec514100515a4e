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

// anchor is what every packet of a flow comes past in dataplane/burst.go; in the
// mutants it calls something else.
const anchor = "w.table.Hash(&p.Tuple)"

// mutants are what is called there, and how it must be caught.
var mutants = []struct {
	name  string
	text  string // defines w.mutant(i, p)
	want  string // found by the compiler
	fails string // printed by `bench check`; empty: too small for it to see
}{
	{
		name: "a map lookup a packet",
		text: `
var seenTuples = map[packet.Tuple]bool{}

func (w *Worker) mutant(_ int, p *packet.Packet) uint32 {
	if !seenTuples[p.Tuple] {
		seenTuples[p.Tuple] = true
	}
	return w.table.Hash(&p.Tuple)
}
`,
		want: "runtime.mapaccess", fails: "FAIL ratio",
	},
	{
		name: "an allocation a packet",
		text: `
var lastTuple *packet.Tuple

func (w *Worker) mutant(_ int, p *packet.Packet) uint32 {
	lastTuple = &packet.Tuple{Src: p.Src}
	return w.table.Hash(&p.Tuple)
}
`,
		want: "runtime.newobject", fails: "FAIL allocations",
	},
	{
		name: "a bounds check a packet",
		text: `
func (w *Worker) mutant(i int, p *packet.Packet) uint32 {
	return w.table.Hash(&p.Tuple) + uint32(w.umem[w.b.desc[i&63].Addr+uint64(p.L4)])*0
}
`,
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
			if strings.Count(string(b), anchor) != 1 {
				t.Fatalf("%s does not hold %s, once", file, anchor)
			}
			dir := t.TempDir()
			changed, overlay := filepath.Join(dir, "burst.go"), filepath.Join(dir, "overlay.json")
			text := strings.Replace(string(b), anchor, "w.mutant(i, p)", 1) + m.text
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

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

// Where packets come is no bounds check and no call that is not in the list, and the
// list has none that is gone: another could come in its place.
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
		t.Errorf("gone, %d times: %s", f.Count, f)
	}
	if t.Failed() {
		v, _ := exec.Command("go", "version").Output()
		t.Logf("if that is meant, or this is another Go than made the list (%s): make bench-bounds", bytes.TrimSpace(v))
	}
}

// anchor is what every packet of a flow comes past in dataplane/burst.go; in the
// mutants something is called before it, in a file that nobody knows.
const anchor = "\treturn flows\n"

// mutants are what is called there, and how it must be caught.
var mutants = []struct {
	name  string
	text  string // defines w.mutant(ip, hash) in a new file
	want  string // found by the compiler
	fails string // printed by `bench check`; empty: too small for it to see
}{
	{
		name: "a map lookup a packet",
		text: `
var seen = map[uint32]packet.Tuple{}

func (w *Worker) mutant(_ uint64, hash uint32) {
	if seen[hash].SrcPort == 0 {
		seen[hash] = packet.Tuple{SrcPort: 1}
	}
}
`,
		want: "runtime.mapaccess", fails: "FAIL ratio",
	},
	{
		name: "a cheap map lookup a packet",
		text: `
var knownPorts = map[uint16]packet.Tuple{80: {}}

func (w *Worker) mutant(_ uint64, hash uint32) {
	w.count.Sent += uint64(knownPorts[uint16(hash)].SrcPort)
}
`,
		want: "runtime.mapaccess",
	},
	{
		name: "a lock a packet",
		text: `
var everybody sync.Mutex

func (w *Worker) mutant(uint64, uint32) {
	everybody.Lock()
	defer everybody.Unlock()
	w.count.Sent += packet.FIN - 1
}
`,
		want: "internal/sync.(*Mutex).lockSlow",
	},
	{
		name: "an allocation a UDP packet",
		text: `
var lastTuple *packet.Tuple

func (w *Worker) mutant(ip uint64, hash uint32) {
	if ip < isV6 && w.umem[ip+packet.IPv4Proto] == packet.ProtoUDP {
		lastTuple = &packet.Tuple{SrcPort: uint16(hash)}
	}
}
`,
		want: "runtime.newobject", fails: "FAIL allocations a packet, udp4",
	},
	{
		name: "an allocation a packet",
		text: `
var lastTuple *packet.Tuple

func (w *Worker) mutant(_ uint64, hash uint32) {
	lastTuple = &packet.Tuple{SrcPort: uint16(hash)}
}
`,
		want: "runtime.newobject", fails: "FAIL allocations",
	},
	{
		name: "a bounds check a packet",
		text: `
func (w *Worker) mutant(ip uint64, _ uint32) {
	_ = w.umem[ip&^isV6+packet.IPv4TTL]
}
`,
		want: "IsInBounds",
	},
}

// What must not be is seen: by what the compiler says, and, where it is worth a
// nanosecond, by `bench check` as well.
func TestMutants(t *testing.T) {
	const file, added = "dataplane/burst.go", "dataplane/mutant.go"
	b, err := os.ReadFile(filepath.Join(root(t), file))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(b), anchor) != 1 {
		t.Fatalf("%s does not hold %s, once", file, anchor)
	}
	was := known(t)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			overlay := lay(t, map[string]string{
				file:  strings.Replace(string(b), anchor, "for j := range flows {\nw.mutant(b.ip[j], b.look.Hash[j])\n}\n"+anchor, 1),
				added: mutantHead(m.text) + m.text,
			})
			caught := false
			for _, f := range hot.New(was, find(t, overlay)) {
				t.Logf("found: %s", f)
				caught = caught || f.File == added && strings.HasPrefix(f.What, m.want)
			}
			if !caught {
				t.Errorf("no %s is found in %s", m.want, added)
			}
			if m.fails != "" {
				benchCheck(t, overlay, m.fails)
			}
		})
	}
}

// mutantHead is what a mutant's file begins with.
func mutantHead(text string) string {
	imports := `import "github.com/l4fwd/l4fwd/packet"` + "\n"
	if strings.Contains(text, "sync.") {
		imports += `import "sync"` + "\n"
	}
	return "package dataplane\n\n" + imports
}

// lay writes an overlay with these texts, by path from the module's root.
func lay(t *testing.T, texts map[string]string) (overlay string) {
	t.Helper()
	dir := t.TempDir()
	overlay = filepath.Join(dir, "overlay.json")
	replace := map[string]string{}
	for name, text := range texts {
		to := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root(t), name)] = to
	}
	o, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, o, 0o644); err != nil {
		t.Fatal(err)
	}
	return overlay
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

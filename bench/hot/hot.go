package hot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Files that packets go through, by package, from the module's root.
var Files = map[string][]string{
	"packet":          {"addr.go", "checksum.go", "header.go", "packet.go", "parse.go", "parse_ip.go", "parse_plain6.go", "tcpopt.go"},
	"conntrack":       {"batch.go", "bucket.go", "entry.go", "halfopen.go", "hash.go", "lookup.go", "plain.go", "table.go", "tcp.go", "track.go", "udp.go", "wheel.go", "window.go"},
	"nat":             {"isn.go", "options.go", "plain.go", "ports.go", "rewrite.go", "timestamps.go", "toa.go", "ttl.go"},
	"balance":         {"balance.go", "maglev.go", "turns.go"},
	"dataplane":       {"addrset.go", "burst.go", "flood.go", "flow.go", "frames.go", "handoff.go", "hop.go", "names.go", "open.go", "options.go", "owner.go", "plain.go", "spsc.go", "stages.go", "worker.go"},
	"dataplane/route": {"hop.go", "table.go"},
	"dataplane/afxdp": {"kick.go", "ring.go", "socket.go"},
}

// Finding is something in a hot file, at so many places with the same text: a
// line's number changes too easily.
type Finding struct {
	File   string // from the module's root
	What   string // a kind of bounds check, or the function called
	Source string // the line, without the space around it
	Count  int
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.File, f.What, f.Source) }

// Find compiles the hot files of the module at root for amd64. overlay is a file
// for the go command's flag of that name, which puts other files in the place of
// the module's; empty for none.
func Find(ctx context.Context, root, overlay string) ([]Finding, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	replaced, err := readOverlay(overlay)
	if err != nil {
		return nil, err
	}
	args := []string{"build", "-gcflags=-d=ssa/check_bce -S"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	for pkg := range Files {
		args = append(args, "./"+pkg)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return parse(bytes.NewReader(out), root, func(path string) ([]byte, error) {
		if other := replaced[path]; other != "" {
			path = other
		}
		return os.ReadFile(path)
	})
}

// readOverlay is what an overlay file puts in the place of what.
func readOverlay(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var o struct{ Replace map[string]string }
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o.Replace, nil
}

var (
	// dataplane/burst.go:25:30: Found IsInBounds
	bounds = regexp.MustCompile(`^(\S+\.go):(\d+):\d+: Found (IsInBounds|IsSliceInBounds)$`)
	// 0x00c0 00192 (/root/dataplane/burst.go:25)	CALL	runtime.newobject(SB)
	calls = regexp.MustCompile(`^\t0x[0-9a-f]+ \d+ \((\S+\.go):(\d+)\)\tCALL\t(\S+)\(SB\)`)
	// Allocation, maps, channels, conversions, goroutines, locks, time.
	heavy = regexp.MustCompile(`^(runtime\.(map|makemap|newobject|mallocgc|makeslice|growslice|makechan|chan|select|convT|concat|slicebytetostring|stringtoslice|intstring|newproc|deferproc|typeAssert|assertE2I|interfaceSwitch)|internal/runtime/maps\.|sync\.|fmt\.|time\.|log\.|errors\.)`)
)

// place is a line of a hot file with something in it.
type place struct {
	file, what string
	line       int
}

// parse reads what the compiler printed. A line that is inlined at many places
// counts once. read gives the source at a path.
func parse(out io.Reader, root string, read func(path string) ([]byte, error)) ([]Finding, error) {
	places := map[place]bool{}
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		m := bounds.FindStringSubmatch(in.Text())
		if m == nil {
			if m = calls.FindStringSubmatch(in.Text()); m == nil || !heavy.MatchString(m[3]) {
				continue
			}
		}
		file := relative(root, m[1])
		if !isHot(file) {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, err
		}
		places[place{file, m[3], n}] = true
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return count(places, root, read)
}

// relative is the path from root, which the compiler prints either way.
func relative(root, path string) string {
	if r, ok := strings.CutPrefix(path, root+"/"); ok {
		return r
	}
	return strings.TrimPrefix(path, "./")
}

func isHot(file string) bool {
	return slices.Contains(Files[filepath.Dir(file)], filepath.Base(file))
}

// count sums up places with the same text.
func count(places map[place]bool, root string, read func(path string) ([]byte, error)) ([]Finding, error) {
	sources := map[string][]string{}
	counts := map[Finding]int{}
	for p := range places {
		if sources[p.file] == nil {
			b, err := read(filepath.Join(root, p.file))
			if err != nil {
				return nil, err
			}
			sources[p.file] = strings.Split(string(b), "\n")
		}
		text := ""
		if p.line <= len(sources[p.file]) {
			text = strings.TrimSpace(sources[p.file][p.line-1])
		}
		counts[Finding{File: p.file, What: p.what, Source: text}]++
	}
	var out []Finding
	for f, n := range counts {
		f.Count = n
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// New is what is has beyond was.
func New(was, is []Finding) (out []Finding) {
	known := map[Finding]int{}
	for _, f := range was {
		n := f.Count
		f.Count = 0
		known[f] = n
	}
	for _, f := range is {
		key := f
		key.Count = 0
		if f.Count -= known[key]; f.Count > 0 {
			out = append(out, f)
		}
	}
	return out
}

// Write writes a list, a finding a line: file, what, how often, source, with tabs
// between.
func Write(w io.Writer, list []Finding) error {
	for _, f := range list {
		if _, err := fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", f.File, f.What, f.Count, f.Source); err != nil {
			return err
		}
	}
	return nil
}

// Read reads what Write wrote. The error names the line.
func Read(r io.Reader) (list []Finding, err error) {
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		cell := strings.SplitN(in.Text(), "\t", 4)
		if len(cell) != 4 {
			return nil, fmt.Errorf("line %d: %d fields, want 4", n, len(cell))
		}
		f := Finding{File: cell[0], What: cell[1], Source: cell[3]}
		if f.Count, err = strconv.Atoi(cell[2]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, f)
	}
	return list, in.Err()
}

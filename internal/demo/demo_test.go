package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }

// l4fwd is the program, built once.
func l4fwd(t *testing.T) string {
	t.Helper()
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// child is `l4fwd demo` in a process of its own, its output read line by line.
type child struct {
	*exec.Cmd
	lines *bufio.Scanner
	seen  strings.Builder
}

func start(t *testing.T, args ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), l4fwd(t), append([]string{"demo"}, args...)...)}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	c.Stdout, c.Stderr = w, w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(r)
	return c
}

// until reads up to a line that begins as the pattern says.
func (c *child) until(t *testing.T, pattern string) {
	t.Helper()
	for begin := regexp.MustCompile("^" + pattern); c.lines.Scan(); {
		fmt.Fprintln(&c.seen, c.lines.Text())
		if begin.MatchString(c.lines.Text()) {
			return
		}
	}
	t.Fatalf("no line begins as %q:\n%s", pattern, c.seen.String())
}

// end reads the rest and returns the exit status with everything printed.
func (c *child) end(t *testing.T) (status int, output string) {
	t.Helper()
	for c.lines.Scan() {
		fmt.Fprintln(&c.seen, c.lines.Text())
	}
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), c.seen.String()
}

// left is what a demo with that pid has not taken down.
func left(t *testing.T, pid int) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{
		fmt.Sprintf("/run/netns/testbed-%d-*", pid),
		filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-*", dirPrefix, pid)),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return append(all, forwarders(t, pid)...)
}

// forwarders are the processes that run with the configuration of that demo.
func forwarders(t *testing.T, pid int) (out []string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, fmt.Appendf(nil, "%s%d-", dirPrefix, pid)) {
			out = append(out, path)
		}
	}
	return out
}

func TestVerdictGood(t *testing.T) {
	l4fwd(t) // to build it may take a minute by itself
	begin := time.Now()
	c := start(t, "--duration", "2s", "--requests", "90")
	status, out := c.end(t)
	if status != 0 || !strings.Contains(out, "all 15 checks ok") || strings.Contains(out, "FAILED") {
		t.Errorf("exit status %d:\n%s", status, out)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("took %s", took)
	}
	if l := left(t, c.Process.Pid); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

// TestModes: every mode by itself, and every encapsulation.
func TestModes(t *testing.T) {
	var all []Options
	for _, mode := range Modes() {
		all = append(all, Options{Mode: mode})
	}
	for _, e := range Encapsulations()[1:] { // without one it is the first
		if !testing.Short() || e == "gue" {
			all = append(all, Options{Mode: tunnel, Encapsulation: e})
		}
	}
	// And in the topologies that are not a mode's usual one, pairs of both in short runs.
	for i, mode := range []string{fullNAT, dsrL2, dnat, tunnel} {
		for j, topology := range [][]string{{oneArm, trunk}, {twoArm, trunk}, {oneArm, trunk}, {twoArm, trunk}}[i] {
			if !testing.Short() || i/2 == j {
				all = append(all, Options{Mode: mode, Topology: topology})
			}
		}
	}
	for _, o := range all {
		t.Run(strings.Join(strings.Fields(o.Mode+" "+o.Encapsulation+" "+o.Topology), " "), func(t *testing.T) {
			var out bytes.Buffer
			o.Executable, o.Duration, o.Requests, o.Out = l4fwd(t), 300*time.Millisecond, 30, &out
			if err := Run(t.Context(), o); err != nil || !strings.Contains(out.String(), "all 13 checks ok") {
				t.Errorf("%v\n%s", err, out.String())
			}
			if l := left(t, os.Getpid()); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
}

// TestVerdictBad runs l4fwd with another configuration than the demo wrote and
// wants the judge to notice just that.
func TestVerdictBad(t *testing.T) {
	for _, tt := range []struct {
		name, mode, edit string
		want             []string
	}{
		{"weights and TOA", "", "-e 's/weight: 2/weight: 1/' -e '/client_address: toa/d'",
			[]string{"backends used by weight", "full-nat: TOA names the client, address and port"}},
		{"another mode", tunnel, "-e 's/mode: tunnel/mode: dsr-l2/' -e /encapsulation:/d", []string{"what arrives at servers is as it must be"}},
		{"Full-NAT for DNAT", dnat, "-e 's/mode: dnat/mode: full-nat/' -e '$alocal_addresses: [10.0.1.10, \"2001:db8:1::a\"]'",
			[]string{"dnat: servers see the client's own address", "dnat: and its own port", "what arrives at servers is as it must be"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := filepath.Join(t.TempDir(), "l4fwd")
			text := "#!/bin/sh\nsed -i " + tt.edit + " \"$3\"\nexec " + l4fwd(t) + " \"$@\"\n"
			if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
			spoilt(t, Options{Mode: tt.mode, Executable: script, Duration: 500 * time.Millisecond, Requests: 60}, tt.want)
		})
	}
}

// spoilt wants just these checks to fail.
func spoilt(t *testing.T, o Options, want []string) {
	t.Helper()
	var out bytes.Buffer
	o.Out = &out
	if err := Run(t.Context(), o); !errors.Is(err, ErrFailed) {
		t.Errorf("%v, want %v", err, ErrFailed)
	}
	var failed []string
	for line := range strings.Lines(out.String()) {
		if name, ok := strings.CutPrefix(line, "  FAILED  "); ok {
			name, _, _ = strings.Cut(name, "  ")
			failed = append(failed, name)
		}
	}
	if diff := cmp.Diff(want, failed); diff != "" {
		t.Errorf("failed checks (-want +got):\n%s\n%s", diff, out.String())
	}
	if l := left(t, os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

func TestForwarderDoesNotStart(t *testing.T) {
	script := filepath.Join(t.TempDir(), "l4fwd")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such luck\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := Run(t.Context(), Options{Executable: script, Out: &out})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(out.String(), "| no such luck") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if l := left(t, os.Getpid()); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

func TestInterrupt(t *testing.T) {
	for _, tt := range []struct {
		name, line string // a pattern
		sig        syscall.Signal
		args       []string
	}{
		{"at once", "l4fwd demo", syscall.SIGINT, nil},
		{"while the forwarder starts", "network", syscall.SIGINT, nil},
		{"while it warms up", "forwarder", syscall.SIGTERM, nil},
		{"in the middle of the traffic", ` +[1-9]\d*\.\d s   http`, syscall.SIGINT, nil},
		{"terminal gone", "traffic", syscall.SIGHUP, nil},
		{"while the second forwarder starts", "forwarder", syscall.SIGINT, []string{"--mode", snat}},
		{"while servers begin to unwrap", "rs1", syscall.SIGINT, []string{"--mode", tunnel, "--encapsulation", "gue"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := start(t, tt.args...)
			c.until(t, tt.line)
			if err := c.Process.Signal(tt.sig); err != nil {
				t.Fatal(err)
			}
			status, out := c.end(t)
			if status != 1 || !strings.HasSuffix(out, ErrInterrupted.Error()+"\n") {
				t.Errorf("exit status %d:\n%s", status, out)
			}
			if l := left(t, c.Process.Pid); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
}

// TestReaderGone: `l4fwd demo | head` must not leave anything either.
func TestReaderGone(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), l4fwd(t), "demo")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if l := left(t, cmd.Process.Pid); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

func TestKilledDemoIsSwept(t *testing.T) {
	c := start(t)
	c.until(t, "traffic")
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.end(t)
	for deadline := time.Now().Add(20 * time.Second); len(forwarders(t, c.Process.Pid)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the forwarder outlives the demo")
		}
	}
	if l := left(t, c.Process.Pid); len(l) != 6 {
		t.Errorf("five namespaces and a directory should wait to be swept: %v", l)
	}
	next := start(t)
	next.until(t, "network")
	if l := left(t, c.Process.Pid); len(l) > 0 {
		t.Errorf("not swept: %v", l)
	}
	if err := next.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	next.end(t)
}

// TestKeep runs every curl that the demo proposes.
func TestKeep(t *testing.T) {
	c := start(t, "--keep", "--duration", "1s", "--requests", "30")
	c.until(t, "Everything stays up")
	c.until(t, "            kill -TERM")
	tried := 0
	for line := range strings.Lines(c.seen.String()) {
		if i := strings.Index(line, "nsenter"); i >= 0 && strings.Contains(line, " curl ") {
			tried++
			out, err := exec.CommandContext(t.Context(), "sh", "-c", line[i:]).Output()
			if err != nil || !strings.Contains(string(out), `"server":"rs`) {
				t.Errorf("%s%v: %s", line[i:], err, out)
			}
		}
	}
	if tried != 4 {
		t.Errorf("%d commands tried", tried)
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, out := c.end(t); status != 0 {
		t.Errorf("exit status %d:\n%s", status, out)
	}
	if l := left(t, c.Process.Pid); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

func TestWithoutRoot(t *testing.T) {
	// t.TempDir and testbed.Build are where others may not enter.
	dir, err := os.MkdirTemp("", "l4fwd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "l4fwd")
	b, err := os.ReadFile(l4fwd(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), copied, "demo")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "must be run as root, and this is uid 65534") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestOptionsRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"negative duration": {Duration: -1},
		"endless":           {Duration: MaxDuration + 1},
		"negative requests": {Requests: -1},
		"too many requests": {Requests: MaxRequests + 1},
		"unknown mode":      {Mode: "half-nat"},
		"unknown tunnel":    {Mode: tunnel, Encapsulation: "l2tp"},
		"no tunnel":         {Mode: dsrL2, Encapsulation: vxlan},
		"unknown topology":  {Topology: "three-arm"},
		"snat with a trunk": {Mode: snat, Topology: trunk},
	} {
		o.Out = io.Discard
		if err := Run(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Mode: "half-nat"}, `mode "half-nat": expected one of full-nat, dnat, snat, dsr-l2, tunnel`},
		{Options{Mode: tunnel, Encapsulation: "l2tp"}, `encapsulation "l2tp": expected one of vxlan, ipip, gre, gue, fou`},
		{Options{Encapsulation: "gue"}, `encapsulation gue: only mode tunnel has one`},
	} {
		if _, err := tt.o.choose(); err == nil || err.Error() != tt.want {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
}

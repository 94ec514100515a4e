package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// unitKey is the values of a key in the unit that is shipped.
func unitKey(t *testing.T, key string) []string {
	t.Helper()
	f, err := os.Open("../../deploy/systemd/l4fwd.service")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), key+"="); ok {
			return strings.Fields(v)
		}
	}
	t.Fatalf("the unit has no %s", key)
	return nil
}

// syscallsOf is what a SystemCallFilter allows; systemd tells what its groups are.
func syscallsOf(t *testing.T, filter []string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for len(filter) > 0 {
		name := filter[0]
		filter = filter[1:]
		if !strings.HasPrefix(name, "@") {
			all[name] = true
			continue
		}
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "syscall-filter", "--no-pager", name).Output()
		if err != nil {
			t.Fatalf("systemd-analyze: %v", err)
		}
		for line := range strings.Lines(string(out)) {
			if word := strings.TrimSpace(line); word != name && word != "" && !strings.HasPrefix(word, "#") {
				filter = append(filter, word)
			}
		}
	}
	return all
}

// hearManager collects what a service manager is told, until hear is called.
func hearManager(t *testing.T, l *net.UnixConn) (hear func() []string) {
	t.Helper()
	var told []string
	done := make(chan error, 1)
	go func() {
		for buf := make([]byte, 512); ; {
			n, err := l.Read(buf)
			if err != nil {
				done <- err
				return
			}
			told = append(told, string(buf[:n]))
		}
	}()
	return func() []string {
		if err := l.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		return told
	}
}

// TestUnit runs l4fwd as root with no capabilities but those of the shipped systemd
// unit, through start, traffic, health checks, reload and end, while strace writes down
// what it asks of the kernel: nothing that the unit denies.
func TestUnit(t *testing.T) {
	r := directNetwork(t, scene{true, 1, dsrL2}, testbed.SnifferOptions{Every: 20})
	trace := filepath.Join(t.TempDir(), "trace")
	notify := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	hear := hearManager(t, manager)
	caps := "-all"
	for _, c := range unitKey(t, "CapabilityBoundingSet") {
		caps += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	p := program{args: []string{"--busy-poll"}, prepare: func(c *testbed.Cmd) {
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Fatal(err)
		}
		// Quiet about signals, and -DD so that l4fwd itself is our child, and strace not of
		// its process group: SIGUSR1 would end it, and what followed would not be seen.
		c.Args = append([]string{setpriv, "--no-new-privs", "--bounding-set", caps, "--inh-caps", caps,
			"strace", "-DD", "-f", "-q", "--signal=none", "-o", trace, c.Path}, c.Args[1:]...)
		c.Path = setpriv
		if c.Env == nil {
			c.Env = os.Environ()
		}
		c.Env = append(c.Env, "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=100000")
	}}
	services := testbed.Services(0, dsrL2, "", "wrr")
	for i := range services {
		services[i].Extra = strings.TrimPrefix(services[i].Extra+"\n    health_check: {type: ping, interval: 300ms, timeout: 300ms}", "\n    ")
	}
	d := p.start(t, r.LB, r.Config(services))
	bounded(t, d.PID())
	r.warmUp()
	d.untilHealth("up", "up")
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := d.WaitOutput(ctx, "reloaded"); err != nil {
		t.Fatal(err)
	}
	over := fmt.Sprintf("%-5d +++ exited with 0 +++\n", d.PID()) // strace fills up short numbers
	d.stop()
	await(t, "the end of the trace", func() error {
		b, err := os.ReadFile(trace)
		if err == nil && !strings.Contains(string(b), over) {
			err = errors.New("it has not ended")
		}
		return err
	})
	told := hear()
	for _, want := range []string{"READY=1", "WATCHDOG=1", "RELOADING=1", "STOPPING=1"} {
		if !slices.ContainsFunc(told, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("the service manager was not told %s but %q", want, told)
		}
	}

	allowed, families := syscallsOf(t, unitKey(t, "SystemCallFilter")), unitKey(t, "RestrictAddressFamilies")
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	call := regexp.MustCompile(`^[0-9]+ +([a-z0-9_]+)\((AF_[A-Z0-9_]+)?`)
	seen, denied := 0, make(map[string]string)
	calls, err := traced(f)
	for _, line := range calls {
		m := call.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, "= -1 EPERM") { // which l4fwd has lived without
			continue
		}
		seen++
		if !allowed[m[1]] {
			denied[m[1]] = line
		}
		if m[1] == "socket" && !slices.Contains(families, m[2]) {
			denied[m[1]+" "+m[2]] = line
		}
	}
	if err != nil || seen < 1000 {
		t.Errorf("strace saw %d calls: %v", seen, err)
	}
	for what, line := range denied {
		t.Errorf("the unit denies %s: %s", what, line)
	}
}

// traced are the calls that strace has written down, whole also where another thread's
// came between a call and what came of it.
func traced(r io.Reader) (calls []string, err error) {
	begun := make(map[string]string) // by thread
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		thread, what, _ := strings.Cut(lines.Text(), " ")
		if call, cut := strings.CutSuffix(lines.Text(), "<unfinished ...>"); cut {
			begun[thread] = call
			continue
		}
		if _, end, resumed := strings.Cut(what, " resumed>"); resumed && strings.HasPrefix(strings.TrimSpace(what), "<... ") {
			calls = append(calls, begun[thread]+end)
			delete(begun, thread)
			continue
		}
		calls = append(calls, lines.Text())
	}
	for _, call := range begun { // that never came back
		calls = append(calls, call)
	}
	return calls, lines.Err()
}

// bounded: every thread has the unit's capabilities and no more, and what it starts
// inherits none.
func bounded(t *testing.T, pid int) {
	t.Helper()
	const unit = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_IPC_LOCK
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) < 4 {
		t.Fatalf("threads %q: %v", threads, err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		for set, want := range map[string]uint64{"CapInh": 0, "CapPrm": unit, "CapEff": unit, "CapBnd": unit, "CapAmb": 0} {
			if line := fmt.Sprintf("\n%s:\t%016x\n", set, want); err == nil && !strings.Contains(string(b), line) {
				t.Errorf("%s: no %q in\n%s", path, line, b)
			}
		}
	}
}

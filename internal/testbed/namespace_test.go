package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds a wait on a busy machine.
const patience = 20 * time.Second

func newNamespace(t *testing.T, role string) *Namespace {
	t.Helper()
	ns, err := NewNamespace(role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// inode of the calling thread's network namespace.
func threadNS(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDo(t *testing.T) {
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	home := threadNS(t)
	seen := map[string]bool{home: true}
	err := a.Do(func() error {
		inA := threadNS(t)
		seen[inA] = true
		err := b.Do(func() error { seen[threadNS(t)] = true; return nil })
		if threadNS(t) != inA {
			t.Error("a nested Do moved its caller")
		}
		return err
	})
	if err != nil || len(seen) != 3 {
		t.Errorf("%v, %v", seen, err)
	}
	want := errors.New("x")
	if err := a.Do(func() error { return want }); !errors.Is(err, want) {
		t.Error(err)
	}
	if err := a.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errExited) {
		t.Errorf("Goexit: %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "boom" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = a.Do(func() error { panic("boom") })
	}()
	for range 100 {
		if got := threadNS(t); got != home {
			t.Fatalf("thread left in %s", got)
		}
	}
}

// TestMainThreadStays: the main thread, which /proc/self shows, is never the
// one that is moved and ended.
func TestMainThreadStays(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns := newNamespace(t, "main")
	for range 50 {
		mainThread := make(chan bool, 1)
		goLocked(func() {
			defer runtime.UnlockOSThread()
			mainThread <- unix.Gettid() == unix.Getpid()
		})
		if <-mainThread {
			t.Fatal("locked to the main thread")
		}
		if err := ns.Command(t.Context(), "true").Run(); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
			t.Fatalf("main thread moved from %s to %s, %v", before, after, err)
		}
	}
}

func TestSysctl(t *testing.T) {
	ns := newNamespace(t, "sysctl")
	const key = "net.ipv4.ip_forward"
	host, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Sysctl(key, "1"); err != nil {
		t.Fatal(err)
	}
	if v, err := ns.ReadSysctl(key); err != nil || v != "1" {
		t.Errorf("%q, %v", v, err)
	}
	after, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil || string(after) != string(host) {
		t.Errorf("the host's value changed: %q, %v", after, err)
	}
	if err := ns.Sysctl("net.ipv4.no_such_key", "1"); err == nil {
		t.Error("no error for an unknown key")
	}
}

// TestCloseRemovesEverything: names, links, processes.
func TestCloseRemovesEverything(t *testing.T) {
	top, err := NewTopology(TopologyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := top.LB.Command(t.Context(), "sh", "-c", "sleep 1000 & sleep 1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	inode, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if inode == threadNS(t) {
		t.Error("the child runs in the parent's namespace")
	}
	for range 2 {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, ns := range top.Namespaces() {
		if _, err := os.Stat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", ns, err)
		}
	}
	// The grandchild's new parent reaps it in its own time.
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := groupAlive(t, c.Process.Pid)
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("processes of the group still live: %v", left)
		}
	}
	if err := top.LB.Command(t.Context(), "true").Run(); err == nil {
		t.Error("started a command in a closed namespace")
	}
}

// groupAlive lists the processes of a group, zombies left out, as /proc/x/stat
// shows them: pid (name) state parent group ...
func groupAlive(t *testing.T, group int) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		var state string
		var parent, pgrp int
		if _, err := fmt.Sscan(rest, &state, &parent, &pgrp); err == nil && pgrp == group && state != "Z" {
			left = append(left, string(b))
		}
	}
	return left
}

func TestSweep(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	stale := fmt.Sprintf("%s%d-abcdef-stale", namePrefix, dead.Process.Pid)
	if err := os.WriteFile(filepath.Join(netnsDir, stale), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	mine := newNamespace(t, "mine")
	// Another package's tests may sweep at the same time and be first.
	if _, err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, stale)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", stale, err)
	}
	if _, err := os.Stat(mine.Path()); err != nil {
		t.Error("swept a live one:", err)
	}
	for name, want := range map[string]int{
		"testbed-12-ab-x": 12, "testbed-12": 0, "testbed--1-a": 0, "testbed-x-y": 0, "other-12-a-b": 0, "": 0,
	} {
		if got := makerOf(name); got != want {
			t.Errorf("makerOf(%q) = %d", name, got)
		}
	}
}

// TestSweepKills: what a killed run's programs have begun in turn still runs in its
// namespace.
func TestSweepKills(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	ns := newNamespace(t, "orphans")
	p, err := ns.StartProcess(t.Context(), ProcessOptions{Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(netnsDir, fmt.Sprintf("%s%d-abcdef-orphans", namePrefix, dead.Process.Pid))
	if err := os.WriteFile(stale, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(ns.Path(), stale, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Sweep(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Error("still runs")
	}
}

func TestSocketsStayInside(t *testing.T) {
	ns := newNamespace(t, "sock")
	l, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	to := netip.MustParseAddrPort(l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := ns.WaitTCP(ctx, to); err != nil {
		t.Error(err)
	}
	if _, err := ns.Dialer(time.Second).Dial("tcp", "localhost:1"); !errors.Is(err, errNotLiteral) {
		t.Errorf("dial by name: %v", err)
	}
}

func TestCommandOutputAndSysfs(t *testing.T) {
	a, _ := pair(t, VethOptions{Queues: 2})
	out, err := a.NS.Command(t.Context(), "cat", "/proc/net/dev").Output()
	if err != nil || !strings.Contains(string(out), "a0:") {
		t.Errorf("%s, %v", out, err)
	}
	c := a.NS.Command(t.Context(), "ls", "/sys/class/net", "/sys/class/net/a0/queues")
	c.PrivateSysfs = true
	out, err = c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "rx-1") || strings.Contains(string(out), "rx-2") {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := os.Stat("/sys/class/net/a0"); err == nil {
		t.Error("the private /sys leaked")
	}
	if _, err := a.NS.Command(t.Context(), "ls", "/nonexistent").Output(); err == nil || !strings.Contains(err.Error(), "nonexistent") {
		t.Errorf("failure without its words: %v", err)
	}
}

// TestBinds: a command sees other directories than this process, a cgroup as the root
// of all included, and nobody else does.
func TestBinds(t *testing.T) {
	a, _ := pair(t, VethOptions{})
	group, err := NewCgroup("binds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, place := t.TempDir(), filepath.Join(t.TempDir(), "made")
	if err := os.WriteFile(filepath.Join(dir, "inner"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := a.NS.Command(t.Context(), "sh", "-c", "ls "+place+" /sys/class/net; grep -c cgroup2 /proc/self/mountinfo; cat /sys/fs/cgroup/cgroup.events")
	c.Binds = map[string]string{place: dir, "/sys/fs/cgroup": group.Path}
	out, err := c.CombinedOutput()
	for _, want := range []string{"inner\n", "a0\n", "\n1\n", "populated 0\n"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %q: %v: %s", want, err, out)
		}
	}
	if left, err := os.ReadDir(place); err != nil || len(left) != 0 {
		t.Errorf("it shows here, too: %v, %v", left, err)
	}
	c = a.NS.Command(t.Context(), "true")
	c.Binds = map[string]string{place: "/nonexistent"}
	if err := c.Run(); err == nil || !strings.Contains(err.Error(), "nonexistent") {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestProcess(t *testing.T) {
	ns := newNamespace(t, "proc")
	patience := time.Minute
	run := func(script string, ready string) (*Process, error) {
		return ns.StartProcess(t.Context(), ProcessOptions{Path: "sh", Args: []string{"-c", script}, Ready: ready, ReadyTimeout: patience})
	}
	polite := `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done`
	p, err := run(polite, "ready")
	if err != nil {
		t.Fatal(err)
	}
	if !p.Running() {
		t.Error("not running")
	}
	if err := p.Terminate(patience); err != nil || !strings.Contains(p.Output(), "bye") {
		t.Errorf("%v: %s", err, p.Output())
	}
	if err := p.Terminate(time.Second); err != nil {
		t.Error("terminate after the end:", err)
	}
	if p, err = run(polite, "ready"); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after kill: %v", err)
	}
	if p, err = run(`trap '' TERM; echo ready; while :; do sleep 0.01; done`, "ready"); err != nil {
		t.Fatal(err)
	}
	if err := p.Terminate(100 * time.Millisecond); err == nil {
		t.Error("no error for a process that ignores SIGTERM")
	}
	for _, c := range []struct {
		name, script string
		patience     time.Duration
	}{{"ended before", "echo broken; exit 3", patience}, {"not ready", "echo broken; sleep 100", 5 * time.Second}} {
		patience = c.patience
		if _, err := run(c.script, "ready"); err == nil || !strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

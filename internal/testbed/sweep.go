package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// live holds the namespaces of this process, so that a signal handler and the
// end of a test run can remove what a test left behind.
var live = struct {
	sync.Mutex
	all map[*Namespace]struct{}
}{all: make(map[*Namespace]struct{})}

func register(ns *Namespace) {
	live.Lock()
	live.all[ns] = struct{}{}
	live.Unlock()
}

func unregister(ns *Namespace) {
	live.Lock()
	delete(live.all, ns)
	live.Unlock()
}

// CloseAll closes every namespace of this process that is still open and
// returns the names of those it found.
func CloseAll() ([]string, error) {
	live.Lock()
	left := make([]*Namespace, 0, len(live.all))
	for ns := range live.all {
		left = append(left, ns)
	}
	live.Unlock()
	var names []string
	var errs []error
	for _, ns := range left {
		names = append(names, ns.name)
		errs = append(errs, ns.Close())
	}
	return names, errors.Join(errs...)
}

// Sweep deletes the namespaces of earlier runs whose process no longer lives,
// and returns their names, and kills what still runs in them: a parent's death is
// signalled to its children, but not to theirs.
func Sweep() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	var swept []string
	var errs []error
	for _, e := range entries {
		pid := makerOf(e.Name())
		if pid == 0 || alive(pid) {
			continue
		}
		swept = append(swept, e.Name())
		killAllIn(filepath.Join(netnsDir, e.Name()))
		errs = append(errs, deleteNamed(e.Name()))
	}
	return swept, errors.Join(errs...)
}

// killAllIn kills all processes in a network namespace, as far as there are any.
func killAllIn(file string) {
	var ns unix.Stat_t
	if unix.Stat(file, &ns) != nil {
		return
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net") // the pattern is good
	for _, link := range links {
		var its unix.Stat_t
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && unix.Stat(link, &its) == nil && its.Ino == ns.Ino && its.Dev == ns.Dev {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
		}
	}
}

func alive(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return !errors.Is(err, fs.ErrNotExist)
}

// NeedRoot says what is missing to build namespaces, nil if nothing is.
func NeedRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces need root (running as uid %d): try sudo", os.Geteuid())
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Access("/proc/sys/net/ipv6", unix.F_OK); err != nil {
		return fmt.Errorf("kernel without IPv6: %w", err)
	}
	return nil
}

// Runner is what testing.M and goleak agree on.
type Runner interface{ Run() int }

// TB is what Up needs of testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Error(args ...any)
	Fatal(args ...any)
}

// Up builds a topology for one test and removes it at its end; failing to do
// either fails the test.
func Up(t TB, o TopologyOptions) *Topology {
	t.Helper()
	top, err := NewTopology(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	})
	return top
}

// Guard wraps the tests of a package: it fails at once, with a reason, where
// namespaces cannot be made; sweeps what crashed runs left; removes everything
// on SIGINT and SIGTERM; and fails a run that leaves a namespace open.
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }
func Guard(m Runner) Runner { return guard{m} }

// Main is os.Exit of a guarded run, for packages that do not use goleak.
func Main(m Runner) { os.Exit(Guard(m).Run()) }

type guard struct{ m Runner }

// Run implements Runner.
func (g guard) Run() (code int) {
	if err := NeedRoot(); err != nil {
		fmt.Fprintln(os.Stderr, "testbed: cannot run these tests:", err)
		return 1
	}
	if _, err := Sweep(); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	stop := closeOnSignal()
	defer stop()
	code = g.m.Run()
	names, err := CloseAll()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		code = max(code, 1)
	}
	if len(names) > 0 {
		fmt.Fprintln(os.Stderr, "testbed: tests left namespaces open:", names)
		code = max(code, 1)
	}
	if err := removeBuilds(); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
	}
	return code
}

// closeOnSignal makes an interrupted test run clean up before it ends.
func closeOnSignal() (stop func()) {
	sig := make(chan os.Signal, 1)
	quit := make(chan struct{})
	ended := make(chan struct{})
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer close(ended)
		select {
		case s := <-sig:
			_, _ = CloseAll()
			_ = removeBuilds()
			fmt.Fprintln(os.Stderr, "testbed: stopped by", s)
			os.Exit(130)
		case <-quit:
		}
	}()
	return func() {
		signal.Stop(sig)
		close(quit)
		<-ended
	}
}

package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	b := newBench(t)
	to := netip.MustParseAddrPort("10.0.0.1:8080")
	sh := func(script string) Check { return Check{Kind: Exec, Exec: []string{"sh", "-c", script}} }
	b.expect(t, sh("exit 0"), to, "good: exit status 0")
	b.expect(t, sh(`echo "$L4FWD_SERVICE $L4FWD_BACKEND $L4FWD_ADDRESS $L4FWD_PORT"; echo more`), to, `good: web 10\.0\.0\.1:8080 10\.0\.0\.1 8080`)
	b.expect(t, sh("exit 3"), to, "bad: exit status 3")
	b.expect(t, sh("echo too ill >&2; exit 1"), to, "bad: exit status 1: too ill")
	b.expect(t, sh("kill -9 $$"), to, "bad: signal: killed")
	b.expect(t, sh("yes | head -c 100000; printf '\\033[31m'; exit 1"), to, "bad: exit status 1: y")
	b.expect(t, Check{Kind: Exec, Exec: []string{"/no/such/command"}}, to, "bad: no such file or directory")
	b.expect(t, sh(`test -z "$HOME$USER" && test "$PWD" = /`), to, "good: exit status 0")
}

// Whether time is up or the command has ended by itself: its children go with it.
func TestExecKillsChildren(t *testing.T) {
	b := newBench(t)
	to := netip.MustParseAddrPort("10.0.0.1:8080")
	for _, row := range []struct {
		name, then, want string
		timeout          time.Duration
	}{
		{"time is up", "wait", "bad: no answer within 3s", 3 * time.Second},
		{"good", "echo fine", "good: fine", 0},
		{"bad", "exit 3", "bad: exit status 3", 0},
		{"killed", "kill -9 $$", "bad: signal: killed", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pid")
			script := "sleep 1000 & echo $! > " + file + "; " + row.then
			b.expect(t, Check{Kind: Exec, Exec: []string{"sh", "-c", script}, Timeout: row.timeout}, to, row.want)
			diesSoon(t, file)
		})
	}
}

// diesSoon waits for the end of the process whose id is in the file.
func diesSoon(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it has our files
			t.Fatalf("process %d lives on", pid)
		}
	}
}

// alive: there, and no zombie that nobody has waited for.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// 500 commands that hang take no more processes and threads than a container has, and
// other checks go on.
func TestHungCommands(t *testing.T) {
	hung := &Check{Kind: Exec, Exec: []string{"/bin/sleep", "1000"}, Timeout: time.Hour, Interval: 100 * time.Millisecond, FastInterval: 100 * time.Millisecond, Rise: 1, Fall: 1}
	quick := *hung
	quick.Kind = TCP
	keys := many(510)
	var mu sync.Mutex
	checks := map[Key]int{}
	e := New(Options{probe: func(ctx context.Context, target *Target) (string, error) {
		if target.Check.Kind == Exec {
			return target.probe(ctx)
		}
		mu.Lock()
		defer mu.Unlock()
		checks[target.Key]++
		return "fine", nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	before := threads(t)
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	e.Set(append(targets(hung, keys[:500]...), targets(&quick, keys[500:]...)...))
	for end := time.Now().Add(time.Minute); len(children(t)) < MaxExec; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d commands run", len(children(t)))
		}
	}
	mu.Lock()
	clear(checks)
	mu.Unlock()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if n, more := len(children(t)), threads(t)-before; n >= MaxExec+50 || more >= MaxExec+50 {
			t.Errorf("%d processes, %d threads more", n, more)
			break
		}
	}
	mu.Lock()
	for _, k := range keys[500:] {
		if n := checks[k]; n < 10 {
			t.Errorf("%d checks of %v in 3 s, with an interval of %v", n, k, quick.Interval)
		}
	}
	mu.Unlock()
	cancel()
	<-done
	noChildren(t)
}

// threads of this process.
func threads(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Commands that do not end though they were killed keep neither their checks nor, when
// they are many, the host's processes.
func TestStuckCommands(t *testing.T) {
	target := &Target{Check: &Check{Kind: Exec, Exec: []string{"/bin/true"}}}
	if _, err := target.probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	groups.Add(maxGroups)
	_, err := target.probe(t.Context())
	if !errors.Is(err, errStuck) {
		t.Errorf("with all places taken: %v", err)
	}
	groups.Add(-maxGroups)
	if _, err := target.probe(t.Context()); err != nil {
		t.Error(err)
	}

	stuck := exec.Command("/bin/sleep", "1000") // without a context, so that nobody kills it
	stuck.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	leaders.Store(target.Key, struct{}{})
	if err := runGroup(ctx, stuck, func() { leaders.Delete(target.Key) }); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	noGroups(t, 1)
	// It speaks against its own backend, is joined by no other, and is nobody else's matter.
	if _, err := target.probe(t.Context()); !errors.Is(err, errHangs) || lack(err) != "" {
		t.Errorf("while an earlier command hangs: %v", err)
	}
	other := *target
	other.Service = "another"
	if _, err := other.probe(t.Context()); err != nil {
		t.Error(err)
	}
	noGroups(t, 1)
	if err := syscall.Kill(-stuck.Process.Pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	noGroups(t, 0)
	noChildren(t)
	if _, err := target.probe(t.Context()); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}

// noGroups waits until no more than so many commands are there.
func noGroups(t *testing.T, but int32) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); groups.Load() != but; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d commands are there, want %d", groups.Load(), but)
		}
	}
}

// firstVariable makes the test binary one whose descendants become its children when
// their parents end, as those of the first process of a container do.
const firstVariable = "L4FWD_TEST_HEALTH_FIRST"

// Where nobody else reaps what commands have started: neither timeouts nor good commands
// leave zombies, nor is one waited for that does not end yet.
func TestExecLeavesNoZombies(t *testing.T) {
	if os.Getenv(firstVariable) == "" {
		// In a process of its own: the others here wait for their children themselves.
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestExecLeavesNoZombies$")
		cmd.Env = append(os.Environ(), firstVariable+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	run := func(timeout time.Duration, script string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		target := &Target{Address: netip.MustParseAddrPort("10.0.0.1:8080"), Check: &Check{Kind: Exec, Exec: []string{"sh", "-c", script}}}
		return target.probe(ctx)
	}
	for range 20 {
		if found, err := run(short, "sleep 60 & wait"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q, %v", found, err)
		}
	}
	// Also those whose parents were no leaders.
	for range 20 {
		if found, err := run(20*time.Second, "(sleep 60 & sleep 60) & echo fine"); found != "fine" || err != nil {
			t.Errorf("%q, %v", found, err)
		}
	}
	noChildren(t)

	late := exec.Command("sh", "-c", "sleep 60 >/dev/null 2>&1 &")
	late.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := late.Run(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		reapGroup(late.Process.Pid)
	}()
	select {
	case <-done:
		t.Error("one that lives is forgotten")
	case <-time.After(short):
	}
	if err := syscall.Kill(-late.Process.Pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-done
	noChildren(t)
}

// noChildren waits until this process has no children, dead ones included.
func noChildren(t *testing.T) {
	t.Helper()
	var left []string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if left = children(t); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d children are left:\n%s", len(left), strings.Join(left, ""))
		}
	}
}

// children of this process, as proc_pid_stat(5) has them.
func children(t *testing.T) (out []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent := strconv.Itoa(os.Getpid())
	for _, file := range files {
		stat, _ := os.ReadFile(file) // it may have gone
		if i := strings.LastIndex(string(stat), ") "); i >= 0 && strings.Fields(string(stat[i:]))[2] == parent {
			out = append(out, string(stat))
		}
	}
	return out
}

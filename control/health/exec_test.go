package health

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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

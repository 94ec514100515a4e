package testbed

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hangEnv makes TestHang, in a child of this test binary, build a topology with
// a process in it, tell about it and wait for its end.
const hangEnv = "TESTBED_TEST_HANG"

func TestHang(t *testing.T) {
	if os.Getenv(hangEnv) == "" {
		return // nothing to do but in the child
	}
	top := Up(t, TopologyOptions{})
	c := top.LB.Command(t.Context(), "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("child", c.Process.Pid)
	for _, ns := range top.Namespaces() {
		fmt.Println("namespace", ns.Name())
	}
	fmt.Println("up")
	time.Sleep(time.Minute)
}

// hang starts TestHang in a child and returns what it made.
func hang(t *testing.T) (cmd *exec.Cmd, namespaces []string, child int) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), exe, "-test.run=^TestHang$", "-test.v")
	cmd.Env = append(os.Environ(), hangEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan() && s.Text() != "up"; {
		kind, value, _ := strings.Cut(s.Text(), " ")
		switch kind {
		case "namespace":
			namespaces = append(namespaces, value)
		case "child":
			child, _ = strconv.Atoi(value)
		}
	}
	if len(namespaces) != 5 || child == 0 {
		t.Fatalf("child made %v and process %d", namespaces, child)
	}
	return cmd, namespaces, child
}

func exist(namespaces []string) (there []string) {
	for _, n := range namespaces {
		if _, err := os.Stat(filepath.Join(netnsDir, n)); err == nil {
			there = append(there, n)
		}
	}
	return there
}

// endsSoon fails the test if a process lives on, zombies left out.
func endsSoon(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process lives on: %s", b)
		}
	}
}

func TestInterruptCleansUp(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, namespaces, child := hang(t)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 130 {
			t.Errorf("%v: %v", sig, err)
		}
		if left := exist(namespaces); len(left) > 0 {
			t.Errorf("%v left %v", sig, left)
		}
		endsSoon(t, child)
	}
}

func TestKilledRunIsSwept(t *testing.T) {
	cmd, namespaces, child := hang(t)
	if _, err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if there := exist(namespaces); len(there) != 5 {
		t.Fatalf("only %v are left while their maker lives", there)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("killed, and ended well")
	}
	endsSoon(t, child)
	if _, err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := exist(namespaces); len(left) > 0 {
		t.Errorf("not swept: %v", left)
	}
}

// TestWithoutRoot: a plain user is told, and the run fails.
func TestWithoutRoot(t *testing.T) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// t.TempDir is below a directory others may not enter.
	for p := dir; strings.HasPrefix(p, os.TempDir()+"/"); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(dir, "test")
	if err := os.WriteFile(copied, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), copied, "-test.run=^TestHang$")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "need root") {
		t.Errorf("%v: %s", err, out)
	}
}

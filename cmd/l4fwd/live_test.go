package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/health/direct"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// The program from start to end by signals, and what a kill leaves behind.
func TestRun(t *testing.T) {
	topo, err := testbed.NewTopology(testbed.TopologyOptions{Servers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, topo.Close()) })
	servers, err := topo.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, testbed.CloseServers(servers)) })
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // some seconds, but on a busy machine
	defer cancel()
	dir := t.TempDir()
	// The journals of NICs' settings are there, which every l4fwd of the machine repairs.
	own := map[string]string{nic.DefaultDir: t.TempDir()}
	file, ready, stats := filepath.Join(dir, "l4fwd.yaml"), filepath.Join(dir, "ready"), filepath.Join(dir, "stats.json")
	socket := filepath.Join(dir, "admin.sock")
	text := topo.Config(testbed.Services(0, "full-nat", "toa", "wrr"), "admin_socket: "+socket, "max_flows: 4096", "frames_per_queue: 1024", "ring_size: 256")
	noError(t, os.WriteFile(file, []byte(text), 0o644))

	start := func() *testbed.Process {
		p, err := topo.LB.StartProcess(ctx, testbed.ProcessOptions{
			Path: path, Ready: `"msg":"ready"`,
			Args:    []string{"run", "-c", filepath.Base(file), "--log-format", "json", "--busy-poll", "--ready-file", ready, "--stats-file", stats},
			Prepare: func(c *testbed.Cmd) { c.Binds, c.Dir = own, dir }, // not where the commands are given
		})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(ctx, t, ready)
		return p
	}
	ask := func() {
		r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(topo.VIP(testbed.V4, 0), testbed.VIPPortHTTP), Requests: 10}.Run(ctx, topo.Client)
		if err != nil || r.OK != 10 {
			t.Errorf("%v %+v", err, r)
		}
	}

	p := start()
	confined(t, p.PID())
	ask()
	backend := netip.AddrPortFrom(topo.ServerAddr(testbed.V4, 0), testbed.PortHTTP).String()
	for command, want := range map[string]string{
		"status": file, "status -o json": `"reloads": 0`, "stats": "forwarded", "health": "LAST CHECK", "stats -o yaml": "handed_over:",
		"flows": "PROTOCOL", "doctor": "new enough", "doctor -o json": `"grade": "ok"`, "flows --count --client :9": "0\n", "flows kill --protocol udp": "0 flows ended",
		"services": "web-full-nat-", "backends": "up", "drops --interval 10ms -o json": "[", "top --once --interval 10ms": "backends by traffic", "reload --dry-run": "nothing changes",
		"debug goroutine": "goroutine profile", "debug profile --seconds 1 -f " + filepath.Join(dir, "cpu.pprof"): "",
		"drain " + backend: "by command since", "weight " + backend + " 3": "3 of 1", "enable " + backend: "up",
	} {
		args := append(strings.Fields(command), "--socket", socket)
		if out, err := topo.LB.Command(ctx, path, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	for command, want := range map[string]string{
		"flows --state bogus": `l4fwd: state "bogus": want`, "drain web": `l4fwd: backend "web": expected`, "flows kill": "by --yes\n",
	} {
		out, err := topo.LB.Command(ctx, path, append(strings.Fields(command), "--socket", socket)...).CombinedOutput()
		var code *exec.ExitError
		if !errors.As(err, &code) || code.ExitCode() != exitUsage || !strings.Contains(string(out), want) || strings.Contains(string(out), "PROTOCOL") {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
	watchOnTerminal(t, topo.LB.Command(ctx, path, "top", "--interval", "50ms", "--socket", socket))
	noError(t, os.WriteFile(file, []byte(strings.Replace(text, "weight: 1}", "weight: 9}", 1)), 0o644))
	noError(t, p.Signal(syscall.SIGHUP))
	noError(t, p.WaitOutput(ctx, `"msg":"reloaded"`))
	noError(t, os.WriteFile(file, []byte("colour: blue\n"+text), 0o644))
	out, err := topo.LB.Command(ctx, path, "reload", "--socket", socket).CombinedOutput()
	var code *exec.ExitError
	if !errors.As(err, &code) || code.ExitCode() != exitUsage || !strings.Contains(string(out), "colour: unknown key") {
		t.Errorf("reload of a bad file: %v: %s", err, out)
	}
	noError(t, os.WriteFile(file, []byte(text), 0o644))
	noError(t, p.Signal(syscall.SIGUSR1))
	noError(t, p.WaitOutput(ctx, `"msg":"stats"`))
	noError(t, p.Terminate(30*time.Second))
	for _, gone := range []string{ready, socket} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if out, err := topo.LB.Command(ctx, path, "status", "--socket", socket).CombinedOutput(); err == nil || !strings.Contains(string(out), "nobody listens at") {
		t.Errorf("status without a daemon: %v: %s", err, out)
	}
	b, err := os.ReadFile(stats)
	noError(t, err)
	var s struct {
		Opened   uint64
		Verdicts map[string]uint64
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Opened < 10 || s.Verdicts["forwarded"] == 0 {
		t.Errorf("%v %s", err, b)
	}
	if strings.Count(p.Output(), `"level":"error"`) != 1 { // of the bad file
		t.Error(p.Output())
	}

	// A setting that run changes.
	if out, err := topo.LB.Command(ctx, "ethtool", "-K", "l0", "rxvlan", "on").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p = start()
	p.Kill()
	leaveRules(ctx, t, topo.LB)
	cleanup := topo.LB.Command(ctx, path, "cleanup")
	cleanup.Binds = own
	out, err = cleanup.Output()
	if err != nil || !strings.Contains(string(out), "put back the settings of l0") || !strings.Contains(string(out), "\ntook away the routing rules of health checks\n") {
		t.Errorf("%v %s", err, out)
	}
	noRules(ctx, t, topo.LB)
	leaveRules(ctx, t, topo.LB)
	p = start() // the kernel has detached the program, the queues are free
	noRules(ctx, t, topo.LB)
	ask()

	// What the watchdog kills has to end by a signal: after status 2 the unit stays down.
	noError(t, p.Signal(syscall.SIGABRT))
	err = p.Wait()
	if !errors.As(err, &code) {
		t.Fatalf("after SIGABRT: %v", err)
	}
	if s, ok := code.Sys().(syscall.WaitStatus); !ok || !s.Signaled() || s.Signal() != syscall.SIGABRT {
		t.Errorf("after SIGABRT: %v", err)
	}
}

// leaveRules leaves the rules for routing that a crash leaves of health checks of direct
// return.
func leaveRules(ctx context.Context, t *testing.T, ns *testbed.Namespace) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		out, err := ns.Command(ctx, "ip", family, "rule", "add", "priority", "90", "fwmark", fmt.Sprint(direct.Mark), "table", fmt.Sprint(direct.Table)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func noRules(ctx context.Context, t *testing.T, ns *testbed.Namespace) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		out, err := ns.Command(ctx, "ip", family, "rule", "show", "table", fmt.Sprint(direct.Table)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("rules are left: %v: %s", err, out)
		}
	}
}

func waitFor(ctx context.Context, t *testing.T, path string) {
	t.Helper()
	for ctx.Err() == nil {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %s", path)
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// confined: no thread of a process that has started as root has, or can get, a capability
// but those that l4fwd keeps.
func confined(t *testing.T, pid int) {
	t.Helper()
	const keeps = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_IPC_LOCK | 1<<unix.CAP_DAC_OVERRIDE
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) < 4 {
		t.Fatalf("threads %q: %v", threads, err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		noError(t, err)
		for set, want := range map[string]uint64{"CapInh": 0, "CapPrm": keeps, "CapEff": keeps, "CapBnd": keeps, "CapAmb": 0} {
			if line := fmt.Sprintf("\n%s:\t%016x\n", set, want); !strings.Contains(string(b), line) {
				t.Errorf("%s: no %q in\n%s", path, line, b)
			}
		}
	}
}

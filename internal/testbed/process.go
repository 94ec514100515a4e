package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// builds remembers the binaries made in this test run by what they are.
var builds = struct {
	sync.Mutex
	dir  string
	done map[string]string
}{done: make(map[string]string)}

// Build compiles a main package of this module ("./cmd/l4fwd", from the module
// root), with the race detector if race is set, and returns the binary's path.
// It is made once a process and removed by Guard.
func Build(ctx context.Context, pkg string, race bool) (string, error) {
	builds.Lock()
	defer builds.Unlock()
	key := fmt.Sprintf("%s race=%t", pkg, race)
	if path, ok := builds.done[key]; ok {
		return path, nil
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	if builds.dir == "" {
		if builds.dir, err = os.MkdirTemp("", "testbed-bin-"); err != nil {
			return "", fmt.Errorf("build %s: %w", pkg, err)
		}
		// Tests start programs as other users.
		if err := os.Chmod(builds.dir, 0o755); err != nil {
			return "", fmt.Errorf("build %s: %w", pkg, err)
		}
	}
	path := filepath.Join(builds.dir, fmt.Sprintf("%s-%d", filepath.Base(pkg), len(builds.done)))
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race", "-pgo=off") // by a profile all is compiled once more, for nothing
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = root
	if !race { // as it is shipped; the race detector needs cgo
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	builds.done[key] = path
	return path, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("module root: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("module root: not inside a module")
	}
	return filepath.Dir(mod), nil
}

func removeBuilds() error {
	builds.Lock()
	defer builds.Unlock()
	if builds.dir == "" {
		return nil
	}
	dir := builds.dir
	builds.dir, builds.done = "", make(map[string]string)
	return os.RemoveAll(dir)
}

// ProcessOptions say what to run and how to tell that it is ready.
type ProcessOptions struct {
	Path string
	Args []string
	Env  []string // added to the caller's environment
	// Ready is a piece of text; the process is ready once a line of its output
	// has it. Empty: ready when started.
	Ready        string
	ReadyTimeout time.Duration // 0 = 10 s
	// Echo receives a copy of the output as it comes; nil = nobody.
	Echo         io.Writer
	PrivateSysfs bool // see Cmd
	// Prepare changes the command before it is started, its credentials for
	// instance; nil = nobody.
	Prepare func(*Cmd)
}

// Process is a running program whose output is collected. Stop it with
// Terminate or Kill, or let the namespace's Close kill it.
type Process struct {
	cmd    *Cmd
	out    *output
	waited chan struct{}
	err    error // of Wait, valid once waited is closed
}

// StartProcess runs a program in the namespace and waits until it is ready.
// What it printed is part of the error if it is not.
func (ns *Namespace) StartProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	p := &Process{
		cmd:    ns.Command(ctx, o.Path, o.Args...),
		out:    &output{ready: o.Ready, isReady: make(chan struct{}), echo: o.Echo},
		waited: make(chan struct{}),
	}
	p.cmd.PrivateSysfs = o.PrivateSysfs
	p.cmd.Env = append(os.Environ(), o.Env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if o.Prepare != nil {
		o.Prepare(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.waited)
	}()
	if o.Ready == "" {
		return p, nil
	}
	timeout := o.ReadyTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var why error
	select {
	case <-p.out.isReady:
		return p, nil
	case <-p.waited:
		why = fmt.Errorf("ended before it was ready: %w", exitError(p.err))
	case <-timer.C:
		why = fmt.Errorf("not ready after %s (waiting for %q)", timeout, o.Ready)
	case <-ctx.Done():
		why = ctx.Err()
	}
	p.Kill()
	return nil, fmt.Errorf("%s: %w\n%s", o.Path, why, p.Output())
}

// errExitedZero stands in for the nil error of a process that ended well where
// it should not have ended.
var errExitedZero = errors.New("exit status 0")

func exitError(err error) error {
	if err == nil {
		return errExitedZero
	}
	return err
}

// Output is everything the process has printed so far.
func (p *Process) Output() string { return p.out.String() }

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running reports whether the process still runs.
func (p *Process) Running() bool {
	select {
	case <-p.waited:
		return false
	default:
		return true
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.waited }

// Wait waits for the process to end and returns its exit status: an
// *exec.ExitError unless that was 0.
func (p *Process) Wait() error {
	<-p.waited
	return p.err
}

// Signal sends a signal, SIGHUP for instance.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Signal(s) }

// Terminate sends SIGTERM and waits for an exit with status 0. Whatever else
// happens within the time is an error that carries the output; after it the
// process is killed.
func (p *Process) Terminate(within time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("terminate: %w", err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.waited:
		if p.err != nil {
			return fmt.Errorf("after SIGTERM: %w\n%s", p.err, p.Output())
		}
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("still running %s after SIGTERM\n%s", within, p.Output())
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.waited
}

// WaitOutput waits until a line with text has been printed.
func (p *Process) WaitOutput(ctx context.Context, text string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(p.Output(), text) {
		select {
		case <-tick.C:
		case <-p.waited:
			if strings.Contains(p.Output(), text) {
				return nil
			}
			return fmt.Errorf("ended without printing %q: %w\n%s", text, exitError(p.err), p.Output())
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q: %w\n%s", text, ctx.Err(), p.Output())
		}
	}
	return nil
}

// output collects what a process prints.
type output struct {
	mu      sync.Mutex
	text    strings.Builder
	ready   string
	isReady chan struct{}
	seen    bool
	echo    io.Writer
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	if !o.seen && o.ready != "" && strings.Contains(o.text.String(), o.ready) {
		o.seen = true
		close(o.isReady)
	}
	if o.echo != nil {
		// A full terminal is no reason to stop the process.
		_, _ = o.echo.Write(b)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastWords is how long the output of a command is waited for when it has ended
// or was killed: somebody who has left its process group may keep it open.
const lastWords = 100 * time.Millisecond

// lastBreath is how long the end of a command that was killed is waited for. The kernel
// may be unable to end one as long as it waits for a device.
const lastBreath = time.Second

// maxGroups is how many commands may be there at a time with what they have started: as
// many that do not end though they were killed as may run.
const maxGroups = 2 * MaxExec

// groups counts them.
var groups atomic.Int32

// leaders are the keys of targets whose command has not ended. One that hangs though it was
// killed speaks against its own backend, and must not take the places of all others.
var leaders sync.Map

var errHangs = errors.New("the command of an earlier check was killed and has not ended")

var errStuck = errors.New("too many commands that were killed have not ended")

// probeExec runs the command; status 0 is good. It has no environment but PATH and
// what it is told. It is the leader of a process group, all of which is killed when
// it has ended or time is up. The first line of its output is the reason.
func (t *Target) probeExec(ctx context.Context) (string, error) {
	argv := t.Check.Exec
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"L4FWD_SERVICE=" + t.Service,
		"L4FWD_BACKEND=" + t.Backend.String(),
		"L4FWD_ADDRESS=" + t.Address.Addr().String(),
		"L4FWD_PORT=" + strconv.Itoa(int(t.Address.Port())),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lastWords
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	if _, hangs := leaders.LoadOrStore(t.Key, struct{}{}); hangs {
		return "", errHangs
	}
	err := runGroup(ctx, cmd, func() { leaders.Delete(t.Key) })
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	said := out.line()
	var status *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		if said == "" {
			said = "exit status 0"
		}
		return said, nil
	case errors.As(err, &status) && said != "":
		return "", fmt.Errorf("%w: %s", status, said)
	case errors.As(err, &status):
		return "", errors.New(status.String())
	}
	return "", fmt.Errorf("running %s: %w", argv[0], err)
}

// runGroup runs a command that leads a process group, and ends those that it leaves
// behind in it: each check might leave one more. Once ctx is done it waits for lastBreath
// at most, and cmd may be in use afterwards. over is called once the leader has ended.
func runGroup(ctx context.Context, cmd *exec.Cmd, over func()) error {
	if groups.Add(1) > maxGroups {
		groups.Add(-1)
		over()
		return errStuck
	}
	// Here, since the goroutine's thread may be one of another network namespace.
	if err := cmd.Start(); err != nil {
		groups.Add(-1)
		over()
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := endGroup(cmd)
		over()
		ended <- err
		reapGroup(cmd.Process.Pid)
		groups.Add(-1)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(lastBreath):
		return ctx.Err()
	}
}

// endGroup waits for the end of a group's leader, and kills the others.
func endGroup(cmd *exec.Cmd) error {
	leader := cmd.Process.Pid
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		// As long as nobody has reaped it, its id cannot be another group's.
		err = unix.Waitid(unix.P_PID, leader, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	if err == nil {
		_ = syscall.Kill(-leader, syscall.SIGKILL) // the leader at least is there
	}
	return cmd.Wait()
}

// reapGroup reaps those of a group whom its leader, reaped before, has left behind. They
// are our children if we are the first process, as in a container; else there are none,
// and it ends at once. No check waits for it, see lastBreath.
//
// While one of them is there, dead or alive, the group's id is nobody else's. When none is
// left, it could be that of another command only if the kernel, which gives ids in turn,
// had just come round to it again.
func reapGroup(leader int) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		pid, err := 1, error(nil)
		for pid > 0 || errors.Is(err, unix.EINTR) {
			pid, err = unix.Wait4(-leader, nil, unix.WNOHANG, nil)
		}
		if err != nil {
			return
		}
		time.Sleep(pause)
	}
}

// head keeps the first bytes of what is written to it.
type head struct{ b []byte }

// Write takes everything, and keeps as much as a reason may have.
func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), maxReason+1-len(h.b))]...)
	return len(p), nil
}

func (h *head) line() string {
	first, _, _ := bytes.Cut(bytes.TrimSpace(h.b), []byte("\n"))
	return printable(string(first))
}

package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastWords is how long the output of a command is waited for when it has ended
// or was killed: somebody who has left its process group may keep it open.
const lastWords = 100 * time.Millisecond

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
	err := runGroup(cmd)
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
// behind in it: each check might leave one more.
func runGroup(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
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

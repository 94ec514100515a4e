package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd whose child runs in a namespace, in a process group of its
// own (Ctrl-C on the terminal reaches only the parent, which decides what to
// do) and dies with the parent.
type Cmd struct {
	*exec.Cmd

	// PrivateSysfs gives the child its own mount namespace in which /sys shows
	// the namespace's devices, as `ip netns exec` does, with bpffs mounted
	// again. Set before Start.
	PrivateSysfs bool
	// Binds shows the child other directories in the places of some of this machine's:
	// by the place, what is there instead, such as a /run/l4fwd that no other process
	// has. A place that does not exist is made. It implies PrivateSysfs. Set before Start.
	Binds map[string]string

	ns     *Namespace
	done   chan struct{} // closed when the child has been waited for
	once   sync.Once
	result error
}

// Command prepares a command in the namespace. A done context kills it. A child
// that nobody waited for is killed by Close.
func (ns *Namespace) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), ns: ns, done: make(chan struct{})}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return c.Signal(syscall.SIGKILL) }
	// A grandchild that holds the output open must not hang Wait.
	c.WaitDelay = 5 * time.Second
	return c
}

// Start starts the command without waiting for it. Call Wait in the end.
func (c *Cmd) Start() error {
	c.ns.mu.Lock()
	if c.ns.closed {
		c.ns.mu.Unlock()
		return fmt.Errorf("start %s: namespace %s is closed", c.Path, c.ns.name)
	}
	c.ns.cmds[c] = struct{}{}
	c.ns.mu.Unlock()
	started := make(chan error, 1)
	goLocked(func() {
		// Never unlocked: this thread forks the child, waits for its end and
		// dies, and with it the namespaces it entered.
		err := c.startHere()
		started <- err
		if err == nil {
			<-c.done
		}
	})
	if err := <-started; err != nil {
		c.forget()
		return fmt.Errorf("start %s in %s: %w", c.Path, c.ns.name, err)
	}
	return nil
}

// startHere forks from the calling thread, which it leaves in the namespace.
func (c *Cmd) startHere() error {
	if err := unix.Setns(int(c.ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	if c.PrivateSysfs || len(c.Binds) > 0 {
		if err := privateMounts(c.Binds); err != nil {
			return err
		}
	}
	return c.Cmd.Start()
}

// privateMounts gives the calling thread and its children a /sys that shows the
// namespace's devices, and binds directories over others.
func privateMounts(binds map[string]string) (err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	// Slave, not private: an unmount in the parent still reaches the child, so
	// that no namespace is pinned by a forgotten mount.
	if err := unix.Mount("none", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	// What is bound may lie below /sys. That one goes, since what it has mounted below
	// it would still be listed in /proc/self/mountinfo.
	trees := make(map[string]int, len(binds))
	defer func() {
		for _, fd := range trees {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	for place, dir := range binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("clone the mount of %s: %w", dir, err)
		}
		trees[place] = fd
	}
	if len(binds) > 0 {
		if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount /sys: %w", err)
		}
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	for place, fd := range trees {
		if err := os.MkdirAll(place, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("bind at %s: %w", place, err)
		}
	}
	return nil
}

func (c *Cmd) forget() {
	c.ns.mu.Lock()
	delete(c.ns.cmds, c)
	c.ns.mu.Unlock()
}

// Wait waits for the command to end. Any number of goroutines may call it; all
// get the same error.
func (c *Cmd) Wait() error {
	c.once.Do(func() {
		c.result = c.Cmd.Wait()
		close(c.done)
		c.forget()
	})
	return c.result
}

// Done is closed once the command has been waited for.
func (c *Cmd) Done() <-chan struct{} { return c.done }

// Signal sends a signal to the command's process group. It reports
// os.ErrProcessDone if there is nobody left.
func (c *Cmd) Signal(s syscall.Signal) error {
	if c.Process == nil {
		return errors.New("testbed: signal before start")
	}
	select {
	case <-c.done:
		return os.ErrProcessDone // the pid may be somebody else's by now
	default:
	}
	err := unix.Kill(-c.Process.Pid, s)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// reap kills what still runs and waits for it.
func (c *Cmd) reap() {
	if c.Process == nil {
		return
	}
	_ = c.Signal(syscall.SIGKILL)
	_ = c.Wait()
}

// Run starts the command and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns its standard output. On failure the
// error carries its standard error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	if err := c.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", c.Path, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// CombinedOutput runs the command and returns both of its outputs.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

package testbed

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is a cgroup2 of its own, in which nothing runs that it was not given.
// Whoever made it closes it.
type Cgroup struct {
	// Path is its directory.
	Path string
	dir  *os.File
	home string // where the processes that Enter go back to
}

// NewCgroup makes one below the root. Like a namespace's its name is
// testbed-<pid>-<random>-<role>. It needs root.
func NewCgroup(role string) (*Cgroup, error) {
	root, err := cgroupRoot()
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", role, err)
	}
	if err := sweepCgroups(root); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", role, err)
	}
	var r [3]byte
	if _, err := rand.Read(r[:]); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", role, err)
	}
	c := &Cgroup{Path: filepath.Join(root, fmt.Sprintf("%s%d-%s-%s", namePrefix, os.Getpid(), hex.EncodeToString(r[:]), role))}
	if err := os.Mkdir(c.Path, 0o755); err != nil {
		return nil, err
	}
	if c.dir, err = os.Open(c.Path); err != nil {
		return nil, errors.Join(err, os.Remove(c.Path))
	}
	return c, nil
}

// Prepare makes a command that is not started yet start in the cgroup; see
// ProcessOptions.
func (c *Cgroup) Prepare(cmd *Cmd) {
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(c.dir.Fd())
}

// Enter moves the calling process into the cgroup, all its threads: the sockets it
// makes from then on belong there. Close moves it back.
func (c *Cgroup) Enter() error {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			c.home = path
		}
	}
	return join(c.Path)
}

// Close removes the cgroup. What still runs in it is in the way.
func (c *Cgroup) Close() error {
	if c.dir == nil {
		return nil
	}
	var errs []error
	if c.home != "" {
		errs = append(errs, join(filepath.Join(filepath.Dir(c.Path), c.home)))
	}
	errs = append(errs, c.dir.Close())
	c.dir = nil
	// The last process may still be on its way out.
	err := os.Remove(c.Path)
	for range 100 {
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
		err = os.Remove(c.Path)
	}
	return errors.Join(append(errs, err)...)
}

// join moves this process.
func join(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strconv.Itoa(syscall.Getpid())), 0); err != nil {
		return fmt.Errorf("move into cgroup: %w", err)
	}
	return nil
}

// cgroupRoot is where cgroup2 is mounted.
func cgroupRoot() (string, error) {
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
			return path, nil
		}
	}
	return "", errors.New("no cgroup2 at /sys/fs/cgroup or below")
}

// sweepCgroups removes what runs that were killed left.
func sweepCgroups(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pid := makerOf(e.Name()); pid == 0 || alive(pid) {
			continue
		}
		if err := os.Remove(filepath.Join(root, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

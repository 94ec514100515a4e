package nic

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// journal is the file that outlives a crash: which device, whose, and what was
// changed from what to what. Its owner keeps it locked (flock), which ends with the
// process however that ends, and is seen from wherever the file is: a process ID is
// another in a container.
type journal struct {
	Version   int      `json:"version"`
	Name      string   `json:"name"`
	Index     int      `json:"ifindex"`
	PermMAC   string   `json:"permanent_mac,omitempty"`
	Namespace uint64   `json:"netns"` // inode
	Boot      string   `json:"boot"`  // after a reboot all is void
	PID       int      `json:"pid"`   // where the owner is, for people
	Owner     string   `json:"owner"` // self of the process
	Changes   []change `json:"changes"`

	held *os.File // locked, if this process is the owner and it has been saved
}

const journalVersion = 1

// self is another for each process.
var self = rand.Text()

type change struct {
	knob
	Old string `json:"old"`
	New string `json:"new"`
}

// path has the namespace in it: two of them may have a NIC of the same name.
func (j *journal) path(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%s@%d.json", j.Name, j.Namespace))
}

// save replaces the file as a whole, so that a reader or a crash finds either
// the old or the new one, and returns when it is on disk. The owner's is locked
// before it is there.
func (j *journal) save(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the journal of %s: %w", j.Name, err)
		}
	}()
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+j.Name+"-*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), flock(f, unix.LOCK_EX|unix.LOCK_NB))
	if err == nil {
		err = os.Rename(f.Name(), j.path(dir))
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if j.Owner != self { // what could not be put back for another stays nobody's
		return errors.Join(f.Close(), syncDir(dir))
	}
	err = j.release()
	j.held = f
	return errors.Join(err, syncDir(dir))
}

// release ends the lock of the file that was saved last.
func (j *journal) release() error {
	if j.held == nil {
		return nil
	}
	f := j.held
	j.held = nil
	return f.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove deletes the file; that it is gone already is fine.
func (j *journal) remove(dir string) error {
	if err := os.Remove(j.path(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the journal of %s: %w", j.Name, err)
	}
	return j.release()
}

// load reads and checks a journal; it never returns one that names a knob
// other than ours.
func load(path string) (*journal, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a journal: %w", err)
	}
	j := &journal{}
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	if j.Version != journalVersion || filepath.Base(path) != filepath.Base(j.path("")) || strings.ContainsAny(j.Name, "/\x00") {
		return nil, fmt.Errorf("journal %s: not one of this version for an interface of that name", path)
	}
	for _, c := range j.Changes {
		if !known(c.knob) {
			return nil, fmt.Errorf("journal %s: unknown setting %s %q", path, c.Kind, c.Key)
		}
	}
	return j, nil
}

// lock keeps two processes from working on one directory at once.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("journal directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the journal directory: %w", err)
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the journal directory: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// flock is flock(2), which may be interrupted.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// owned reports whether the process that wrote the journal lives.
func (j *journal) owned(dir string) (bool, error) {
	f, err := os.Open(j.path(dir))
	if err != nil {
		return false, fmt.Errorf("looking for the owner of a journal: %w", err)
	}
	err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
	if closed := f.Close(); err == nil {
		return false, closed
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, fmt.Errorf("looking for the owner of %s: %w", j.path(dir), err)
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

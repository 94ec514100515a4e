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
	Bus       string   `json:"bus,omitempty"`
	Namespace uint64   `json:"netns"` // inode
	Boot      string   `json:"boot"`  // after a reboot all is void
	PID       int      `json:"pid"`   // where the owner is, for people
	Owner     string   `json:"owner"` // self of the process
	Changes   []change `json:"changes"`

	held       *os.File // locked, if this process is the owner and it has been saved
	unreadable string   // path of the file, if this is only what is understood of it
}

const journalVersion = 1

// ErrUnreadable is wrapped by what Repair returns of a journal that is damaged, or has
// something in it that another version of l4fwd has written.
var ErrUnreadable = errors.New("unreadable journal")

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
// before it is there. One that was unreadable is kept beside the new one.
func (j *journal) save(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the journal of %s: %w", j.Name, err)
		}
	}()
	j.Version = journalVersion // of what was another's only that is left which is ours too
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
		err = j.setAside()
	}
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

// aside is what the name of an unreadable journal ends in once it has been dealt with.
const aside = ".unreadable"

// setAside renames an unreadable journal: it is in nobody's way any more, and people
// can look at it.
func (j *journal) setAside() error {
	if j.unreadable == "" {
		return nil
	}
	if err := os.Rename(j.unreadable, j.unreadable+aside); err != nil {
		return fmt.Errorf("setting a journal aside: %w", err)
	}
	j.unreadable = ""
	return nil
}

// remove deletes the file, or sets it aside; that it is gone already is fine.
func (j *journal) remove(dir string) error {
	if j.unreadable != "" {
		return j.setAside()
	}
	if err := os.Remove(j.path(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the journal of %s: %w", j.Name, err)
	}
	return j.release()
}

// load reads and checks a journal. Of one that it cannot read as a whole it returns,
// with ErrUnreadable, the changes that can be put back all the same: none if the name
// is not that of the file, and never one of a knob other than ours.
func load(path string) (*journal, error) {
	j := &journal{}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading a journal: %w", err)
	}
	if err == nil {
		err = json.Unmarshal(b, j)
	}
	if err == nil && (filepath.Base(path) != filepath.Base(j.path("")) || strings.ContainsAny(j.Name, "/\x00")) {
		err = errors.New("not of an interface of that name")
	}
	if err != nil {
		return &journal{unreadable: path}, fmt.Errorf("%w %s: %w", ErrUnreadable, path, err)
	}
	var why []string
	if j.Version != journalVersion {
		why = append(why, fmt.Sprintf("of version %d, not %d", j.Version, journalVersion))
	}
	all := j.Changes
	j.Changes = nil
	for _, c := range all {
		if known(c.knob) {
			j.Changes = append(j.Changes, c)
		} else {
			why = append(why, fmt.Sprintf("unknown setting %s %q", c.Kind, c.Key))
		}
	}
	if len(why) > 0 {
		j.unreadable = path
		return j, fmt.Errorf("%w %s: %s", ErrUnreadable, path, strings.Join(why, ", "))
	}
	return j, nil
}

// leftover loads a journal that no process has any more, as load does; ErrInUse if one
// that lives has it. This process may take up its own.
func leftover(path string) (*journal, error) {
	j, err := load(path)
	if j == nil || j.Owner == self {
		return j, err
	}
	held, lookErr := owned(path)
	switch {
	case lookErr != nil:
		return nil, errors.Join(err, lookErr)
	case held && j.PID != 0:
		return nil, fmt.Errorf("%w: pid %d", ErrInUse, j.PID)
	case held:
		return nil, ErrInUse
	}
	return j, err
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
func owned(path string) (bool, error) {
	f, err := os.Open(path)
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
	return false, fmt.Errorf("looking for the owner of %s: %w", path, err)
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

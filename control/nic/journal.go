package nic

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// journal is the file that outlives a crash: which device, whose, and what was
// changed from what to what.
type journal struct {
	Version   int      `json:"version"`
	Name      string   `json:"name"`
	Index     int      `json:"ifindex"`
	PermMAC   string   `json:"permanent_mac,omitempty"`
	Namespace uint64   `json:"netns"` // inode
	Boot      string   `json:"boot"`  // after a reboot all is void
	PID       int      `json:"pid"`
	Start     uint64   `json:"start"` // of the process, in clock ticks since boot
	Changes   []change `json:"changes"`
}

const journalVersion = 1

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
// the old or the new one, and returns when it is on disk.
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
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), j.path(dir))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
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
	return nil
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
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking the journal directory: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// ownedElsewhere reports whether the process that wrote the journal lives and
// is not this one.
func (j *journal) ownedElsewhere() bool {
	if j.PID == os.Getpid() {
		return false
	}
	start, err := processStart(j.PID)
	return err == nil && start == j.Start
}

// processStart is the start time of a process, which with its pid names it for
// good: field 22 of /proc/PID/stat, counted behind the name in parentheses,
// which may hold anything. One that has ended and only waits to be noticed by
// its parent (state Z or X, field 3) is no process any more.
func processStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	stat := string(b)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const startTime = 22 - 3 // the first field here is the third
	if len(fields) <= startTime {
		return 0, fmt.Errorf("process %d: unexpected stat %q", pid, stat)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d: has ended", pid)
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return start, nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

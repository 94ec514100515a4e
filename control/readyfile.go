package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ClearReady removes the ready file that a daemon has left which was killed, so that nobody
// takes it for one of now. Run begins with it; whoever may fail before Run does it first.
// There need not be one. What is not a dead daemon's stays, and is an error.
func ClearReady(path string) error {
	if err := oursToReplace("ready file", path, 0); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist): // or there is no path
		return nil
	case err != nil:
		return fmt.Errorf("ready file: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := lockReady(f); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ready file: %w", err)
	}
	return nil
}

// lockReady locks a ready file (flock), as its daemon does for as long as it lives, however
// it ends.
func lockReady(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("ready file %s: it is that of another l4fwd, which runs", f.Name())
	case err != nil:
		return fmt.Errorf("ready file %s: locking it: %w", f.Name(), err)
	}
	return nil
}

// makeReady creates the ready file. What has got its name since the start is nothing of ours.
func (d *Daemon) makeReady() error {
	f, err := os.OpenFile(d.opt.ReadyFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("ready file: %w", err)
	}
	if err := lockReady(f); err != nil {
		return errors.Join(err, f.Close())
	}
	d.readyFile = f
	return nil
}

// removeReady removes the ready file, if there is one of ours.
func (d *Daemon) removeReady() error {
	if d.readyFile == nil {
		return nil
	}
	return errors.Join(os.Remove(d.opt.ReadyFile), d.readyFile.Close())
}

package control

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/nic"
)

// secretFile, in the journal directory, keys the sequence numbers that servers
// see. It outlives the process as their TIME_WAIT does: under another key half of
// the connections that take a port of the process before would begin behind where
// the last one ended, and be refused once, or, by their timestamps, until
// TIME_WAIT ends. It is gone after a reboot, as the clock is that goes with it.
const secretFile = "sequence-secret"

// sequences returns the secret, made at the first start, and the host's clock in
// nanoseconds since boot. A secret that cannot be kept comes with an error; it
// serves, but for the next process.
func sequences(dir string) (secret [16]byte, epoch int64, err error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return secret, 0, fmt.Errorf("clock: %w", err)
	}
	if dir == "" {
		dir = nic.DefaultDir
	}
	path := filepath.Join(dir, secretFile)
	b, err := os.ReadFile(path)
	if err == nil && len(b) == len(secret) {
		return [16]byte(b), now.Nano(), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return newSecret(), now.Nano(), fmt.Errorf("sequence numbers: %w", err)
	}
	secret = newSecret()
	if err := keep(path, secret[:]); err != nil {
		return secret, now.Nano(), fmt.Errorf("sequence numbers: %w", err)
	}
	return secret, now.Nano(), nil
}

func newSecret() (secret [16]byte) {
	_, _ = rand.Read(secret[:]) // never fails, as crypto/rand says
	return secret
}

// keep writes a file as a whole that nobody else may read.
func keep(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

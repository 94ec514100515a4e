package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteFile: half a file does not stay, and a device is not removed for its being full.
func TestWriteFile(t *testing.T) {
	half := func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := writeFile(nil, path, half); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file stays: %v", err)
	}
	noError(t, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 7)))) // /dev/full
	if err := writeFile(nil, path, half); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		t.Errorf("the device is gone: %v", err)
	}
}

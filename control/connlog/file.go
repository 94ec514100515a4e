package connlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where lines go.
type Options struct {
	Path string // its directory is made if there is none
	Size int64  // bytes that a file may have; 0: no limit
	Keep int    // files that have had them and are kept, as Path.1 (the latest), Path.2, ...
}

// patience is how long to wait after a failure, and between two looks whether the file is
// still the one at its path.
const patience = time.Second

// file is one that is set aside when it is full.
type file struct {
	opt   Options
	f     *os.File
	size  int64
	until time.Time // when to look again, or, without f, to try again
	err   error     // what failed then
}

// write appends lines, all or, with an error, none. now is the time.
func (l *file) write(now time.Time, opt Options, lines []byte) error {
	if opt != l.opt {
		_ = l.close() // what has been written has been
		l.opt, l.until = opt, time.Time{}
	}
	if now.Before(l.until) {
		if l.err != nil {
			return l.err
		}
	} else {
		l.until = now.Add(patience)
		l.err = l.look()
	}
	if l.err == nil && l.opt.Size > 0 && l.size > 0 && l.size+int64(len(lines)) > l.opt.Size {
		l.err = l.setAside()
	}
	if l.err == nil {
		l.err = l.append(lines)
	}
	if l.err != nil {
		l.err = fmt.Errorf("connection log: %w", l.err)
		l.until = now.Add(patience)
	}
	return l.err
}

// look opens the file, anew if it is no longer the one at its path.
func (l *file) look() error {
	if l.f != nil {
		mine, err := l.f.Stat()
		if err != nil {
			return errors.Join(err, l.close())
		}
		there, err := os.Stat(l.opt.Path)
		if err == nil && os.SameFile(mine, there) {
			l.size = mine.Size() // somebody may have cut it
			return nil
		}
		if err := l.close(); err != nil {
			return err
		}
	}
	return l.open()
}

// open makes the file its owner's: who talks to whom is not for everybody.
func (l *file) open() error {
	if err := os.MkdirAll(filepath.Dir(l.opt.Path), 0o750); err != nil {
		return err
	}
	// O_NONBLOCK, for a pipe would wait for a reader.
	f, err := os.OpenFile(l.opt.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", l.opt.Path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// setAside moves the full file and those before it, and begins a new one.
func (l *file) setAside() error {
	if err := l.close(); err != nil {
		return err
	}
	name := func(i int) string {
		if i == 0 {
			return l.opt.Path
		}
		return l.opt.Path + "." + strconv.Itoa(i)
	}
	if l.opt.Keep == 0 {
		if err := os.Remove(l.opt.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for i := l.opt.Keep; i > 0; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return l.open()
}

// append writes lines behind what is there; of lines that do not fit nothing stays.
func (l *file) append(lines []byte) error {
	n, err := l.f.Write(lines)
	if err == nil {
		l.size += int64(n)
		return nil
	}
	if n > 0 {
		err = errors.Join(err, l.f.Truncate(l.size))
	}
	return err
}

func (l *file) close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

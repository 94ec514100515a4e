package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// dirPrefix begins the name of the demo's directory; the maker's pid follows.
const dirPrefix = "l4fwd-demo-"

// sweep removes what demos that were killed left behind, and makes the
// directory of this one.
func (d *demo) sweep(context.Context) error {
	namespaces, err := testbed.Sweep()
	if err != nil {
		return fmt.Errorf("removing what an earlier run left: %w", err)
	}
	dirs, err := sweepDirs(os.TempDir())
	if err != nil {
		return fmt.Errorf("removing what an earlier run left: %w", err)
	}
	if len(namespaces)+len(dirs) > 0 {
		d.scr.step("swept", fmt.Sprintf("what killed runs left: namespaces %d, directories %d", len(namespaces), len(dirs)))
	}
	// os.MkdirTemp makes it with mode 0700 under a name nobody can foresee.
	d.dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-*", dirPrefix, os.Getpid()))
	if err != nil {
		return fmt.Errorf("directory for the configuration: %w", err)
	}
	d.down.add(func() error { return os.RemoveAll(d.dir) })
	return nil
}

// sweepDirs removes the directories of demos that are no more.
func sweepDirs(tmp string) ([]string, error) {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	for _, e := range entries {
		pid := dirMaker(e.Name())
		if pid == 0 || !e.IsDir() || alive(pid) {
			continue
		}
		swept = append(swept, e.Name())
		errs = append(errs, os.RemoveAll(filepath.Join(tmp, e.Name())))
	}
	return swept, errors.Join(errs...)
}

// dirMaker is the pid in a directory's name, 0 if it is none of ours.
func dirMaker(name string) int {
	rest, ours := strings.CutPrefix(name, dirPrefix)
	digits, random, found := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(digits)
	if !ours || !found || random == "" || err != nil || pid <= 0 {
		return 0
	}
	return pid
}

func alive(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return !errors.Is(err, fs.ErrNotExist)
}

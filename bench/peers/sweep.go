package peers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// filePrefix begins the name of each directory outside of a namespace; the maker's
// process follows.
const filePrefix = "l4fwd-peers-"

// sweepFiles removes directories of runs whose process does not live any more, in
// each of the directories that are there.
func sweepFiles(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			rest, ours := strings.CutPrefix(e.Name(), filePrefix)
			digits, _, _ := strings.Cut(rest, "-")
			pid, err := strconv.Atoi(digits)
			if !ours || err != nil || !e.IsDir() || unix.Kill(pid, 0) == nil {
				continue
			}
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// usable reports whether this process may run on a CPU.
func usable(cpu int) bool {
	var set unix.CPUSet
	return unix.SchedGetaffinity(0, &set) == nil && set.IsSet(cpu)
}

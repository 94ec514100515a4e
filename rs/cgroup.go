package rs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// checkCgroup fills in the root for "", and refuses what is no cgroup2.
func checkCgroup(path *string) error {
	if *path == "" {
		root, err := rootCgroup()
		if err != nil {
			return err
		}
		*path = root
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(*path, &fs); err != nil {
		return fmt.Errorf("%w: cgroup %s: %w", ErrOptions, *path, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%w: %s is no directory of the cgroup2 file system", ErrOptions, *path)
	}
	return nil
}

// hook is a program and where in a cgroup it belongs.
type hook struct {
	at ebpf.AttachType
	p  *ebpf.Program
}

// attachCgroup attaches programs to a cgroup, in their order.
func (a *attached) attachCgroup(path string, hooks []hook) error {
	for _, h := range hooks {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: h.at, Program: h.p})
		if err != nil {
			return permission(fmt.Errorf("attach %s to %s: %w", h.at, path, err))
		}
		a.links = append(a.links, l)
	}
	return nil
}

// rootCgroup finds where the cgroup2 file system is mounted: /sys/fs/cgroup, or a
// place below on hosts that have version 1 beside it.
func rootCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 file system: %w", err)
	}
	if path := cgroup2In(string(b)); path != "" {
		return path, nil
	}
	return "", errors.New("no cgroup2 file system is mounted: mount -t cgroup2 none DIR, and name DIR")
}

// cgroup2In finds it in the text of /proc/self/mountinfo, see proc(5).
func cgroup2In(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		mount, fs, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if len(fields) >= 5 && strings.HasPrefix(fs, "cgroup2 ") {
			return unescape.Replace(fields[4])
		}
	}
	return ""
}

// unescape undoes what the kernel does to blanks in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

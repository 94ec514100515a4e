package rs

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

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

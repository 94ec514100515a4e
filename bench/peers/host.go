package peers

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the machine of a run.
type Host struct {
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Kernel  string `json:"kernel"`
	Distro  string `json:"distribution"`
	Go      string `json:"go"`
	Wrk     string `json:"wrk,omitempty"`
	Iperf3  string `json:"iperf3,omitempty"`
	Virtual bool   `json:"virtual"` // a virtual machine
	// Stolen is the part of the CPUs' time that the host of a virtual machine has
	// given to others during the run, in per cent. What it took, no forwarder had.
	Stolen float64 `json:"stolen_percent"`
}

func newReport(o *Options) *Report {
	return &Report{
		Date: time.Now().UTC().Truncate(time.Second), Command: o.Command, CPUs: o.CPUs,
		Rounds: o.Rounds, Seconds: o.Duration.Seconds(), Host: thisHost(), Adopted: o.As.trials(),
	}
}

func thisHost() Host {
	h := Host{Cores: runtime.NumCPU(), Go: runtime.Version(), Kernel: "unknown"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		h.CPU = field(b, "model name", ":")
		h.Virtual = strings.Contains(field(b, "flags", ":"), " hypervisor")
	}
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		h.Distro = strings.Trim(field(b, "PRETTY_NAME", "="), `"`)
	}
	h.Wrk = version("wrk", "-v")
	h.Iperf3 = version("iperf3", "--version")
	return h
}

// cpuTimes are the ticks of all CPUs so far, in all and those stolen: the first
// line of /proc/stat (proc(5)).
func cpuTimes(stat []byte) (all, stolen uint64) {
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line) {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i > 8 { // the name; what follows is in others already
			continue
		}
		all += v
		if i == 8 {
			stolen = v
		}
	}
	return all, stolen
}

// stolenSince is the part of the time that was stolen since a reading of
// /proc/stat, in per cent.
func stolenSince(before, after []byte) float64 {
	allBefore, stolenBefore := cpuTimes(before)
	all, stolen := cpuTimes(after)
	if all <= allBefore {
		return 0
	}
	return 100 * float64(stolen-stolenBefore) / float64(all-allBefore)
}

// field is the value of the first line "name<separator>value" of a file.
func field(text []byte, name, separator string) string {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		key, value, found := strings.Cut(s.Text(), separator)
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+[-+.~a-z0-9]*`)

// version is what a program says its version is, "" if it cannot be run. Many
// end with an error after saying it.
func version(name string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return versionNumber.FindString(string(out))
}

// ownVersion is this program's revision, with a mark if it was built of changed
// files; empty if it was built with -buildvcs=false.
func ownVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	revision, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = " with changes"
		}
	}
	return revision + changed
}

package peers

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tool is a program that something needs, with the package of Debian 12 that has it,
// or what no package has.
type tool struct {
	name, pkg string
	// there looks for what is no program; nil: the name in $PATH.
	there func() bool
}

// All that is needed for something.
var (
	toolTaskset = tool{name: "taskset", pkg: "util-linux"}
	toolServer  = tool{name: "nginx", pkg: "nginx-light"}
	toolStream  = tool{name: "nginx's stream module", pkg: "libnginx-mod-stream", there: func() bool {
		_, err := streamModule(context.Background())
		return err == nil
	}}
	toolWrk     = tool{name: "wrk", pkg: "wrk"}
	toolIperf   = tool{name: "iperf3", pkg: "iperf3"}
	toolNft     = tool{name: "nft", pkg: "nftables"}
	toolHAProxy = tool{name: "haproxy", pkg: "haproxy"}
	// The sink of datagrams hangs on TCX.
	kernelTCX   = tool{name: "Linux 6.6", there: func() bool { return kernelAtLeast(6, 6) }}
	toolTestpmd = tool{name: "dpdk-testpmd", pkg: "dpdk-dev"}
	toolPMD     = tool{name: "DPDK's net_af_xdp driver", pkg: "librte-net-af-xdp23", there: func() bool {
		found, err := filepath.Glob("/usr/lib/*/dpdk/pmds-*/librte_net_af_xdp.so*")
		return err == nil && len(found) > 0
	}}
)

// kernelAtLeast compares the running kernel's version.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return releaseAtLeast(unix.ByteSliceToString(u.Release[:]), major, minor)
}

// releaseAtLeast compares a version as uname says it, such as 6.1.0-18-amd64.
func releaseAtLeast(release string, major, minor int) bool {
	var a, b int
	n, err := fmt.Sscanf(release, "%d.%d", &a, &b)
	return err == nil && n == 2 && (a > major || a == major && b >= minor)
}

func (t tool) missing() bool {
	if t.there != nil {
		return !t.there()
	}
	_, err := exec.LookPath(t.name)
	return err != nil
}

// Lack is something that could not be measured because of what is not installed.
type Lack struct {
	What    string `json:"what"` // a forwarder or a work
	Program string `json:"program"`
	Package string `json:"package"` // Debian's; empty if none has it
}

// lacks are what is missing for something, by tools.
func lacks(what string, tools []tool) (out []Lack) {
	for _, t := range tools {
		if t.missing() {
			out = append(out, Lack{what, t.name, t.pkg})
		}
	}
	return out
}

// Install is the command by which Debian has all that is missing, "" if nothing
// is.
func Install(all []Lack) string {
	var packages []string
	for _, l := range all {
		if l.Package != "" {
			packages = append(packages, l.Package)
		}
	}
	if len(packages) == 0 {
		return ""
	}
	slices.Sort(packages)
	return "apt-get install " + strings.Join(slices.Compact(packages), " ")
}

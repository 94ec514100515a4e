package demo

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// need says in plain words what the demo lacks on this machine; all of it, but
// only the first where one lack follows from another.
func need(executable string) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("the demo must be run as root, and this is uid %d: it makes network namespaces and attaches an XDP program in them (the host's own interfaces are left alone). Try: %s",
			uid, asRoot(executable))
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return fmt.Errorf("the demo lacks %s although it is root, as in a container: give it a privileged one (docker run --privileged)",
			strings.Join(missing, ", "))
	}
	return errors.Join(testbed.NeedRoot(), needAFXDP(), needXDP())
}

// asRoot is a command that runs the demo as root. `go run` has put the binary
// where it will not be found again.
func asRoot(executable string) string {
	if strings.Contains(executable, "/go-build") {
		return `sudo "$(command -v go)" run ./cmd/l4fwd demo`
	}
	return "sudo " + executable + " demo"
}

// wanted are the capabilities that namespaces, XDP and sniffers take.
var wanted = []struct {
	bit  uint
	name string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW"},
}

func missingCapabilities() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil // whatever is missing will tell by itself
	}
	var missing []string
	for _, w := range wanted {
		if data[w.bit/32].Effective&(1<<(w.bit%32)) == 0 {
			missing = append(missing, w.name)
		}
	}
	return missing
}

func needAFXDP() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("this kernel (%s) has no AF_XDP sockets: l4fwd needs Linux 5.10 or later with CONFIG_XDP_SOCKETS=y", release())
	}
	if err != nil {
		return fmt.Errorf("AF_XDP socket: %w", err)
	}
	return unix.Close(fd)
}

func needXDP() error {
	err := features.HaveProgramType(ebpf.XDP)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("this kernel (%s) cannot load XDP programs: l4fwd needs Linux 5.10 or later with CONFIG_BPF_SYSCALL=y", release())
	}
	if err != nil {
		return fmt.Errorf("loading an XDP program: %w", err)
	}
	return nil
}

// release is the kernel's version as uname -r prints it.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "of unknown version"
	}
	return unix.ByteSliceToString(u.Release[:])
}

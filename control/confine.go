package control

import (
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// kept are the capabilities that the daemon needs as long as it lives, and what for. A NIC
// that returns, or a reload, asks for nearly all that a start does: programs are loaded and
// attached, sockets opened, memory registered.
var kept = map[uint]string{
	unix.CAP_NET_ADMIN: "cap_net_admin",
	unix.CAP_NET_RAW:   "cap_net_raw",
	unix.CAP_BPF:       "cap_bpf",
	unix.CAP_PERFMON:   "cap_perfmon",
	unix.CAP_IPC_LOCK:  "cap_ipc_lock",
	// Files that the configuration names may be anybody's, the configuration too, and
	// must not be out of reach once they have been within. Who is root owns the system's
	// files without it.
	unix.CAP_DAC_OVERRIDE: "cap_dac_override",
}

// keptOf are those of have that are kept. SYS_ADMIN stands in for what is not there.
func keptOf(have capabilities) (out capabilities) {
	for bit := range kept {
		out |= have & (1 << bit)
	}
	if !have.has(unix.CAP_BPF) || !have.has(unix.CAP_PERFMON) {
		out |= have & (1 << unix.CAP_SYS_ADMIN)
	}
	return out
}

// confine gives up, for good and in all threads of the process, the capabilities that
// are not needed any more, and those that commands it starts could have. What cannot be
// given up is no reason not to forward.
func (d *Daemon) confine() {
	if !d.opt.Confine {
		return
	}
	have, err := effectiveCapabilities()
	if err == nil {
		keep := keptOf(have)
		// First the bounding set, which takes CAP_SETPCAP.
		err = errors.Join(boundCapabilities(keep), setCapabilities(keep))
		d.log.Debug("capabilities", zap.String("kept", keep.String()))
	}
	if err != nil {
		d.log.Warn("not all capabilities that are not needed have been given up", zap.Error(err))
	}
}

// boundCapabilities leaves nothing but keep in the bounding set.
func boundCapabilities(keep capabilities) error {
	for bit := uint(0); bit <= lastCapability; bit++ {
		if keep.has(bit) {
			continue
		}
		there, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(bit), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel has no more
		}
		if err == nil && there == 1 {
			err = onAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bit))
		}
		if err != nil {
			return fmt.Errorf("bounding set of capabilities: %w", err)
		}
	}
	return nil
}

// lastCapability bounds the search for those that a newer kernel may have.
const lastCapability = 63

// String names what is kept, in the manner of capabilities(7).
func (c capabilities) String() string {
	var names []string
	for bit := uint(0); bit <= lastCapability; bit++ {
		if name, ok := kept[bit]; c.has(bit) && ok {
			names = append(names, name)
		} else if c.has(bit) {
			names = append(names, fmt.Sprint(bit))
		}
	}
	return strings.Join(names, ",")
}

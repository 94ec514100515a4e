package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// preflight looks for everything that is known to go wrong, before anything is
// changed but the ready file of a dead daemon, and reports all of it.
func (d *Daemon) preflight() error {
	errs := []error{ClearReady(d.opt.ReadyFile)}
	for _, p := range d.cfg.Warnings() {
		d.log.Warn("configuration", zap.Stringer("problem", p))
	}
	errs = append(errs, checkCPUs(d.cfg.CPUs)...)
	errs = append(errs, oursToReplace("stats file", d.opt.StatsFile, math.MaxInt64))
	errs = append(errs, d.findLinks()...)
	caps, err := effectiveCapabilities()
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, missingCapabilities(caps, d.frames()*d.cfg.FrameSize)...)
	}
	return errors.Join(errs...)
}

// oursToReplace sees that nothing of somebody else's is emptied, replaced or removed. Of
// /dev/null and /dev/stdout all would be deprived. A file of ours has at most so many
// bytes: the ready file that a killed daemon leaves behind is empty.
func oursToReplace(what, path string, most int64) error {
	there, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // or there is no path
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case !there.Mode().IsRegular():
		return fmt.Errorf("%s: %s is no regular file", what, path)
	case there.Size() > most:
		return fmt.Errorf("%s %s: something else has that name; a %s is empty", what, path, what)
	}
	return nil
}

// findLinks looks the interfaces up.
func (d *Daemon) findLinks() (errs []error) {
	management := 0
	if dev, err := netlink.LinkByName(d.cfg.ManagementInterface); d.cfg.ManagementInterface != "" && err == nil {
		management = dev.Attrs().Index
	}
	for i, itf := range d.cfg.Interfaces {
		info, err := readLink(itf.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if info.Index == management {
			errs = append(errs, fmt.Errorf("interface %s is the management interface (%s), which is left to the kernel",
				itf.Name, d.cfg.ManagementInterface))
			continue
		}
		if err := checkQueues(info, d.cfg.Workers, 0); err != nil {
			errs = append(errs, err)
		}
		d.links = append(d.links, &link{name: itf.Name, id: uint8(i), ifindex: info.Index, queues: info.RXQueues})
	}
	return errs
}

// capabilities is a bit set by CAP_*.
type capabilities uint64

func (c capabilities) has(bit uint) bool { return c&(1<<bit) != 0 }

// effectiveCapabilities are those of the calling thread.
func effectiveCapabilities() (capabilities, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("reading capabilities: %w", err)
	}
	return capabilities(data[0].Effective) | capabilities(data[1].Effective)<<32, nil
}

// ErrCapability is wrapped by the errors of Run that a missing capability
// causes.
var ErrCapability = errors.New("missing capability")

// missingCapabilities names those without which nothing works, and for what.
// pinned is how many bytes of memory the kernel must lock.
func missingCapabilities(have capabilities, pinned int) (errs []error) {
	lack := func(name, why string) {
		errs = append(errs, fmt.Errorf("%w %s, to %s: run as root, or grant it with setcap or AmbientCapabilities= of the systemd unit",
			ErrCapability, name, why))
	}
	if !have.has(unix.CAP_NET_ADMIN) {
		lack("CAP_NET_ADMIN", "attach XDP and change NIC settings")
	}
	if !have.has(unix.CAP_NET_RAW) {
		lack("CAP_NET_RAW", "open AF_XDP and packet sockets")
	}
	if !have.has(unix.CAP_BPF) && !have.has(unix.CAP_SYS_ADMIN) {
		lack("CAP_BPF", "load the XDP program")
	}
	if !have.has(unix.CAP_PERFMON) && !have.has(unix.CAP_SYS_ADMIN) {
		// Without it the verifier refuses pointers with variable offsets.
		lack("CAP_PERFMON", "load the XDP program")
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && !have.has(unix.CAP_IPC_LOCK) && limit.Cur < uint64(pinned) {
		lack("CAP_IPC_LOCK", fmt.Sprintf("lock %d KiB of packet memory (the limit, ulimit -l, is %d KiB)", pinned>>10, limit.Cur>>10))
	}
	return errs
}

func checkCPUs(cpus []int) []error {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return []error{fmt.Errorf("cpus: %w", err)}
	}
	var errs []error
	for _, c := range cpus {
		if !allowed.IsSet(c) {
			errs = append(errs, fmt.Errorf("cpus: %d is not among the %d CPUs this process may use", c, allowed.Count()))
		}
	}
	return errs
}

// checkQueues refuses a NIC on which a worker would have no queue to receive
// from, or none to send by: bind accepts a queue that has no transmit side and
// then never sends. Each worker sends by the lowest of its queues. before is how
// many receive queues the NIC had at start, 0 at start.
func checkQueues(info *nic.Info, workers, before int) error {
	if before > 0 && info.RXQueues > before {
		return fmt.Errorf("%s has %d receive queues now and had %d at start: run `ethtool -L %s %s %d`, or restart l4fwd",
			info.Name, info.RXQueues, before, info.Name, channels(info, "rx"), before)
	}
	for _, side := range []struct {
		kind, name string
		now, most  int
	}{{"rx", "receive", info.RXQueues, info.MaxRX}, {"tx", "transmit", info.TXQueues, info.MaxTX}} {
		switch {
		case workers <= side.now:
		case workers > side.most:
			return fmt.Errorf("%d workers, but %s has no more than %d %s queues: start with --workers %d",
				workers, info.Name, side.most, side.name, side.most)
		default:
			return fmt.Errorf("%d workers, but %s has %d %s queues: run `ethtool -L %s %s %d`, or start with --workers %d",
				workers, info.Name, side.now, side.name, info.Name, channels(info, side.kind), workers, side.now)
		}
	}
	return nil
}

// channels is what ethtool -L calls the queues of a NIC.
func channels(info *nic.Info, kind string) string {
	if info.Combined {
		return "combined"
	}
	return kind
}

// chooseCopy settles whether packets are copied: zero copy is all or nothing
// over the NICs, since their sockets share one memory. The programs are
// attached, the queues still free.
func (d *Daemon) chooseCopy(ctx context.Context) error {
	d.zeroCopy = afxdp.ZeroCopyOff
	if d.cfg.ZeroCopy == config.ZeroCopyOff {
		return nil
	}
	for _, l := range d.links {
		err := fmt.Errorf("%w: XDP is generic", afxdp.ErrNotSupported)
		if l.program.Mode() == steer.Native {
			err = afxdp.ProbeZeroCopy(ctx, l.ifindex, 0)
		}
		switch {
		case err == nil:
		case d.cfg.ZeroCopy == config.ZeroCopyOn:
			return fmt.Errorf("zero copy was asked for: %s: %w", l.name, err)
		case errors.Is(err, afxdp.ErrNotSupported):
			d.log.Info("no zero copy, packets are copied on all interfaces", zap.String("interface", l.name), zap.Error(err))
			return nil
		default:
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	d.zeroCopy = afxdp.ZeroCopyOn
	return nil
}

package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// preflight looks for everything that is known to go wrong, before anything is
// changed, and reports all of it.
func (d *Daemon) preflight() error {
	var errs []error
	for _, p := range d.cfg.Unsupported() {
		errs = append(errs, errors.New(p.String()))
	}
	for _, p := range d.cfg.Warnings() {
		d.log.Warn("configuration", zap.String("problem", p.String()))
	}
	errs = append(errs, checkCapabilities()...)
	if d.cfg.Workers == 0 {
		d.cfg = withWorkers(d.cfg, max(1, len(d.cfg.CPUs)))
	}
	errs = append(errs, checkCPUs(d.cfg.CPUs)...)
	for i, itf := range d.cfg.Interfaces {
		l := &link{name: itf.Name, id: uint8(i)}
		info, err := nic.ReadInfo(netns.None(), itf.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.ifindex, l.queues = info.Index, info.RXQueues
		if err := checkQueues(l, info, d.cfg.Workers); err != nil {
			errs = append(errs, err)
		}
		d.links = append(d.links, l)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.chooseCopy()
}

// withWorkers is the configuration with the number of workers settled.
func withWorkers(c *config.Config, n int) *config.Config {
	out := *c
	out.Workers = n
	return &out
}

// needed are the capabilities without which nothing works, and for what.
var needed = []struct {
	bit  uint
	name string
	why  string
}{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "attach XDP, change NIC settings"},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "open AF_XDP and packet sockets"},
}

func checkCapabilities() []error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return []error{fmt.Errorf("capabilities: %w", err)}
	}
	has := func(bit uint) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	var errs []error
	for _, n := range needed {
		if !has(n.bit) {
			errs = append(errs, fmt.Errorf("missing capability %s (to %s): run as root, or grant it with setcap or in the systemd unit", n.name, n.why))
		}
	}
	if !has(unix.CAP_BPF) && !has(unix.CAP_SYS_ADMIN) {
		errs = append(errs, errors.New("missing capability CAP_BPF (to load the XDP program): run as root, or grant it with setcap or in the systemd unit"))
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

// checkQueues refuses a NIC on which a worker would have no queue.
func checkQueues(l *link, info *nic.Info, workers int) error {
	if info.RXQueues >= workers {
		if l.queues != 0 && info.RXQueues < l.queues {
			return fmt.Errorf("%s has %d queues now and had %d at start: restart l4fwd to serve it", info.Name, info.RXQueues, l.queues)
		}
		return nil
	}
	kind := "rx"
	if info.Combined {
		kind = "combined"
	}
	if workers > info.MaxRX {
		return fmt.Errorf("%d workers, but %s has no more than %d receive queues: start with --workers %d", workers, info.Name, info.MaxRX, info.MaxRX)
	}
	return fmt.Errorf("%d workers, but %s has %d receive queues: run `ethtool -L %s %s %d`, or start with --workers %d",
		workers, info.Name, info.RXQueues, info.Name, kind, workers, info.RXQueues)
}

// chooseCopy settles whether packets are copied: zero copy is all or nothing
// over the NICs, since their sockets share one memory.
func (d *Daemon) chooseCopy() error {
	if d.cfg.ZeroCopy == config.ZeroCopyOff || d.cfg.XDPMode == config.XDPGeneric {
		d.zeroCopy = afxdp.ZeroCopyOff
		if d.cfg.ZeroCopy == config.ZeroCopyOn {
			return errors.New("zero_copy: on needs XDP in the driver, but xdp_mode is generic")
		}
		return nil
	}
	d.zeroCopy = afxdp.ZeroCopyOn
	for _, l := range d.links {
		err := afxdp.ProbeZeroCopy(context.Background(), l.ifindex, 0)
		switch {
		case err == nil:
		case d.cfg.ZeroCopy == config.ZeroCopyOn:
			return fmt.Errorf("zero_copy: on: %s: %w", l.name, err)
		case errors.Is(err, afxdp.ErrNotSupported):
			d.log.Info("no zero copy, packets are copied on all interfaces", zap.String("interface", l.name), zap.Error(err))
			d.zeroCopy = afxdp.ZeroCopyOff
			return nil
		default:
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// Threads sets how many threads may run Go code: one for each worker, which
// spins, and two for the rest, or the control plane would wait for preemption.
// GOMAXPROCS in the environment has the last word.
func Threads(workers int) {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < workers+2 {
		runtime.GOMAXPROCS(workers + 2)
	}
}

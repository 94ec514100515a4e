package peers

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// CPUs are the two that a measurement has.
type CPUs struct {
	Load    int `json:"load"`    // generator, clients, servers
	Forward int `json:"forward"` // the forwarder
}

// Near says where the kernel takes in the packets that come to the forwarder.
type Near string

// The places.
const (
	// NearSender is veth as it is: in softirqs of the CPU that sends.
	NearSender Near = "softirq of the sender"
	// NearRPS hands them to the forwarder's CPU by receive packet steering.
	NearRPS Near = "RPS to the forwarder's CPU"
	// NearThreadLoad and NearThreadForward are threads of threaded NAPI, pinned to
	// the load's or to the forwarder's CPU.
	NearThreadLoad    Near = "NAPI thread on the load's CPU"
	NearThreadForward Near = "NAPI thread on the forwarder's CPU"
)

// Far says where the kernels of client and server take in what the forwarder
// sends them.
type Far string

// The places.
const (
	FarSender Far = "softirq of the sender"
	// FarRPS hands it to the load's CPU, where a client of flesh would have it.
	FarRPS Far = "RPS to the load's CPU"
)

// Arrangement is where work of the kernel is done that decides, on veth, how fast
// a forwarder is. Each forwarder gets the one that is best for it.
type Arrangement struct {
	Near Near `json:"near"`
	Far  Far  `json:"far"`
}

// String says both.
func (a Arrangement) String() string { return "in: " + string(a.Near) + "; out: " + string(a.Far) }

// arrange sets what can be set before the forwarder is there.
func (n *network) arrange(ctx context.Context, a Arrangement) error {
	n.now = a
	near, far := -1, -1
	if a.Near == NearRPS {
		near = n.cpus.Forward
	}
	if a.Far == FarRPS {
		far = n.cpus.Load
	}
	for d, cpu := range map[*testbed.Device]int{n.c0: far, n.s0: far, n.l0: near, n.l1: near} {
		if err := setSysfs(ctx, d, "queues/rx-0/rps_cpus", sysfsMask(cpu)); err != nil {
			return err
		}
	}
	return nil
}

// settle sets the rest, when the forwarder is up: a veth has NAPI, and a thread
// for it, only while it has an XDP program.
func (n *network) settle(ctx context.Context) error {
	cpu, threaded := n.cpus.Load, "1"
	switch n.now.Near {
	case NearThreadForward:
		cpu = n.cpus.Forward
	case NearThreadLoad:
	default:
		threaded = "0"
	}
	for _, d := range []*testbed.Device{n.l0, n.l1} {
		link, err := d.NS.Netlink().LinkByName(d.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		if x := link.Attrs().Xdp; x == nil || !x.Attached {
			continue
		}
		if err := setSysfs(ctx, d, "threaded", threaded); err != nil {
			return err
		}
		if threaded == "0" {
			continue
		}
		if err := pinNAPI(d, cpu); err != nil {
			return err
		}
	}
	return nil
}

// pinNAPI keeps the threads of a device's NAPI on a CPU.
func pinNAPI(d *testbed.Device, cpu int) error {
	pids, err := napiThreads(d)
	if err != nil {
		return fmt.Errorf("NAPI threads of %s: %w", d.Name, err)
	}
	if len(pids) == 0 {
		return fmt.Errorf("%s has no NAPI thread", d.Name)
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, pid := range pids {
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			return fmt.Errorf("NAPI thread %d of %s to CPU %d: %w", pid, d.Name, cpu, err)
		}
	}
	return nil
}

// setSysfs writes a setting of a device. The caller's /sys shows other devices.
func setSysfs(ctx context.Context, d *testbed.Device, file, value string) error {
	cmd := d.NS.Command(ctx, "sh", "-ec", `echo "$1" >"/sys/class/net/$2/$3"`, "sh", value, d.Name, file)
	cmd.PrivateSysfs = true
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s of %s: %w: %s", file, d.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// Grade is how bad a finding is.
type Grade string

// The grades.
const (
	Good Grade = "ok"
	Warn Grade = "warn" // it works, but worse than it could, or not always
	Fail Grade = "fail" // l4fwd does not start, or some traffic does not get through
)

// Finding is what a look at one thing has shown.
type Finding struct {
	Check   string `json:"check"`             // the kind of thing, one word
	Subject string `json:"subject,omitempty"` // which one
	Grade   Grade  `json:"grade"`
	Text    string `json:"text"`
	// Command mends it, for a shell, as root; empty if none will do.
	Command string `json:"command,omitempty"`
}

// Diagnose looks at the host as it is for a configuration, in the network namespace of
// the calling thread, and changes nothing. running is what the l4fwd that serves the
// interfaces already says of itself, nil if there is none. It asks etcd where the
// configuration has one, for some seconds at most, and with probe the interfaces' networks
// who else has its addresses. It is for a goroutine that does nothing else meanwhile.
func Diagnose(ctx context.Context, cfg *config.Config, running *admin.Status, probe bool) ([]Finding, error) {
	d, err := New(cfg, Options{})
	if err != nil {
		return nil, err
	}
	if d.ns, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("finding the network namespace: %w", err)
	}
	defer func() { _ = d.ns.Close() }()
	x := &exam{d: d, spec: plan.Spec(d.cfg, nil), running: running != nil, status: running, own: map[netip.Addr]netlink.Addr{}}
	found := func() error { return x.discovery(ctx) } // first, for it adds to the configuration
	duplicates := func() error {
		if probe {
			return x.duplicates(ctx)
		}
		return nil
	}
	for _, look := range []func() error{found, x.kernel, x.interfaces, x.capabilities, x.addresses, x.routes, x.forwarding, x.cpus, x.isolation, x.clock, x.memory, x.copying, x.listeners, duplicates} {
		if err := errors.Join(ctx.Err(), look()); err != nil {
			return nil, err
		}
	}
	return x.found, nil
}

// exam is one Diagnose.
type exam struct {
	d       *Daemon        // that does not run: it knows the configuration
	spec    dataplane.Spec // services in their places
	running bool
	status  *admin.Status               // of the one that runs, nil if none does
	own     map[netip.Addr]netlink.Addr // the host's addresses
	found   []Finding
}

func (x *exam) add(check, subject string, g Grade, command, format string, args ...any) {
	x.found = append(x.found, Finding{Check: check, Subject: subject, Grade: g, Text: fmt.Sprintf(format, args...), Command: command})
}

// shown is a command within the text of an error.
var shown = regexp.MustCompile("`([^`]+)`|with: (.+)$")

// commandIn is the command that an error names, if it does.
func commandIn(err error) string {
	m := shown.FindStringSubmatch(err.Error())
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}

// kernel: what XDP needs of it.
func (x *exam) kernel() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		x.add("kernel", release, Warn, "", "cannot tell which version this is; 5.10 is needed")
		return nil
	}
	switch n := major<<8 | minor; {
	case n < 5<<8|10:
		x.add("kernel", release, Fail, "", "XDP's rule sets need Linux 5.10")
	case n < 5<<8|11 && x.d.cfg.BusyPoll:
		x.add("kernel", release, Fail, "", "busy_poll needs Linux 5.11")
	default:
		x.add("kernel", release, Good, "", "new enough")
	}
	return nil
}

// interfaces: those of the configuration, and whether workers and frames suit them.
func (x *exam) interfaces() error {
	seen := len(x.found)
	for i, itf := range x.d.cfg.Interfaces {
		info, err := readLink(itf.Name)
		if err != nil {
			x.add("interface", itf.Name, Fail, commandIn(err), "%v", err)
			continue
		}
		x.d.links = append(x.d.links, &link{name: itf.Name, id: uint8(i), ifindex: info.Index, queues: info.RXQueues})
		if itf.Name == x.d.cfg.ManagementInterface {
			x.add("interface", itf.Name, Fail, "", "it is the management interface, which is left to the kernel")
		}
		if err := x.state(info); err != nil {
			return err
		}
		if err := checkQueues(info, x.d.cfg.Workers, 0); err != nil {
			x.add("queues", info.Name, Fail, commandIn(err), "%v", err)
		}
		if err := nic.CheckMTU(info.Name, info.MTU, x.d.cfg.FrameSize-unix.XDP_PACKET_HEADROOM); err != nil {
			x.add("mtu", info.Name, Fail, commandIn(err), "%v", err)
		}
		x.spread(info)
		if len(x.found) == seen {
			x.add("interface", info.Name, Good, "", "%s, up, %d receive and %d transmit queues, MTU %d", info.Driver, info.RXQueues, info.TXQueues, info.MTU)
		}
		seen = len(x.found)
	}
	x.add("firewall", "", Good, "", "what services take passes by nftables, iptables and the host's connection tracking: rules there do not hold for it")
	return nil
}

// state: whether an interface can be used.
func (x *exam) state(info *nic.Info) error {
	dev, err := netlink.LinkByIndex(info.Index)
	if err != nil {
		return fmt.Errorf("interface %s: %w", info.Name, err)
	}
	if dev.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		x.add("interface", info.Name, Fail, "", "it has no carrier: a cable, or the other end, is missing")
	}
	if info.XDPProgram != 0 && !x.running {
		x.add("xdp", info.Name, Fail, "ip link set dev "+info.Name+" xdp off", "another XDP program (id %d) is attached, and there can be one", info.XDPProgram)
	}
	return x.offloads(info, dev.Attrs())
}

// offloads: what makes packets something else than what was sent. VLAN tags and LRO
// are not looked at: a daemon switches those off itself, and back on at its end.
func (x *exam) offloads(info *nic.Info, a *netlink.LinkAttrs) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer e.Close()
	on := func(name, feature string) bool {
		all, err := e.Features(name)
		return err == nil && all[feature]
	}
	if on(info.Name, "rx-gro-hw") {
		x.add("offload", info.Name, Warn, "ethtool -K "+info.Name+" rx-gro-hw off", "it may merge packets before XDP sees them")
	}
	if info.Driver != "veth" || a.NetNsID >= 0 { // its other end is in another namespace
		return nil
	}
	peer, err := netlink.LinkByIndex(a.ParentIndex)
	if err == nil && on(peer.Attrs().Name, "tx-checksum-ip-generic") {
		name := peer.Attrs().Name
		x.add("offload", info.Name, Warn, "ethtool -K "+name+" tx off",
			"its other end, %s, leaves checksums of the host's own packets to hardware that a veth has not: they arrive with wrong ones", name)
	}
	return nil
}

// spread: whether the NIC shares packets out as the workers do.
func (x *exam) spread(info *nic.Info) {
	if x.d.cfg.Workers < 2 {
		return
	}
	if info.RSS == nil || info.RSS.Function&nic.Toeplitz == 0 {
		x.add("rss", info.Name, Warn, "", "how it spreads packets cannot be read: workers hand packets to each other more often")
		return
	}
	const ports = nic.HashSrcPort | nic.HashDstPort
	for _, f := range []struct {
		name   string
		fields nic.HashFields
	}{{"udp4", info.RSS.UDP4}, {"udp6", info.RSS.UDP6}} {
		if f.fields != 0 && f.fields&ports != ports {
			x.add("rss", info.Name, Warn, "ethtool -N "+info.Name+" rx-flow-hash "+f.name+" sdfn",
				"the ports of %s are not hashed: all that one client sends to one service comes to one worker", f.name)
		}
	}
}

// capabilities: of this process, which is who would run l4fwd.
func (x *exam) capabilities() error {
	have, err := effectiveCapabilities()
	if err != nil {
		return err
	}
	missing := missingCapabilities(have, x.d.frames()*x.d.cfg.FrameSize)
	for _, err := range missing {
		x.add("capabilities", "", Fail, "", "%v", err)
	}
	if len(missing) == 0 {
		x.add("capabilities", "", Good, "", "all that are needed")
	}
	return nil
}

// addresses: that the kernel and l4fwd do not want the same.
func (x *exam) addresses() error {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			x.own[ip.Unmap()] = a
			x.d.host = append(x.d.host, ip.Unmap())
		}
	}
	before := len(x.found)
	_, refused := plan.Rules(x.d.cfg, x.d.host)
	for _, a := range refused {
		x.add("address", a.String(), Fail, x.unassign(a), "this local address is the host's own: %v", refusedLocals([]netip.Addr{a}))
	}
	ports, own, err := x.d.hostPorts()
	if err != nil {
		return err
	}
	for _, err := range ports.conflicts(x.d.cfg, own) {
		x.add("ports", "", Fail, "", "%v", err)
	}
	if err := ports.lent(x.d.cfg, own); err != nil {
		x.add("ports", "", Warn, commandIn(err), "%v", err)
	}
	if len(x.found) == before {
		x.add("address", "", Good, "", "no local address and no port of a service is the host's")
	}
	return nil
}

// unassign takes an address from the host.
func (x *exam) unassign(a netip.Addr) string {
	dev, err := netlink.LinkByIndex(x.own[a].LinkIndex)
	if err != nil {
		return ""
	}
	ones, _ := x.own[a].Mask.Size()
	return fmt.Sprintf("ip addr del %v/%d dev %s", a, ones, dev.Attrs().Name)
}

// forwarding: what the kernel does with packets for VIPs while l4fwd is away.
func (x *exam) forwarding() error {
	for i := range x.d.cfg.Services {
		s := &x.d.cfg.Services[i]
		vip := s.Address.Addr()
		name, family := "/proc/sys/net/ipv4/ip_forward", ""
		if vip.Is6() {
			name, family = "/proc/sys/net/ipv6/conf/all/forwarding", "-6 "
		}
		if _, own := x.own[vip]; own || s.Mode == config.SNAT || read(name) != "1" || x.has("forwarding", vip.String()) {
			continue
		}
		if r, err := netlink.RouteGet(vip.AsSlice()); err != nil || len(r) == 0 {
			continue // a blackhole, or no way at all: the kernel drops them
		}
		x.add("forwarding", vip.String(), Warn, fmt.Sprintf("ip %sroute add blackhole %v/%d", family, vip, vip.BitLen()),
			"IP forwarding is on: while l4fwd is not running the kernel sends packets for this VIP on, and they may circle")
	}
	return nil
}

// has reports whether there is such a finding already.
func (x *exam) has(check, subject string) bool {
	for _, f := range x.found {
		if f.Check == check && f.Subject == subject {
			return true
		}
	}
	return false
}

// cpus: that workers have theirs for themselves.
func (x *exam) cpus() error {
	before := len(x.found)
	for _, err := range checkCPUs(x.d.cfg.CPUs) {
		x.add("cpus", "", Fail, "", "%v", err)
	}
	if len(x.d.cfg.CPUs) == 0 {
		x.add("cpus", "", Warn, "", "workers are not bound to CPUs: name some in cpus")
	}
	var names []string
	for _, l := range x.d.links {
		names = append(names, l.name)
	}
	uses, err := nic.ReadCoreUses(x.d.ns, names)
	if err != nil {
		x.add("cpus", "", Warn, "", "looking at the interfaces' interrupts: %v", err)
	}
	c := nic.Cores{Workers: x.d.workerCPUs(), Allowed: allowedCPUs(), BusyPoll: x.d.cfg.BusyPoll, Uses: uses}
	for _, w := range c.Warnings() {
		x.add("cpus", "", Warn, w.Command, "%s", w.Text)
	}
	for _, cpu := range x.d.cfg.CPUs {
		dir := filepath.Join("/sys/devices/system/cpu", "cpu"+strconv.Itoa(cpu), "cpufreq/scaling_governor")
		if g := read(dir); g != "" && g != "performance" {
			x.add("cpus", strconv.Itoa(cpu), Warn, "echo performance > "+dir, "its frequency follows the governor %s", g)
		}
	}
	if len(x.found) == before {
		x.add("cpus", "", Good, "", "workers have CPUs of their own")
	}
	return nil
}

// clock: that to read it costs no system call.
func (x *exam) clock() error {
	const dir = "/sys/devices/system/clocksource/clocksource0/"
	now := read(dir + "current_clocksource")
	switch now {
	case "", "tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page":
		x.add("clock", now, Good, "", "read without a system call")
	default:
		command := ""
		if strings.Contains(" "+read(dir+"available_clocksource")+" ", " tsc ") {
			command = "echo tsc > " + dir + "current_clocksource"
		}
		x.add("clock", now, Warn, command, "reading it is a system call, which workers make once a burst")
	}
	return nil
}

// read is a small file of the kernel's, "" if it is not there.
func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

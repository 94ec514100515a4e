package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/announce"
	"github.com/l4fwd/l4fwd/control/nic"
)

// flowBytes is what a flow takes in the flow table (docs/architecture.md).
const flowBytes = 172

// memory: whether packets and flows can lie in huge pages.
func (x *exam) memory() error {
	info, err := meminfo()
	if err != nil {
		return err
	}
	size := info["Hugepagesize"] << 10
	if size == 0 {
		x.add("memory", "", Good, "", "this kernel has no huge pages")
		return nil
	}
	tables := (x.d.cfg.MaxFlows/x.d.cfg.Workers + 1) * flowBytes
	want := pages(x.d.frames()*x.d.cfg.FrameSize, size) + x.d.cfg.Workers*pages(tables, size)
	have, what := info["HugePages_Free"], "free"
	if x.running {
		have, what = info["HugePages_Total"], "reserved"
	}
	if have >= want {
		x.add("memory", "", Good, "", "%d huge pages are %s, %d are needed for packets and flows", have, what, want)
		return nil
	}
	x.add("memory", "", Warn, fmt.Sprintf("sysctl -w vm.nr_hugepages=%d", info["HugePages_Total"]+want-have),
		"%d huge pages are %s, packets and flows take %d: without them l4fwd asks for transparent ones, which the kernel may not have; many flows then cost more time. Reserve them before l4fwd starts",
		have, what, want)
	return nil
}

func pages(bytes, size int) int { return (bytes + size - 1) / size }

// meminfo is /proc/meminfo without units: kB, or numbers.
func meminfo() (out map[string]int, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out = make(map[string]int)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				out[name] = n
			}
		}
	}
	return out, nil
}

// isolation: that the kernel keeps others, and its own tick, off the workers' CPUs.
func (x *exam) isolation() error {
	if len(x.d.cfg.CPUs) == 0 {
		return nil // cpus says what is to be said
	}
	const dir = "/sys/devices/system/cpu/"
	for _, c := range []struct{ parameter, without string }{
		{"isolated", "the scheduler gives them to other programs too: put isolcpus=%s on the kernel's command line, or them into an isolated cpuset"},
		{"nohz_full", "the kernel's tick interrupts a worker there, some hundred times a second: put nohz_full=%s on the kernel's command line"},
	} {
		kept := parseCPUs(read(dir + c.parameter))
		var bare []string
		for _, cpu := range x.d.cfg.CPUs {
			if !slices.Contains(kept, cpu) {
				bare = append(bare, strconv.Itoa(cpu))
			}
		}
		list := strings.Join(bare, ",")
		if list == "" {
			x.add("isolation", c.parameter, Good, "", "the workers' CPUs are")
			continue
		}
		x.add("isolation", c.parameter, Warn, "", "CPUs %s are not: "+c.without, list, list)
	}
	return nil
}

// parseCPUs reads a list of the kernel's such as "2-4,7".
func parseCPUs(s string) (out []int) {
	for _, r := range parseReserved(s) {
		for cpu := int(r.First); cpu <= int(r.Last); cpu++ {
			out = append(out, cpu)
		}
	}
	return out
}

// copying: what the drivers can do without a copy, against what is asked for.
func (x *exam) copying() error {
	asked := x.d.cfg.ZeroCopy
	if asked == config.ZeroCopyOff || len(x.d.links) == 0 {
		return nil
	}
	var can, cannot []string
	for _, l := range x.d.links {
		f, known := nic.XDPFeatures(l.ifindex)
		switch {
		case !known:
			x.add("zero_copy", l.name, Good, "", "this kernel does not say what the driver can do: l4fwd tries when it starts")
			return nil
		case f&nic.XDPZeroCopy != 0 && x.d.cfg.XDPMode != config.XDPGeneric:
			can = append(can, l.name)
		default:
			cannot = append(cannot, l.name)
		}
	}
	names := strings.Join(cannot, ", ")
	switch {
	case len(cannot) == 0:
		x.add("zero_copy", "", Good, "", "all drivers have it")
	case asked == config.ZeroCopyOn:
		x.add("zero_copy", names, Fail, "", "zero_copy is on, and the driver, or generic XDP, cannot: take it out of the configuration, or another NIC")
	case len(can) > 0:
		x.add("zero_copy", names, Warn, "", "the driver cannot, and so packets are copied on %s too, which could: all share one memory", strings.Join(can, ", "))
	default:
		x.add("zero_copy", names, Good, "", "the driver cannot: packets are copied")
	}
	return nil
}

// listeners: that nobody else has the ports and the socket of the daemon itself.
func (x *exam) listeners() error {
	if x.running {
		return nil // they are its own
	}
	ports, err := readHostPorts("/proc/thread-self/net", "/proc/sys/net/ipv4")
	if err != nil {
		return err
	}
	before := len(x.found)
	c := x.d.cfg
	for _, l := range []struct {
		key  string
		addr netip.AddrPort
	}{{"metrics_listen", c.MetricsListen}, {"web_listen", c.WebListen}, {"admin_listen", c.AdminListen}} {
		if !l.addr.IsValid() || l.addr.Port() == 0 {
			continue
		}
		a := l.addr.Addr().Unmap()
		for _, b := range ports.bound {
			if b.proto == config.TCP && b.port == l.addr.Port() && (b.takes(a) || a.IsUnspecified()) {
				x.add("listen", l.key, Fail, fmt.Sprintf("ss -ltnp sport = :%d", l.addr.Port()),
					"another program listens at %v already; the command says which: stop it, or take another port", netip.AddrPortFrom(b.addr, b.port))
				break
			}
		}
		if _, own := x.own[a.WithZone("")]; !own && !a.IsUnspecified() && !a.IsLoopback() {
			x.add("listen", l.key, Fail, "", "%v is no address of this host: nobody can listen there", a)
		}
	}
	if c.AdminSocket != "" {
		if conn, err := net.DialTimeout("unix", c.AdminSocket, time.Second); err == nil {
			_ = conn.Close()
			x.add("listen", "admin_socket", Warn, "", "another l4fwd answers at %s: this one would take no commands", c.AdminSocket)
		}
	}
	if len(x.found) == before {
		x.add("listen", "", Good, "", "nobody else listens where l4fwd will")
	}
	return nil
}

// probeWait is how long somebody may take to say that he has an address.
const probeWait = time.Second

// duplicates: whether somebody else on the interfaces has a VIP or a local address, for a
// second each.
func (x *exam) duplicates(ctx context.Context) error {
	cfg := x.d.cfg
	var addrs []netip.Addr
	add := func(a netip.Addr) {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	for i := range cfg.Services {
		if s := &cfg.Services[i]; s.Mode != config.SNAT { // whose VIP is the other half's
			add(s.Address.Addr())
		}
	}
	for a := range cfg.Locals() {
		add(a)
	}
	if len(addrs) > announce.MaxProbes {
		x.add("duplicate", "", Warn, "", "%d of %d addresses are asked for, no more at a time", announce.MaxProbes, len(addrs))
		addrs = addrs[:announce.MaxProbes]
	}
	devices := make([]netlink.Link, 0, len(cfg.Interfaces))
	for _, itf := range cfg.Interfaces {
		dev, err := netlink.LinkByName(itf.Name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", itf.Name, err)
		}
		devices = append(devices, dev)
	}
	for _, dev := range devices {
		found, err := announce.Probe(ctx, dev.Attrs().Index, dev.Attrs().HardwareAddr, addrs, probeWait)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			mac, taken := found[a]
			ours := slices.ContainsFunc(devices, func(d netlink.Link) bool { return d.Attrs().HardwareAddr.String() == mac.String() })
			if taken && !ours {
				x.add("duplicate", a.String(), Fail, fmt.Sprintf("arping -D -c 2 -I %s %v", dev.Attrs().Name, a),
					"on %s somebody else has it, at the MAC address %v: two machines must not answer for one address", dev.Attrs().Name, mac)
				if last := &x.found[len(x.found)-1]; a.Is6() {
					last.Command = fmt.Sprintf("ndisc6 -1 %v %s", a, dev.Attrs().Name)
				}
			}
		}
	}
	if !slices.ContainsFunc(x.found, func(f Finding) bool { return f.Check == "duplicate" && f.Grade == Fail }) {
		x.add("duplicate", "", Good, "", "nobody else has answered for %d VIPs and local addresses", len(addrs))
	}
	return nil
}

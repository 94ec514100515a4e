package control

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
)

// routes: that there is a way to every backend, out of an interface of the
// configuration, and who is next on it answers.
func (x *exam) routes() error {
	devices, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("interfaces: %w", err)
	}
	seen := map[netip.Addr]bool{}
	for i := range x.d.cfg.Services {
		s := &x.d.cfg.Services[i]
		if s.Mode == config.SNAT {
			continue // it sends backends nothing
		}
		for _, b := range s.Backends {
			a := b.Address.Addr()
			dev, err := x.route(a, devices, seen[a])
			if err != nil {
				return err
			}
			if seen[a] = true; dev != nil && s.Mode.Direct() {
				x.direct(i, a, dev)
			}
		}
	}
	return nil
}

// route is the way to one backend, and the device that it leads out of, nil if it does
// not get there. What has been seen before is not said again.
func (x *exam) route(a netip.Addr, devices []netlink.Link, again bool) (netlink.Link, error) {
	if said := x.found; again {
		defer func() { x.found = said }()
	}
	found, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(found) == 0 {
		x.add("route", a.String(), Fail, x.unblock(a), "there is no route to this backend (%v)", err)
		return nil, nil
	}
	r := found[0]
	if r.Type == unix.RTN_LOCAL {
		x.add("route", a.String(), Fail, "", "this backend is the host itself: l4fwd sends only to other machines")
		return nil, nil
	}
	at := slices.IndexFunc(devices, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex })
	if at < 0 || !x.leads(devices[at]) {
		name := fmt.Sprint(r.LinkIndex)
		if at >= 0 {
			name = devices[at].Attrs().Name
		}
		x.add("route", a.String(), Fail, "", "the way to this backend is out of %s, which is none of the interfaces", name)
		return nil, nil
	}
	next := a.AsSlice()
	if r.Gw != nil {
		next = r.Gw
	}
	return devices[at], x.neighbour(a, next, devices[at])
}

// commonMTU is what most clients' packets are made for, in bytes.
const commonMTU = 1500

// direct is what only direct return needs of the way to backend a of service i.
func (x *exam) direct(i int, a netip.Addr, dev netlink.Link) {
	s, name := &x.d.cfg.Services[i], dev.Attrs().Name
	if tunnel := x.spec.Services[i].Tunnel; s.Mode == config.Tunnel && s.MSSClamp == config.MSSOff && !x.has("mtu", name) {
		if want := commonMTU + tunnel.Overhead(a.Is4()); dev.Attrs().MTU < want {
			x.add("mtu", name, Warn, fmt.Sprintf("ip link set dev %s mtu %d", name, want),
				"packets of %d bytes do not fit its MTU of %d once they are in a tunnel: clients are told to send smaller ones, or set mss_clamp; every router on the way needs the same",
				commonMTU, dev.Attrs().MTU)
		}
	}
	vip := s.Address.Addr()
	strict := max(read("/proc/sys/net/ipv4/conf/all/rp_filter"), read("/proc/sys/net/ipv4/conf/"+name+"/rp_filter"))
	if s.HealthCheck.Type == config.CheckNone || !vip.Is4() || strict != "1" && strict != "2" || x.has("rp_filter", name) {
		return
	}
	// Where there is no way at all, as by a blackhole, 2 drops as well.
	r, err := netlink.RouteGet(vip.AsSlice())
	if err == nil && (strict == "2" || len(r) > 0 && r[0].LinkIndex == dev.Attrs().Index) {
		return
	}
	command := fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2", name)
	if err != nil {
		command = fmt.Sprintf("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.%s.rp_filter=0", name)
	}
	x.add("rp_filter", name, Warn, command,
		"answers to health checks come from the VIP %v, and the kernel drops them where its own way to the VIP is another", vip)
}

// unblock takes a route away that throws packets to a away, if it is of a alone.
func (x *exam) unblock(a netip.Addr) string {
	kinds := map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}
	family, option := netlink.FAMILY_V4, ""
	if a.Is6() {
		family, option = netlink.FAMILY_V6, "-6 "
	}
	to := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	all, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: to}, netlink.RT_FILTER_DST)
	if err != nil {
		return ""
	}
	for _, r := range all {
		if kind := kinds[r.Type]; kind != "" {
			return fmt.Sprintf("ip %sroute del %s %v/%d", option, kind, a, a.BitLen())
		}
	}
	return ""
}

// leads reports whether a device is an interface of the configuration, or one of its
// VLANs.
func (x *exam) leads(dev netlink.Link) bool {
	return slices.ContainsFunc(x.d.links, func(l *link) bool { return l.ifindex == dev.Attrs().Index || x.d.tagOf(l, dev) != 0 })
}

// neighbour is who is next on the way to a.
func (x *exam) neighbour(a netip.Addr, next net.IP, dev netlink.Link) error {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := netlink.NeighList(dev.Attrs().Index, family)
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	name := dev.Attrs().Name
	ask := fmt.Sprintf("ping -c 1 -I %s %v", name, next)
	for _, n := range all {
		switch {
		case !n.IP.Equal(next):
		case n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE|netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0:
			x.add("route", a.String(), Good, "", "out of %s, next hop %v at %v", name, next, n.HardwareAddr)
			return nil
		case n.State&netlink.NUD_FAILED != 0:
			x.add("neighbour", a.String(), Fail, "", "the next hop %v does not answer on %s: it is down, or not on this link", next, name)
			return nil
		}
	}
	x.add("neighbour", a.String(), Warn, ask, "the MAC address of the next hop %v on %s is not known yet: l4fwd has the kernel ask, and loses packets until then", next, name)
	return nil
}

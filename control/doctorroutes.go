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
			if seen[a] {
				continue
			}
			seen[a] = true
			if err := x.route(a, devices); err != nil {
				return err
			}
		}
	}
	return nil
}

// route is the way to one backend.
func (x *exam) route(a netip.Addr, devices []netlink.Link) error {
	found, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(found) == 0 {
		x.add("route", a.String(), Fail, x.unblock(a), "there is no route to this backend (%v)", err)
		return nil
	}
	r := found[0]
	if r.Type == unix.RTN_LOCAL {
		x.add("route", a.String(), Fail, "", "this backend is the host itself: l4fwd sends only to other machines")
		return nil
	}
	at := slices.IndexFunc(devices, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex })
	if at < 0 || !x.leads(devices[at]) {
		name := fmt.Sprint(r.LinkIndex)
		if at >= 0 {
			name = devices[at].Attrs().Name
		}
		x.add("route", a.String(), Fail, "", "the way to this backend is out of %s, which is none of the interfaces", name)
		return nil
	}
	next := a.AsSlice()
	if r.Gw != nil {
		next = r.Gw
	}
	return x.neighbour(a, next, devices[at])
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

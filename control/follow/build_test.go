package follow

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

var (
	mac1 = net.HardwareAddr{2, 0, 0, 0, 0, 0x11} // of eth1
	mac2 = net.HardwareAddr{2, 0, 0, 0, 0, 0x12} // of eth2
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

// Interface indices: 1 lo, 2 eth0, 3 eth1, 4 eth2, 5 VLAN 7 on eth1, 6 VLAN 9
// on that, 7 VLAN 8 on eth0.
func testLinks() map[int]link {
	attrs := func(i int, name string, mac net.HardwareAddr, mtu, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: i, Name: name, HardwareAddr: mac, MTU: mtu, ParentIndex: parent, RawFlags: unix.IFF_UP | unix.IFF_RUNNING}
	}
	out := map[int]link{}
	for _, l := range []netlink.Link{
		&netlink.Device{LinkAttrs: attrs(1, "lo", nil, 65536, 0)},
		&netlink.Device{LinkAttrs: attrs(2, "eth0", net.HardwareAddr{2, 0, 0, 0, 0, 0x10}, 1500, 0)},
		&netlink.Device{LinkAttrs: attrs(3, "eth1", mac1, 1500, 0)},
		&netlink.Veth{LinkAttrs: attrs(4, "eth2", mac2, 9000, 99)}, // a veth's parent index is its peer
		&netlink.Vlan{LinkAttrs: attrs(5, "eth1.7", mac1, 1496, 3), VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q},
		&netlink.Vlan{LinkAttrs: attrs(6, "eth1.7.9", mac1, 1492, 5), VlanId: 9},
		&netlink.Vlan{LinkAttrs: attrs(7, "eth0.8", mac1, 1496, 2), VlanId: 8},
	} {
		out[l.Attrs().Index] = linkFrom(l)
	}
	return out
}

func dst(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

// rt is a unicast route of the main table.
func rt(to string, index int, gw string) netlink.Route {
	return netlink.Route{Dst: dst(to), LinkIndex: index, Gw: net.ParseIP(gw), Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
}

func with(r netlink.Route, change func(*netlink.Route)) netlink.Route {
	change(&r)
	return r
}

func nb(index int, ip string, mac net.HardwareAddr, nud int) netlink.Neigh {
	family := unix.AF_INET
	if net.ParseIP(ip).To4() == nil {
		family = unix.AF_INET6
	}
	return netlink.Neigh{LinkIndex: index, Family: family, IP: net.ParseIP(ip), HardwareAddr: mac, State: nud}
}

func stateOf(routes []netlink.Route, neighs []netlink.Neigh) *state {
	s := &state{links: testLinks(), neighs: map[neighKey]neigh{}}
	for i := range routes {
		if r, ok := routeFrom(&routes[i]); ok {
			s.routes = append(s.routes, r)
		}
	}
	for i := range neighs {
		if k, n, ok := neighFrom(&neighs[i]); ok {
			s.neighs[k] = n
		}
	}
	return s
}

func hopOf(t *route.Table, a string) route.Hop {
	return *t.Hop(t.Lookup(packet.AddrFrom(netip.MustParseAddr(a))))
}

func resolved(port uint16, dst, src net.HardwareAddr, tag uint32, mtu int) route.Hop {
	return route.NewHop(port, [6]byte(dst), [6]byte(src), tag, mtu)
}

func unresolved(port uint16, src net.HardwareAddr, tag uint32, mtu int) route.Hop {
	h := route.NewHop(port, [6]byte{}, [6]byte(src), tag, mtu)
	h.State = route.Unresolved
	return h
}

func TestBuild(t *testing.T) {
	only := func(s route.HopState) route.Hop { return route.Hop{State: s} }
	multi := func(ways ...*netlink.NexthopInfo) netlink.Route {
		return netlink.Route{Dst: dst("0.0.0.0/0"), MultiPath: ways, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
	}
	way := func(index int, gw string, flags int) *netlink.NexthopInfo {
		return &netlink.NexthopInfo{LinkIndex: index, Gw: net.ParseIP(gw), Flags: flags}
	}
	typed := func(to string, typ int) netlink.Route {
		return with(rt(to, 1, ""), func(r *netlink.Route) { r.Type = typ })
	}
	const tag7 = 0x8100<<16 | 7
	tests := []struct {
		name   string
		routes []netlink.Route
		neighs []netlink.Neigh
		want   map[string]route.Hop
	}{
		{"nothing", nil, nil, map[string]route.Hop{"10.0.0.1": {}, "2001:db8::1": {}, "224.0.0.5": only(route.Local), "ff02::1": only(route.Local), "fe80::1": only(route.Local)}},
		{
			"connected network", []netlink.Route{rt("10.0.0.0/24", 3, ""), rt("2001:db8::/64", 4, "")},
			[]netlink.Neigh{
				nb(3, "10.0.0.5", macA, unix.NUD_STALE), nb(3, "10.0.0.6", nil, unix.NUD_INCOMPLETE), nb(3, "10.0.0.7", macA, unix.NUD_FAILED),
				nb(4, "2001:db8::5", macB, unix.NUD_REACHABLE), nb(4, "10.0.0.8", macB, unix.NUD_REACHABLE),
				nb(3, "10.0.0.9", net.HardwareAddr{0, 0, 0, 0, 0, 0}, unix.NUD_NOARP), nb(3, "10.9.9.9", macA, unix.NUD_REACHABLE),
			},
			map[string]route.Hop{
				"10.0.0.5": resolved(0, macA, mac1, 0, 1500), "10.0.0.6": unresolved(0, mac1, 0, 1500), "10.0.0.7": unresolved(0, mac1, 0, 1500),
				"10.0.0.8": unresolved(0, mac1, 0, 1500), "10.0.0.9": unresolved(0, mac1, 0, 1500), "10.9.9.9": {},
				"2001:db8::5": resolved(1, macB, mac2, 0, 9000), "2001:db8::6": unresolved(1, mac2, 0, 9000),
			},
		},
		{
			"gateways", []netlink.Route{rt("0.0.0.0/0", 3, "10.0.0.1"), rt("::/0", 4, "fe80::1"), rt("10.8.0.0/16", 3, "10.0.0.2")},
			[]netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_PROBE), nb(4, "fe80::1", macB, unix.NUD_PERMANENT), nb(3, "fe80::1", macA, unix.NUD_REACHABLE)},
			map[string]route.Hop{"8.8.8.8": resolved(0, macA, mac1, 0, 1500), "2a00::1": resolved(1, macB, mac2, 0, 9000), "10.8.1.1": unresolved(0, mac1, 0, 1500)},
		},
		{
			"IPv4 by an IPv6 gateway",
			[]netlink.Route{with(rt("0.0.0.0/0", 3, ""), func(r *netlink.Route) {
				r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::9")}
			})},
			[]netlink.Neigh{nb(3, "fe80::9", macA, unix.NUD_DELAY)},
			map[string]route.Hop{"8.8.8.8": resolved(0, macA, mac1, 0, 1500)},
		},
		{
			"metric, TOS, other tables",
			[]netlink.Route{
				with(rt("10.0.0.0/8", 3, "10.0.0.2"), func(r *netlink.Route) { r.Priority = 100 }),
				with(rt("10.0.0.0/8", 3, "10.0.0.1"), func(r *netlink.Route) { r.Priority = 50 }),
				with(rt("10.0.0.0/8", 3, "10.0.0.3"), func(r *netlink.Route) { r.Priority = 1; r.Table = 77 }),
				with(rt("10.0.0.0/8", 3, "10.0.0.4"), func(r *netlink.Route) { r.Tos = 16 }),
				with(rt("10.0.0.0/8", 3, "10.0.0.5"), func(r *netlink.Route) { r.Flags = unix.RTNH_F_DEAD }),
			},
			[]netlink.Neigh{nb(3, "10.0.0.2", macA, unix.NUD_REACHABLE), nb(3, "10.0.0.1", macB, unix.NUD_REACHABLE)},
			map[string]route.Hop{"10.3.3.3": resolved(0, macB, mac1, 0, 1500)},
		},
		{
			"MTU of the route",
			[]netlink.Route{
				with(rt("10.1.0.0/16", 3, "10.0.0.1"), func(r *netlink.Route) { r.MTU = 1400 }),
				with(rt("10.2.0.0/16", 3, "10.0.0.1"), func(r *netlink.Route) { r.MTU = 9000 }),
			},
			[]netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_REACHABLE)},
			map[string]route.Hop{"10.1.0.1": resolved(0, macA, mac1, 0, 1400), "10.2.0.1": resolved(0, macA, mac1, 0, 1500)},
		},
		{
			"types",
			[]netlink.Route{
				typed("10.1.0.0/16", unix.RTN_BLACKHOLE), typed("10.2.0.0/16", unix.RTN_UNREACHABLE), typed("10.3.0.0/16", unix.RTN_PROHIBIT),
				rt("0.0.0.0/0", 3, "10.0.0.1"), typed("10.4.0.0/16", unix.RTN_THROW), typed("10.5.0.0/16", unix.RTN_NAT),
				with(rt("10.6.0.1/32", 3, ""), func(r *netlink.Route) { r.Type = unix.RTN_LOCAL; r.Table = unix.RT_TABLE_LOCAL }),
				with(rt("10.6.0.1/32", 3, "10.0.0.1"), func(r *netlink.Route) {}),
			}, nil,
			map[string]route.Hop{
				"10.1.0.1": only(route.Blackhole), "10.2.0.1": only(route.Unreachable), "10.3.0.1": only(route.Prohibited), "10.4.0.1": {},
				"10.5.0.1": only(route.NotOurs), "10.6.0.1": only(route.Local), "8.8.8.8": unresolved(0, mac1, 0, 1500),
			},
		},
		{
			"interfaces not ours",
			[]netlink.Route{rt("10.1.0.0/16", 2, "10.0.0.1"), rt("10.2.0.0/16", 42, ""), rt("10.3.0.0/16", 0, ""), rt("10.4.0.0/16", 6, ""), rt("10.5.0.0/16", 7, ""),
				with(rt("10.6.0.0/16", 3, ""), func(r *netlink.Route) { r.Encap = &netlink.MPLSEncap{} })}, nil,
			map[string]route.Hop{"10.1.0.1": only(route.NotOurs), "10.2.0.1": only(route.NotOurs), "10.3.0.1": only(route.NotOurs), "10.4.0.1": only(route.NotOurs), "10.5.0.1": only(route.NotOurs), "10.6.0.1": only(route.NotOurs)},
		},
		{
			"VLAN on a data NIC", []netlink.Route{rt("10.7.0.0/16", 5, "10.0.7.1"), rt("10.0.7.0/24", 5, "")},
			[]netlink.Neigh{nb(5, "10.0.7.1", macA, unix.NUD_REACHABLE), nb(3, "10.0.7.2", macA, unix.NUD_REACHABLE)},
			map[string]route.Hop{"10.7.1.1": resolved(0, macA, mac1, tag7, 1496), "10.0.7.1": resolved(0, macA, mac1, tag7, 1496), "10.0.7.2": unresolved(0, mac1, tag7, 1496)},
		},
		{
			"multipath: first resolved in order", []netlink.Route{multi(way(4, "10.0.1.1", 0), way(3, "10.0.0.2", 0), way(3, "10.0.0.1", 0), way(2, "10.3.0.1", 0))},
			[]netlink.Neigh{nb(4, "10.0.1.1", macA, unix.NUD_REACHABLE), nb(3, "10.0.0.2", macB, unix.NUD_REACHABLE)},
			map[string]route.Hop{"8.8.8.8": resolved(0, macB, mac1, 0, 1500)},
		},
		{
			"multipath: dead and without carrier", []netlink.Route{multi(way(3, "10.0.0.1", unix.RTNH_F_DEAD), way(3, "10.0.0.2", unix.RTNH_F_LINKDOWN), way(4, "10.0.1.1", 0))},
			[]netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_REACHABLE), nb(3, "10.0.0.2", macA, unix.NUD_REACHABLE), nb(4, "10.0.1.1", macB, unix.NUD_REACHABLE)},
			map[string]route.Hop{"8.8.8.8": resolved(1, macB, mac2, 0, 9000)},
		},
		{
			"multipath: none resolved", []netlink.Route{multi(way(2, "10.3.0.1", 0), way(4, "10.0.1.1", 0), way(3, "10.0.0.2", 0))}, nil,
			map[string]route.Hop{"8.8.8.8": unresolved(0, mac1, 0, 1500)},
		},
		{
			"link-local networks are not routed", []netlink.Route{rt("fe80::/64", 3, ""), rt("::/0", 3, "fe80::1")},
			[]netlink.Neigh{nb(3, "fe80::5", macA, unix.NUD_REACHABLE)},
			map[string]route.Hop{"fe80::5": only(route.Local)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, changed := newBuilder([]string{"eth1", "eth2"}, nil, 1).build(stateOf(tt.routes, tt.neighs), nil)
			if !changed {
				t.Error("the first table is no change")
			}
			got := map[string]route.Hop{}
			for a := range tt.want {
				got[a] = hopOf(table, a)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("hops (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNamedVLANs: an interface stands for a VLAN because the configuration says so,
// before the kernel's own of that VLAN, which it may lie upon, and with the NIC's MAC.
func TestNamedVLANs(t *testing.T) {
	const tag7, tag8 = 0x8100<<16 | 7, 0x8100<<16 | 8
	vlans := []VLAN{{"br7", 0, 7}, {"tap8", 0, 8}, {"tap9", 1, 9}, {"none", 1, 10}}
	s := stateOf([]netlink.Route{
		rt("10.7.0.0/24", 20, ""), rt("10.8.0.0/24", 21, ""), rt("10.9.0.0/24", 22, ""), rt("10.70.0.0/24", 5, ""),
		rt("10.77.0.0/16", 20, "10.7.0.1"), rt("10.1.0.0/24", 3, ""),
	}, []netlink.Neigh{
		nb(20, "10.7.0.1", macA, unix.NUD_REACHABLE), nb(5, "10.7.0.2", macA, unix.NUD_REACHABLE), nb(21, "10.8.0.1", macB, unix.NUD_REACHABLE),
		nb(22, "10.9.0.1", macB, unix.NUD_REACHABLE), nb(3, "10.1.0.1", macB, unix.NUD_REACHABLE),
	})
	for i, l := range []link{{index: 20, name: "br7", up: true, mtu: 1500, mac: [6]byte(macB)},
		{index: 21, name: "tap8", up: true, mtu: 1400}, {index: 22, name: "tap9", up: false, mtu: 1500}} {
		s.links[20+i] = l
	}
	s.own = append(s.own, ownAddr{20, netip.MustParsePrefix("10.7.0.9/24")})
	b := newBuilder([]string{"eth1", "eth2"}, vlans, 1)
	table, _ := b.build(s, nil)
	for a, want := range map[string]route.Hop{
		"10.7.0.1": resolved(0, macA, mac1, tag7, 1500), "10.77.1.1": resolved(0, macA, mac1, tag7, 1500),
		"10.7.0.2": unresolved(0, mac1, tag7, 1500), "10.8.0.1": resolved(0, macB, mac1, tag8, 1400),
		"10.9.0.1": unresolved(1, mac2, 0x8100<<16|9, 1500), "10.1.0.1": resolved(0, macB, mac1, 0, 1500), "10.70.0.1": {State: route.NotOurs},
	} {
		if diff := cmp.Diff(want, hopOf(table, a)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", a, diff)
		}
	}
	to := packet.AddrFrom(netip.MustParseAddr("10.77.1.1"))
	if got := table.Source(table.Lookup(to), true); got.String() != "10.7.0.9" {
		t.Errorf("from %v", got)
	}
	if key, ok := b.target(netip.MustParseAddr("10.7.0.2")); !ok || key != (neighKey{20, netip.MustParseAddr("10.7.0.2")}) {
		t.Errorf("asks for %+v, %v", key, ok)
	}
}

// TestPeers: a backend is on the link if the hop to it is itself, also when it is some
// other route's gateway, or is not resolved yet.
func TestPeers(t *testing.T) {
	b := newBuilder([]string{"eth1", "eth2"}, nil, 1)
	s := stateOf([]netlink.Route{
		rt("10.0.1.0/24", 3, ""), rt("10.0.5.0/24", 3, "10.0.1.20"), rt("10.0.6.0/24", 3, "10.0.1.9"), rt("2001:db8:1::/64", 4, ""),
	}, []netlink.Neigh{nb(3, "10.0.1.20", macA, unix.NUD_REACHABLE), nb(4, "2001:db8:1::20", macB, unix.NUD_REACHABLE)})
	for _, a := range []string{"10.9.9.9/24", "10.0.1.1/24", "fe80::1/64"} {
		s.own = append(s.own, ownAddr{3, netip.MustParsePrefix(a)})
	}
	s.own = append(s.own, ownAddr{4, netip.MustParsePrefix("2001:db8:1::1/64")}, ownAddr{4, netip.MustParsePrefix("2001:db8:1::2/64")})
	table, _ := b.build(s, []netip.Addr{netip.MustParseAddr("10.0.1.21")})
	for a, want := range map[string]string{ // of whatever is sent there
		"10.0.1.20": "10.0.1.1", "10.0.1.22": "10.9.9.9", "10.0.5.1": "10.0.1.1", "2001:db8:1::20": "2001:db8:1::1", "10.0.7.7": "::",
	} {
		to := packet.AddrFrom(netip.MustParseAddr(a))
		id := table.Lookup(to)
		if got := table.Source(id, to.Is4()); got.String() != want {
			t.Errorf("to %s from %s, want %s", a, got, want)
		}
		if got := table.Source(id, !to.Is4()); !got.IsZero() {
			t.Errorf("to %s in the other family from %s", a, got)
		}
	}
	for a, want := range map[string]bool{
		"10.0.1.20": true, "10.0.1.21": true, "10.0.1.22": true, "2001:db8:1::20": true, "10.0.5.1": false, "10.0.6.1": false,
	} {
		to := packet.AddrFrom(netip.MustParseAddr(a))
		if got := table.OnLink(table.Lookup(to), to); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if again, changed := b.build(s, []netip.Addr{netip.MustParseAddr("10.0.1.21")}); changed || again != table {
		t.Error("changed without a change")
	}
}

// TestLimits: the way to a destination is no wider than it is known to be, whether its
// next hop is itself or a gateway, and others' ways by the same hop are as before.
func TestLimits(t *testing.T) {
	b := newBuilder([]string{"eth1", "eth2"}, nil, 1)
	s := stateOf([]netlink.Route{
		rt("10.0.1.0/24", 3, ""), rt("10.0.5.0/24", 3, "10.0.1.9"),
		with(rt("10.0.6.0/24", 3, "10.0.1.9"), func(r *netlink.Route) { r.MTU = 1300 }),
	}, []netlink.Neigh{nb(3, "10.0.1.9", macA, unix.NUD_REACHABLE), nb(3, "10.0.1.20", macB, unix.NUD_REACHABLE)})
	keep := []netip.Addr{netip.MustParseAddr("10.0.1.20")}
	first, _ := b.build(s, keep)
	gen := first.Gen
	b.limits = map[netip.Addr]int{}
	for _, a := range []string{"10.0.1.20", "10.0.5.20", "10.0.6.20", "10.0.7.20"} {
		b.limits[netip.MustParseAddr(a)] = 1400
	}
	table, changed := b.build(s, keep)
	if !changed || table.Gen == gen {
		t.Error("nothing has changed")
	}
	for a, want := range map[string]route.Hop{
		"10.0.1.20": resolved(0, macB, mac1, 0, 1400), "10.0.5.20": resolved(0, macA, mac1, 0, 1400), "10.0.5.21": resolved(0, macA, mac1, 0, 1500),
		"10.0.6.20": resolved(0, macA, mac1, 0, 1300), "10.0.1.9": resolved(0, macA, mac1, 0, 1500), "10.0.7.20": {},
	} {
		if got := hopOf(table, a); got != want {
			t.Errorf("%s: %+v, want %+v", a, got, want)
		}
	}
	b.limits = nil
	if table, changed = b.build(s, keep); !changed || !table.SameRoutes(first) {
		t.Error("not as before once the limits are gone")
	}
}

// TestLimitNews: only a narrower way is news, and what has been learned is forgotten.
func TestLimitNews(t *testing.T) {
	f, err := New(Options{Links: []string{"eth1"}})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("10.0.5.20")
	for i, c := range []struct {
		mtu  int
		want bool
	}{{1400, true}, {1400, false}, {1450, false}, {1300, true}} {
		if got := f.Limit(a, c.mtu); got != c.want {
			t.Errorf("%d, %d: %v", i, c.mtu, got)
		}
	}
	if got := f.limited(time.Now()); got[a] != 1300 || len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got := f.limited(time.Now().Add(limitFor + time.Second)); len(got) != 0 {
		t.Errorf("later: %v", got)
	}
}

func TestDescribe(t *testing.T) {
	b := newBuilder([]string{"eth1", "eth2"}, nil, 1)
	table, _ := b.build(stateOf([]netlink.Route{
		rt("10.0.0.0/24", 3, ""), rt("10.1.0.0/16", 2, ""), rt("10.2.0.0/16", 4, "10.0.1.1"), rt("10.3.0.0/16", 5, "10.0.7.1"),
		with(rt("10.4.0.0/16", 1, ""), func(r *netlink.Route) { r.Type = unix.RTN_BLACKHOLE }),
	}, nil), nil)
	want := map[string]string{
		"10.0.0.1": "on-link on eth1", "10.1.0.1": "route leaves by eth0, not a data-plane interface", "10.2.0.1": "next hop 10.0.1.1 on eth2",
		"10.3.0.1": "next hop 10.0.7.1 on eth1 VLAN 7", "10.4.0.1": "route of type blackhole", "224.0.0.1": "an address of this host, or a broadcast or multicast one",
	}
	got := map[string]string{}
	for a := range want {
		got[a] = b.reg.keys[table.Lookup(packet.AddrFrom(netip.MustParseAddr(a)))].describe(b.ports)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestGenerationAndIDs drives a builder through changes one by one.
func TestGenerationAndIDs(t *testing.T) {
	b := newBuilder([]string{"eth1", "eth2"}, nil, 0xffffffff)
	routes := []netlink.Route{rt("10.0.0.0/24", 3, ""), rt("0.0.0.0/0", 3, "10.0.0.1")}
	keep := []netip.Addr{netip.MustParseAddr("10.0.0.20")}
	id := func(t *route.Table, a string) route.HopID {
		return t.Lookup(packet.AddrFrom(netip.MustParseAddr(a)))
	}

	first, _ := b.build(stateOf(routes, nil), keep)
	gateway, kept := id(first, "8.8.8.8"), id(first, "10.0.0.20")
	if kept == id(first, "10.0.0.21") {
		t.Error("a kept address has no hop of its own")
	}
	if _, changed := b.build(stateOf(routes, nil), keep); changed {
		t.Error("the same state is a change")
	}

	neighs := []netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_REACHABLE), nb(3, "10.0.0.20", macB, unix.NUD_REACHABLE)}
	second, _ := b.build(stateOf(routes, neighs), keep)
	if second.Gen != first.Gen || id(second, "8.8.8.8") != gateway || id(second, "10.0.0.20") != kept || hopOf(second, "10.0.0.20").State != route.Resolved {
		t.Errorf("resolved: %+v", second)
	}
	neighs[0].HardwareAddr, neighs[1].State = macB, unix.NUD_FAILED
	third, changed := b.build(stateOf(routes, neighs), keep)
	if !changed || third.Gen != second.Gen || hopOf(third, "8.8.8.8") != resolved(0, macB, mac1, 0, 1500) || hopOf(third, "10.0.0.20").State != route.Unresolved {
		t.Errorf("another MAC address: %+v", third)
	}

	moved := []netlink.Route{routes[0], rt("0.0.0.0/0", 3, "10.0.0.2")}
	fourth, _ := b.build(stateOf(moved, neighs), keep)
	if fourth.Gen != 1 || id(fourth, "8.8.8.8") == gateway {
		t.Errorf("another gateway, after generation 2^32-1: %+v", fourth)
	}

	s := stateOf(moved, neighs)
	delete(s.links, 3)
	fifth, _ := b.build(s, keep)
	if hopOf(fifth, "8.8.8.8").State != route.NotOurs {
		t.Errorf("no interface: %+v", hopOf(fifth, "8.8.8.8"))
	}
}

// TestInterfaceMadeAgain: a new index under the old name, at once.
func TestInterfaceMadeAgain(t *testing.T) {
	b := newBuilder([]string{"eth1", "eth2"}, nil, 5)
	first, _ := b.build(stateOf([]netlink.Route{rt("0.0.0.0/0", 3, "10.0.0.1")}, []netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_REACHABLE)}), nil)
	s := stateOf([]netlink.Route{rt("0.0.0.0/0", 30, "10.0.0.1")}, []netlink.Neigh{nb(30, "10.0.0.1", macA, unix.NUD_REACHABLE)})
	l := s.links[3]
	delete(s.links, 3)
	delete(s.links, 5)
	l.index = 30
	s.links[30] = l
	second, changed := b.build(s, nil)
	if changed || second != first {
		t.Errorf("a new index alone is a change: %+v", second)
	}
	if k, ok := b.target(netip.MustParseAddr("8.8.8.8")); !ok || k != (neighKey{30, netip.MustParseAddr("10.0.0.1")}) {
		t.Errorf("target = %v, %t", k, ok)
	}
}

func TestTooManyHops(t *testing.T) {
	s := stateOf([]netlink.Route{rt("10.0.0.0/8", 3, "")}, nil)
	for i := range 70000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		s.neighs[neighKey{3, a}] = neigh{mac: [6]byte(macA), usable: true, state: unix.NUD_REACHABLE}
	}
	b := newBuilder([]string{"eth1"}, nil, 1)
	table, _ := b.build(s, nil)
	if !b.reg.full || len(table.Hops) != 65536 || hopOf(table, "10.255.0.0").State != route.Unresolved {
		t.Errorf("full %t, %d hops", b.reg.full, len(table.Hops))
	}
	s.neighs = nil
	table, _ = b.build(s, nil)
	if b.reg.full || len(b.reg.free) < 65000 || hopOf(table, "10.0.0.1").State != route.Unresolved {
		t.Errorf("after they went: full %t, %d ids free", b.reg.full, len(b.reg.free))
	}
}

// TestGenerationFollowsMapping: over any sequence of states, a flow that
// cached (id, generation) is never sent by another hop than a lookup now
// yields, and the generation stands still while nothing moved.
func TestGenerationFollowsMapping(t *testing.T) {
	addrs := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.0.1", "10.1.0.2", "8.8.8.8", "fe80::1", "2001:db8::1", "2001:db8::2"}
	rapid.Check(t, func(rt0 *rapid.T) {
		b := newBuilder([]string{"eth1", "eth2"}, nil, 1)
		var old *route.Table
		oldKeys := map[string]hopKey{}
		for range rapid.IntRange(2, 12).Draw(rt0, "builds") {
			s := randomState(rt0)
			table, changed := b.build(s, []netip.Addr{netip.MustParseAddr("10.1.0.2")})
			keys := map[string]hopKey{}
			for _, a := range addrs {
				keys[a] = b.reg.keys[table.Lookup(packet.AddrFrom(netip.MustParseAddr(a)))]
			}
			if old != nil {
				if !cmp.Equal(oldKeys, keys, cmp.AllowUnexported(hopKey{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) && table.Gen == old.Gen {
					rt0.Fatalf("generation %d for\n%v\nand\n%v", table.Gen, oldKeys, keys)
				}
				if table.SameRoutes(old) != (table.Gen == old.Gen) {
					rt0.Fatalf("same routes %t, generations %d and %d", table.SameRoutes(old), old.Gen, table.Gen)
				}
				if !changed && (table != old) || changed && table.Gen == old.Gen && slices.Equal(table.Hops, old.Hops) {
					rt0.Fatalf("changed = %t", changed)
				}
				for k, id := range b.reg.ids {
					if b.reg.keys[id] != k {
						rt0.Fatalf("id %d is %v and %v", id, k, b.reg.keys[id])
					}
				}
			}
			old, oldKeys = table, keys
		}
	})
}

func randomState(t *rapid.T) *state {
	index := rapid.SampledFrom([]int{2, 3, 4, 5})
	to := rapid.SampledFrom([]string{"0.0.0.0/0", "10.0.0.0/24", "10.1.0.0/24", "10.0.0.0/8", "::/0", "2001:db8::/64"})
	var routes []netlink.Route
	for range rapid.IntRange(0, 5).Draw(t, "routes") {
		d := to.Draw(t, "to")
		gw := ""
		if rapid.Bool().Draw(t, "gateway") {
			gw = fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, 3).Draw(t, "gw"))
			if d[0] != '0' && d[0] != '1' {
				gw = "fe80::1"
			}
		}
		routes = append(routes, rt(d, index.Draw(t, "link"), gw))
	}
	nud := rapid.SampledFrom([]int{unix.NUD_REACHABLE, unix.NUD_STALE, unix.NUD_FAILED, unix.NUD_INCOMPLETE})
	ip := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2", "fe80::1", "2001:db8::1"})
	var neighs []netlink.Neigh
	for range rapid.IntRange(0, 6).Draw(t, "neighbours") {
		neighs = append(neighs, nb(index.Draw(t, "link"), ip.Draw(t, "ip"), rapid.SampledFrom([]net.HardwareAddr{macA, macB}).Draw(t, "mac"), nud.Draw(t, "nud")))
	}
	return stateOf(routes, neighs)
}

func addrOf(a netip.Addr) packet.Addr { return packet.AddrFrom(a) }

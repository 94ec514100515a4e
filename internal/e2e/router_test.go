package e2e

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// router is a kernel that routes between the switch and one host, which keeps
// its addresses and its old device but is met by a new one.
//
//	switch ── [r0]router[r1] ── [x0]host
type router struct {
	r     *rig
	ns    *testbed.Namespace
	outer *testbed.Device // r0, towards l4fwd
	inner *testbed.Device // r1, towards the host
	host  *testbed.Device // x0
	addrs map[testbed.Family]netip.Addr
}

// Networks between routers and hosts.
var (
	linkToServer = []string{"10.9.1.1/24", "2001:db8:91::1/64"}
	linkToClient = []string{"10.9.2.1/24", "2001:db8:92::1/64"}
)

// lastByte is an address with another last byte.
func lastByte(a netip.Addr, n byte) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] = n
	out, _ := netip.AddrFromSlice(b)
	return out
}

// whole is an address as a network.
func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// routeServer puts a router before the first real server.
func (r *rig) routeServer() *router {
	r.t.Helper()
	rt := r.interpose(r.Topology.Servers[0], testbed.ServerNet, linkToServer, "r-rs1",
		func(f testbed.Family) netip.Addr { return r.ServerAddr(f, 0) })
	for _, f := range testbed.Families {
		gateway := r.LBServer.Addr(f)
		rt.route(rt.outer, testbed.ClientNet[f], gateway, netip.Addr{}, 0) // DNAT's replies
		for i := range 4 {
			rt.route(rt.host, whole(r.LocalAddr(f, i)), rt.inner.Addr(f), rt.addrs[f], 0)
		}
		rt.route(rt.host, testbed.ClientNet[f], rt.inner.Addr(f), rt.addrs[f], 0)
		rt.route(r.LBServer, whole(rt.addrs[f]), rt.outer.Addr(f), netip.Addr{}, 0)
	}
	return rt
}

// routeClient puts a router before the client. One-arm only: else there is a
// cable.
func (r *rig) routeClient() *router {
	r.t.Helper()
	rt := r.interpose(r.Client, testbed.ClientNet, linkToClient, "r-client",
		func(f testbed.Family) netip.Addr { return r.ClientAddr(f, 0) })
	for _, f := range testbed.Families {
		rt.route(rt.outer, testbed.VIPNet[f], r.gateway(f), netip.Addr{}, 0)
		rt.route(rt.host, testbed.VIPNet[f], rt.inner.Addr(f), rt.addrs[f], 0)
		rt.route(r.LBClient, whole(rt.addrs[f]), rt.outer.Addr(f), netip.Addr{}, 0)
	}
	return rt
}

// interpose makes the router, its devices and the routes to the host.
func (r *rig) interpose(host *testbed.Namespace, side map[testbed.Family]netip.Prefix, link []string, port string,
	addr func(testbed.Family) netip.Addr) *router {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	ns, err := testbed.NewNamespace(port)
	must(err)
	r.t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			r.t.Error(err)
		}
	})
	for key, value := range map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
		"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0",
		"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0",
	} {
		must(ns.Sysctl(key, value))
	}
	rt := &router{r: r, ns: ns, addrs: make(map[testbed.Family]netip.Addr)}
	var outer, here, there []netip.Prefix
	for i, f := range testbed.Families {
		rt.addrs[f] = addr(f)
		outer = append(outer, netip.PrefixFrom(lastByte(side[f].Addr(), 254), side[f].Bits()))
		p := netip.MustParsePrefix(link[i])
		here = append(here, p)
		there = append(there, netip.PrefixFrom(lastByte(p.Addr(), 2), p.Bits()))
	}
	var to *testbed.Device
	rt.outer, to, err = testbed.Veth(ns, "r0", r.Switch, port, testbed.VethOptions{AddrsA: outer})
	must(err)
	must(to.Join("br0"))
	rt.inner, rt.host, err = testbed.Veth(ns, "r1", host, "x0",
		testbed.VethOptions{AddrsA: here, AddrsB: there, StaticNeighbours: true})
	must(err)
	rt.narrowHost(0)
	return rt
}

// route enters a route of a device: by a gateway, with a preferred source and
// a limit to packets if they are not zero.
func (rt *router) route(d *testbed.Device, dst netip.Prefix, via, src netip.Addr, mtu int) {
	rt.r.t.Helper()
	n := &netlink.Route{LinkIndex: d.Index, Dst: prefixNet(dst), Gw: via.AsSlice(), MTU: mtu}
	if src.IsValid() {
		n.Src = src.AsSlice()
	}
	if err := d.NS.Netlink().RouteReplace(n); err != nil {
		rt.r.t.Fatalf("route %s via %s on %s: %v", dst, via, d.Name, err)
	}
}

// forgetPaths has the host forget what it has learned of paths' MTUs: that goes
// with the routes. Those of one gateway share it, so all go before any is back.
func (rt *router) forgetPaths() {
	rt.r.t.Helper()
	nl := rt.host.NS.Netlink()
	filter := &netlink.Route{LinkIndex: rt.host.Index}
	all, err := nl.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF)
	if err != nil {
		rt.r.t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(n netlink.Route) bool { return n.Gw == nil })
	for _, change := range []func(*netlink.Route) error{nl.RouteDel, nl.RouteAdd} {
		for i := range all {
			if err := change(&all[i]); err != nil {
				rt.r.t.Fatalf("route %s: %v", all[i], err)
			}
		}
	}
}

// narrowHost has the router forward packets of at most mtu bytes to its host
// (0: what fits the link). The host's own MTU stays, so its MSS tells nobody.
func (rt *router) narrowHost(mtu int) {
	rt.r.t.Helper()
	for _, f := range testbed.Families {
		rt.route(rt.inner, whole(rt.addrs[f]), rt.host.Addr(f), netip.Addr{}, mtu)
	}
}

// narrowLB has l4fwd's kernel have a route to the host with such a limit, which
// l4fwd must obey.
func (rt *router) narrowLB(mtu int) {
	rt.r.t.Helper()
	d := rt.r.LBServer
	if testbed.ClientNet[testbed.V4].Contains(rt.addrs[testbed.V4]) {
		d = rt.r.LBClient
	}
	for _, f := range testbed.Families {
		rt.route(d, whole(rt.addrs[f]), rt.outer.Addr(f), netip.Addr{}, mtu)
	}
}

// routed is a one-arm rig whose client and only real server in use are behind
// routers of their own.
func routed(t *testing.T, queues int, o testbed.SnifferOptions) (r *rig, client, server *router) {
	t.Helper()
	r = network(t, testbed.TopologyOptions{OneArm: true, Queues: queues}, o)
	return r, r.routeClient(), r.routeServer()
}

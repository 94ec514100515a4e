package follow

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// builder turns the kernel's state into tables. It remembers the last one and
// the ids it gave; it does no I/O.
type builder struct {
	ports []string // names of the data NICs
	vlans []VLAN
	reg   *registry
	gen   uint32
	table *route.Table // last result, nil at first
	// limits are of the ways to single destinations beyond their next hop, in bytes.
	limits map[netip.Addr]int

	// Of the build under way and, afterwards, of the last one:
	s        *state
	egress   map[int]egress    // data links and VLANs on them, by interface index
	byEgress map[wire]int      // and back
	gateways map[neighKey]bool // every gateway of a route that is ours
}

// wire is a place to send by: a data NIC and a tag.
type wire struct {
	port uint16
	tag  uint32
}

type egress struct {
	wire
	link link
}

func newBuilder(ports []string, vlans []VLAN, gen uint32) *builder {
	return &builder{ports: ports, vlans: vlans, reg: newRegistry(), gen: gen}
}

// build makes a table of s, with entries of their own for the on-link ones
// among the addresses in keep, so that resolving them does not change the
// generation. changed is false if the table is the last one.
func (b *builder) build(s *state, keep []netip.Addr) (t *route.Table, changed bool) {
	b.s = s
	b.gateways = map[neighKey]bool{}
	b.findEgress()
	b.reg.begin()
	prefixes := b.routePrefixes()
	prefixes = append(prefixes, b.hostPrefixes(prefixes, keep)...)
	hops, peers := b.hops(), b.peers()
	b.reg.end()

	t = route.New(b.gen, hops, prefixes).WithPeers(peers)
	switch {
	case b.table == nil:
	case !t.SameRoutes(b.table):
		if b.gen++; b.gen == 0 {
			b.gen = 1
		}
		t.Gen = b.gen // not published yet, so still ours to write
	case slices.Equal(t.Hops, b.table.Hops) && t.SamePeers(b.table):
		return b.table, false
	default:
		t = b.table.WithHops(t.Hops).WithPeers(peers)
	}
	b.table = t
	return t, true
}

// findEgress says by which interfaces we can send.
func (b *builder) findEgress() {
	b.egress, b.byEgress = map[int]egress{}, map[wire]int{}
	for i, l := range b.s.links {
		if p := slices.Index(b.ports, l.name); p >= 0 && l.tag == 0 {
			b.egress[i] = egress{wire{uint16(p), 0}, l}
		}
	}
	named := b.findVLANs()
	for i, l := range b.s.links {
		below, ok := b.egress[l.parent]
		if _, self := b.egress[i]; l.tag == 0 || self || !ok || below.tag != 0 || named[wire{below.port, l.tag}] {
			continue
		}
		l.up = l.up && below.link.up
		b.egress[i] = egress{wire{below.port, l.tag}, l}
	}
	for i, e := range b.egress {
		b.byEgress[e.wire] = i
	}
}

// findVLANs finds the interfaces that stand for VLANs because the configuration says
// so, and returns which VLANs those are: a VLAN interface of the kernel's gives way, as
// what is above it has the addresses and neighbours. Frames bear the NIC's own MAC
// address, since answers to another one are not taken.
func (b *builder) findVLANs() map[wire]bool {
	named := map[wire]bool{}
	for _, v := range b.vlans {
		var nic, above *link
		for _, l := range b.s.links {
			switch l.name {
			case b.ports[v.Port]:
				nic = &l
			case v.Name:
				above = &l
			}
		}
		if nic == nil || above == nil {
			continue
		}
		w, l := wire{uint16(v.Port), unix.ETH_P_8021Q<<16 | uint32(v.ID)}, *above
		l.up, l.mac = l.up && nic.up, nic.mac
		b.egress[l.index], named[w] = egress{w, l}, true
	}
	return named
}

// way is all of a route that decides about its hop; a full BGP table has a
// million routes and a handful of ways.
type way struct {
	nexthop
	typ, mtu int
}

// choice is what a way comes to.
type choice struct {
	worst int // how far from usable, see usability
	key   hopKey
}

// routePrefixes chooses one hop for every routed prefix. It sorts the routes,
// which the kernel delivers nearly sorted.
func (b *builder) routePrefixes() []route.Prefix {
	routes := b.s.routes
	slices.SortFunc(routes, func(x, y routeInfo) int {
		return cmp.Or(x.prefix.Addr().Compare(y.prefix.Addr()), cmp.Compare(x.prefix.Bits(), y.prefix.Bits()))
	})
	ways := map[way]*choice{}
	out := make([]route.Prefix, 0, len(routes)+len(neverForwarded))
	for len(routes) > 0 {
		n := 1
		for n < len(routes) && routes[n].prefix == routes[0].prefix {
			n++
		}
		if key, ok := b.best(ways, routes[:n]); ok {
			out = append(out, route.Prefix{Prefix: routes[0].prefix, Hop: b.reg.id(key)})
		}
		routes = routes[n:]
	}
	local := b.reg.id(hopKey{state: route.Local})
	for _, p := range neverForwarded {
		out = append(out, route.Prefix{Prefix: p, Hop: local})
	}
	return out
}

// neverForwarded holds what no router passes on whatever its routes say:
// multicast, limited broadcast (RFC 1812 sections 5.3.4 and 5.3.5.1), and
// IPv6 link-local addresses (RFC 4291 section 2.5.6).
var neverForwarded = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("ff00::/8"),
	linkLocal6,
}

var linkLocal6 = netip.MustParsePrefix("fe80::/10")

// best weighs the next hops of the routes to one prefix. Routes of equal
// metric (IPv6 has them) count as one multipath route.
func (b *builder) best(ways map[way]*choice, routes []routeInfo) (key hopKey, ok bool) {
	if p := routes[0].prefix; p.Bits() >= linkLocal6.Bits() && linkLocal6.Contains(p.Addr()) {
		return hopKey{}, false
	}
	var best *choice
	var rank int64
	consider := func(r *routeInfo, n nexthop) {
		if n.flags&unix.RTNH_F_DEAD != 0 {
			return
		}
		w := way{n, r.typ, r.mtu}
		c, known := ways[w]
		if !known {
			k := b.keyOf(r, n)
			c = &choice{worst: b.usability(k, n), key: k}
			ways[w] = c
		}
		if best == nil || cmp.Or(cmp.Compare(r.rank, rank), cmp.Compare(c.worst, best.worst), c.key.order(best.key)) < 0 {
			best, rank = c, r.rank
		}
	}
	for i := range routes {
		if routes[i].many == nil {
			consider(&routes[i], routes[i].one)
		}
		for _, n := range routes[i].many {
			consider(&routes[i], n)
		}
	}
	if best == nil {
		return hopKey{}, false
	}
	return best.key, true
}

// keyOf says what a next hop of a route means for a packet.
func (b *builder) keyOf(r *routeInfo, n nexthop) hopKey {
	switch r.typ {
	case unix.RTN_UNICAST:
	case unix.RTN_BLACKHOLE:
		return hopKey{state: route.Blackhole}
	case unix.RTN_UNREACHABLE:
		return hopKey{state: route.Unreachable}
	case unix.RTN_PROHIBIT:
		return hopKey{state: route.Prohibited}
	case unix.RTN_THROW: // "look elsewhere", where we do not look
		return hopKey{}
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return hopKey{state: route.Local}
	default:
		return hopKey{state: route.NotOurs, name: fmt.Sprintf("route of type %d", r.typ)}
	}
	e, ok := b.egress[n.link]
	switch {
	case !ok && n.link == 0:
		return hopKey{state: route.NotOurs, name: "route names no interface"}
	case !ok:
		name := b.s.links[n.link].name
		if name == "" {
			name = fmt.Sprintf("interface %d", n.link)
		}
		return hopKey{state: route.NotOurs, name: "route leaves by " + name + ", not a data-plane interface"}
	case n.alien:
		return hopKey{state: route.NotOurs, name: "route by " + e.link.name + " needs an encapsulation"}
	}
	if n.gw.IsValid() {
		b.gateways[neighKey{n.link, n.gw}] = true
	}
	mtu := r.mtu
	if mtu >= e.link.mtu {
		mtu = 0 // no limit of its own
	}
	return hopKey{state: route.Resolved, port: e.port, tag: e.tag, addr: n.gw, mtu: mtu}
}

// usability: 0 can be sent to now, 1 not yet, 2 leads elsewhere.
func (b *builder) usability(k hopKey, n nexthop) int {
	switch {
	case k.state != route.Resolved:
		return 2
	case n.flags&unix.RTNH_F_LINKDOWN != 0 || !b.egress[n.link].link.up:
		return 1
	case n.gw.IsValid() && !b.s.neighs[neighKey{n.link, n.gw}].usable:
		return 1
	}
	return 0
}

// hostPrefixes gives single addresses in connected networks a hop of their
// own: those in keep, gateways, and the neighbours the kernel knows. Of the
// last, one that was never resolved gets none, or a scan would change the
// generation with every probe; one that was keeps it while the kernel keeps
// the entry.
func (b *builder) hostPrefixes(routes []route.Prefix, keep []netip.Addr) []route.Prefix {
	connected := route.New(1, make([]route.Hop, len(b.reg.keys)), routes)
	hosts := map[netip.Addr]hopKey{}
	keyFor := func(a netip.Addr) (hopKey, bool) {
		if a.IsMulticast() || a.IsLinkLocalUnicast() || !a.IsValid() {
			return hopKey{}, false // link-local: not one address, but one on every link
		}
		k := b.reg.keys[connected.Lookup(packet.AddrFrom(a))]
		if k.state != route.Resolved || k.addr.IsValid() {
			return hopKey{}, false
		}
		k.addr = a
		return k, true
	}
	for nk, n := range b.s.neighs {
		e, ours := b.egress[nk.link]
		if !ours {
			continue
		}
		k, ok := keyFor(nk.addr)
		if !ok || (wire{k.port, k.tag}) != e.wire {
			continue
		}
		if _, before := b.reg.ids[k]; before || n.usable {
			hosts[nk.addr] = k
		}
	}
	for _, a := range keep {
		if k, ok := keyFor(a.Unmap()); ok {
			hosts[a.Unmap()] = k
		}
	}
	for nk := range b.gateways {
		if k, ok := keyFor(nk.addr); ok && (wire{k.port, k.tag}) == b.egress[nk.link].wire {
			hosts[nk.addr] = k
		}
	}
	for a, mtu := range b.limits {
		k, ok := hosts[a]
		if !ok {
			k = b.reg.keys[connected.Lookup(packet.AddrFrom(a))]
		}
		if k.state != route.Resolved || k.mtu != 0 && k.mtu <= mtu {
			continue
		}
		if !k.addr.IsValid() {
			k.addr = a
		}
		k.mtu = mtu
		hosts[a] = k
	}
	out := make([]route.Prefix, 0, len(hosts))
	for a, k := range hosts {
		if id := b.reg.id(k); id != 0 { // none left: the connected network answers
			out = append(out, route.Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), Hop: id})
		}
	}
	return out
}

// hops fills in what every used id stands for now.
func (b *builder) hops() []route.Hop {
	out := make([]route.Hop, len(b.reg.keys))
	for id, k := range b.reg.keys {
		if id == 0 || !b.reg.used[id] {
			continue
		}
		if k.state != route.Resolved {
			out[id] = route.Hop{State: k.state}
			continue
		}
		index, ok := b.byEgress[wire{k.port, k.tag}]
		e := b.egress[index]
		mtu := e.link.mtu
		if k.mtu != 0 {
			mtu = min(mtu, k.mtu)
		}
		out[id] = route.NewHop(k.port, [6]byte{}, e.link.mac, k.tag, mtu)
		n := b.s.neighs[neighKey{index, k.addr}]
		if ok && e.link.up && k.addr.IsValid() && n.usable {
			out[id] = route.NewHop(k.port, n.mac, e.link.mac, k.tag, mtu)
		} else {
			out[id].State = route.Unresolved
		}
	}
	return out
}

// peers says who is at the two ends of every used hop.
func (b *builder) peers() []route.Peer {
	out := make([]route.Peer, len(b.reg.keys))
	for id, k := range b.reg.keys {
		if !b.reg.used[id] || k.state != route.Resolved {
			continue
		}
		if k.addr.IsValid() {
			out[id].Addr = packet.AddrFrom(k.addr)
		}
		if index, ok := b.byEgress[wire{k.port, k.tag}]; ok {
			out[id].Own = b.ownAddrs(index, k.addr)
		}
	}
	return out
}

// ownAddrs are the interface's first address of each family, or the one whose network
// a neighbour is in. Link-local ones are no source for what routers are to forward.
func (b *builder) ownAddrs(index int, neighbour netip.Addr) (own [2]packet.Addr) {
	var near [2]bool
	for _, a := range b.s.own {
		ip := a.prefix.Addr()
		if a.link != index || ip.IsLinkLocalUnicast() {
			continue
		}
		f := 0
		if ip.Is6() {
			f = 1
		}
		if in := a.prefix.Contains(neighbour); own[f].IsZero() || in && !near[f] {
			own[f], near[f] = packet.AddrFrom(ip), in
		}
	}
	return own
}

// target returns the neighbour to resolve so that packets for a can be sent;
// ok is false where there is none.
func (b *builder) target(a netip.Addr) (nk neighKey, ok bool) {
	if b.table == nil || !a.IsValid() {
		return neighKey{}, false
	}
	k := b.reg.keys[b.table.Lookup(packet.AddrFrom(a))]
	index, found := b.byEgress[wire{k.port, k.tag}]
	if k.state != route.Resolved || !found {
		return neighKey{}, false
	}
	if !k.addr.IsValid() {
		k.addr = a.Unmap()
	}
	return neighKey{index, k.addr}, true
}

package follow

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// space is a network namespace without a name: it ends with its last file
// descriptor, however the test ends.
type space struct {
	t  *testing.T
	ns netns.NsHandle
	*netlink.Handle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	ns, err := netns.New()
	must(t, err)
	must(t, netns.Set(home))
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(func() { h.Close(); ns.Close() })
	s := &space{t, ns, h}
	s.up("lo")
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *space) link(name string) netlink.Link {
	s.t.Helper()
	l, err := s.LinkByName(name)
	must(s.t, err)
	return l
}

func (s *space) up(name string) { s.t.Helper(); must(s.t, s.LinkSetUp(s.link(name))) }

func (s *space) addr(name, cidr string) {
	s.t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(s.t, err)
	a.Flags = unix.IFA_F_NODAD
	must(s.t, s.AddrReplace(s.link(name), a))
}

func (s *space) route(to, name, gw string, change func(*netlink.Route)) *netlink.Route {
	s.t.Helper()
	r := &netlink.Route{Dst: dst(to), LinkIndex: s.link(name).Attrs().Index, Gw: net.ParseIP(gw)}
	if change != nil {
		change(r)
	}
	must(s.t, s.RouteReplace(r))
	return r
}

// wireUp joins s and peer by a veth pair of that name, up on both ends.
func (s *space) wireUp(peer *space, name string, mac, peerMAC net.HardwareAddr) {
	s.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	must(s.t, s.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: name, PeerHardwareAddr: peerMAC, PeerNamespace: netlink.NsFd(int(peer.ns)),
	}))
	s.up(name)
	peer.up(name)
}

// seen collects what a Follower tells.
type seen struct {
	mu    sync.Mutex
	table *route.Table
	hosts []netip.Addr
	links []LinkEvent
	news  chan struct{}
}

func (s *seen) tell(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// until waits for a condition on what was told.
func (s *seen) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		done := ok()
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-s.news:
		case <-deadline:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("never seen: %s\nhops %+v\nhosts %v\nlinks %+v", what, s.table.Hops, s.hosts, s.links)
		}
	}
}

func (s *seen) gen() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Gen
}

func (s *seen) hopID(a netip.Addr) route.HopID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Lookup(addrOf(a))
}

func start(t *testing.T, at *space, links ...string) (*Follower, *seen) {
	t.Helper()
	return startWith(t, Options{Links: links, Namespace: at.ns, Probe: 200 * time.Millisecond})
}

func startWith(t *testing.T, opt Options) (*Follower, *seen) {
	t.Helper()
	s := &seen{news: make(chan struct{}, 1)}
	opt.OnRoutes = func(r *route.Table) { s.tell(func() { s.table = r }) }
	opt.OnHostAddrs = func(a []netip.Addr) { s.tell(func() { s.hosts = a }) }
	opt.OnLink = func(e LinkEvent) { s.tell(func() { s.links = append(s.links, e) }) }
	f, err := New(opt)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	s.until(t, "a first table", func() bool { return s.table != nil })
	return f, s
}

var (
	macHere = net.HardwareAddr{2, 0, 0, 0, 1, 1}
	macPeer = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	macNew  = net.HardwareAddr{2, 0, 0, 0, 1, 3}
)

// pair is one wire, 10.77.0.1/24 and 2001:db8:77::1/64 here, .2 and ::2 there.
func pair(t *testing.T) (here, peer *space) {
	t.Helper()
	here, peer = newSpace(t), newSpace(t)
	here.wireUp(peer, "data0", macHere, macPeer)
	here.addr("data0", "10.77.0.1/24")
	here.addr("data0", "2001:db8:77::1/64")
	peer.addr("data0", "10.77.0.2/24")
	peer.addr("data0", "2001:db8:77::2/64")
	return here, peer
}

func TestNeighbourLearnedAndMoved(t *testing.T) {
	for _, addr := range []string{"10.77.0.2", "2001:db8:77::2"} {
		t.Run(addr, func(t *testing.T) {
			here, _ := pair(t)
			f, s := start(t, here, "data0")
			s.until(t, "an unresolved connected network", func() bool {
				return hopOf(s.table, addr) == unresolved(0, macHere, 0, 1500)
			})
			f.Resolve(netip.MustParseAddr(addr))
			s.until(t, "the neighbour", func() bool { return hopOf(s.table, addr) == resolved(0, macPeer, macHere, 0, 1500) })

			gen := s.gen()
			must(t, here.NeighSet(&netlink.Neigh{
				LinkIndex: here.link("data0").Attrs().Index, IP: net.ParseIP(addr), HardwareAddr: macNew, State: unix.NUD_REACHABLE,
			}))
			s.until(t, "its new MAC address", func() bool { return hopOf(s.table, addr) == resolved(0, macNew, macHere, 0, 1500) })
			if s.gen() != gen {
				t.Error("a new MAC address changed the generation")
			}
		})
	}
}

func TestKeepResolvesByItself(t *testing.T) {
	here, peer := pair(t)
	f, s := start(t, here, "data0")
	kept := netip.MustParseAddr("10.77.0.5")
	f.Keep([]netip.Addr{kept})
	s.until(t, "a hop of its own", func() bool { return f.Describe(s.table.Lookup(addrOf(kept))) == "next hop 10.77.0.5 on data0" })
	// Not the generation: the peer may introduce itself by its other address.
	id := s.hopID(kept)
	peer.addr("data0", "10.77.0.5/24") // appears later
	s.until(t, "the neighbour", func() bool { return hopOf(s.table, "10.77.0.5") == resolved(0, macPeer, macHere, 0, 1500) })
	if s.hopID(kept) != id {
		t.Error("resolving a kept address changed its hop")
	}
	// A stale entry is verified although nobody uses it.
	index := here.link("data0").Attrs().Index
	must(t, here.NeighSet(&netlink.Neigh{LinkIndex: index, IP: kept.AsSlice(), HardwareAddr: macNew, State: unix.NUD_STALE}))
	s.until(t, "the true MAC address again", func() bool { return hopOf(s.table, "10.77.0.5") == resolved(0, macPeer, macHere, 0, 1500) })
	// A permanent one is left alone.
	must(t, here.NeighSet(&netlink.Neigh{LinkIndex: index, IP: kept.AsSlice(), HardwareAddr: macNew, State: unix.NUD_PERMANENT}))
	s.until(t, "the permanent MAC address", func() bool { return hopOf(s.table, "10.77.0.5") == resolved(0, macNew, macHere, 0, 1500) })
	time.Sleep(500 * time.Millisecond)
	list, err := here.NeighList(index, unix.AF_INET)
	must(t, err)
	if i := slices.IndexFunc(list, func(n netlink.Neigh) bool { return n.IP.Equal(net.IP(kept.AsSlice())) }); i < 0 || list[i].State != unix.NUD_PERMANENT {
		t.Errorf("the entry is no longer permanent: %+v", list)
	}
}

func TestRoutes(t *testing.T) {
	here, peer := pair(t)
	other := newSpace(t)
	here.wireUp(other, "mgmt0", macB, macA)
	here.addr("mgmt0", "10.78.0.1/24")
	_, s := start(t, here, "data0")

	here.route("10.99.0.0/16", "data0", "10.77.0.2", nil)
	s.until(t, "a gateway, resolved without being asked", func() bool {
		return hopOf(s.table, "10.99.1.1") == resolved(0, macPeer, macHere, 0, 1500)
	})
	gen := s.gen()
	moved := here.route("10.99.0.0/16", "data0", "10.77.0.3", nil)
	s.until(t, "another gateway, unresolved", func() bool {
		return hopOf(s.table, "10.99.1.1") == unresolved(0, macHere, 0, 1500)
	})
	if s.gen() == gen {
		t.Error("another gateway did not change the generation")
	}
	peer.addr("data0", "10.77.0.3/24")
	s.until(t, "that gateway resolved", func() bool { return hopOf(s.table, "10.99.1.1").State == route.Resolved })
	must(t, here.RouteDel(moved))
	s.until(t, "no route", func() bool { return hopOf(s.table, "10.99.1.1").State == route.NoRoute })

	here.route("0.0.0.0/0", "mgmt0", "10.78.0.2", nil)
	s.until(t, "a route by another interface", func() bool { return hopOf(s.table, "8.8.8.8").State == route.NotOurs })
	here.route("8.0.0.0/8", "lo", "", func(r *netlink.Route) { r.Type, r.LinkIndex = unix.RTN_BLACKHOLE, 0 })
	s.until(t, "a blackhole", func() bool { return hopOf(s.table, "8.8.8.8").State == route.Blackhole })
	here.route("10.98.0.0/16", "data0", "10.77.0.2", func(r *netlink.Route) { r.MTU = 1280 })
	s.until(t, "a route's MTU", func() bool { return hopOf(s.table, "10.98.1.1") == resolved(0, macPeer, macHere, 0, 1280) })
	here.route("10.97.0.0/16", "data0", "192.0.2.1", func(r *netlink.Route) { r.Flags = int(netlink.FLAG_ONLINK) })
	s.until(t, "an onlink gateway", func() bool { return hopOf(s.table, "10.97.1.1").State == route.Unresolved })
	here.route("10.96.0.0/16", "data0", "", func(r *netlink.Route) {
		r.LinkIndex = 0
		data := here.link("data0").Attrs().Index
		r.MultiPath = []*netlink.NexthopInfo{{LinkIndex: data, Gw: net.IPv4(10, 77, 0, 200)}, {LinkIndex: data, Gw: net.IPv4(10, 77, 0, 2)}}
	})
	s.until(t, "the resolved one of two gateways", func() bool { return hopOf(s.table, "10.96.1.1") == resolved(0, macPeer, macHere, 0, 1500) })
}

func TestIPv6LinkLocalGateway(t *testing.T) {
	here, peer := pair(t)
	peer.addr("data0", "fe80::99/64")
	here.addr("data0", "fe80::98/64")
	_, s := start(t, here, "data0")
	here.route("::/0", "data0", "fe80::99", nil)
	s.until(t, "the gateway", func() bool { return hopOf(s.table, "2a00::1") == resolved(0, macPeer, macHere, 0, 1500) })
}

func TestLinkComesAndGoes(t *testing.T) {
	here, peer := pair(t)
	_, s := start(t, here, "data0", "never0")
	here.route("10.99.0.0/16", "data0", "10.77.0.2", nil)
	s.until(t, "a route", func() bool { return hopOf(s.table, "10.99.1.1").State == route.Resolved })
	first := here.link("data0").Attrs().Index

	mac := [6]byte(macHere)
	dark := LinkEvent{Name: "data0", Index: first, MAC: mac, MTU: 1500}
	must(t, peer.LinkSetDown(peer.link("data0")))
	// The event, too: of the neighbours that go with the carrier the kernel tells first.
	s.until(t, "no carrier", func() bool {
		return hopOf(s.table, "10.99.1.1").State != route.Resolved && slices.Contains(s.links, dark)
	})
	peer.up("data0")
	s.until(t, "carrier", func() bool { return hopOf(s.table, "10.99.1.1").State == route.Resolved })

	must(t, here.LinkDel(here.link("data0")))
	s.until(t, "no route without the interface", func() bool { return hopOf(s.table, "10.99.1.1").State == route.NoRoute })
	here.wireUp(peer, "data0", macNew, macPeer)
	here.addr("data0", "10.77.0.1/24")
	peer.addr("data0", "10.77.0.2/24")
	here.route("10.99.0.0/16", "data0", "10.77.0.2", nil)
	s.until(t, "a route by the new interface", func() bool { return hopOf(s.table, "10.99.1.1") == resolved(0, macPeer, macNew, 0, 1500) })

	second := here.link("data0").Attrs().Index
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, want := range []LinkEvent{
		{Name: "data0", Index: first, Up: true, MAC: mac, MTU: 1500}, {Name: "never0", Gone: true},
		{Name: "data0", Index: first, Gone: true}, {Name: "data0", Index: second, Up: true, MAC: [6]byte(macNew), MTU: 1500},
	} {
		if !slices.Contains(s.links, want) {
			t.Errorf("no event %+v in %+v", want, s.links)
		}
	}
}

func TestHostAddresses(t *testing.T) {
	here, _ := pair(t)
	_, s := start(t, here, "data0")
	has := func(a string) bool { return slices.Contains(s.hosts, netip.MustParseAddr(a)) }
	s.until(t, "the first addresses", func() bool {
		return has("127.0.0.1") && has("10.77.0.1") && has("2001:db8:77::1") && slices.IsSortedFunc(s.hosts, netip.Addr.Compare)
	})
	here.addr("lo", "192.0.2.7/32")
	s.until(t, "one more, and no way to forward to it", func() bool {
		return has("192.0.2.7") && hopOf(s.table, "192.0.2.7").State == route.Local
	})
	a, err := netlink.ParseAddr("192.0.2.7/32")
	must(t, err)
	must(t, here.AddrDel(here.link("lo"), a))
	s.until(t, "one less", func() bool { return !has("192.0.2.7") && hopOf(s.table, "192.0.2.7").State == route.NoRoute })
}

func TestNewRefuses(t *testing.T) {
	for _, links := range [][]string{nil, {"a", "b", "a"}} {
		if _, err := New(Options{Links: links}); err == nil {
			t.Errorf("New accepts %q", links)
		}
	}
	for _, v := range []VLAN{{"b", 0, 10}, {"c", 2, 10}, {"c", -1, 10}, {"c", 0, 0}, {"c", 0, 4095}} {
		if _, err := New(Options{Links: []string{"a", "b"}, VLANs: []VLAN{v}}); err == nil {
			t.Errorf("New accepts %+v", v)
		}
	}
}

func TestLimiter(t *testing.T) {
	l, now := newLimiter(), time.Now()
	one := neighKey{1, netip.MustParseAddr("10.0.0.1")}
	if !l.allow(one, now) || l.allow(one, now.Add(askEvery-1)) || !l.allow(one, now.Add(askEvery)) {
		t.Error("not once a second")
	}
	allowed := 0
	for i := range 10000 {
		if l.allow(neighKey{i, one.addr}, now.Add(10*time.Second)) {
			allowed++
		}
	}
	if allowed != asksPerSec || len(l.last) > asksPerSec {
		t.Errorf("%d asked in one second, %d remembered", allowed, len(l.last))
	}
}

package follow

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

// TestLostNotifications has a buffer so small that the kernel overruns it; the
// periodic reading is switched off.
func TestLostNotifications(t *testing.T) {
	here, _ := pair(t)
	core, logs := observer.New(zapcore.WarnLevel)
	_, s := startWith(t, Options{Links: []string{"data0"}, Namespace: here.ns, Resync: time.Hour, Log: zap.New(core), buffer: 1})
	lost := func() int { return logs.FilterMessageSnippet("lost").Len() }
	const n = 500
	for round := 0; lost() == 0; round++ {
		if round == 20 {
			t.Fatal("no notification was ever lost")
		}
		for i := range n {
			here.route(fmt.Sprintf("2001:db8:%x::/48", 0x1000+i), "data0", "2001:db8:77::2", nil)
		}
		s.until(t, "all routes", func() bool {
			for i := range n {
				if hopOf(s.table, fmt.Sprintf("2001:db8:%x::1", 0x1000+i)).State != route.Resolved {
					return false
				}
			}
			return true
		})
		// All vanish in one system call, with a notification for each.
		must(t, here.LinkSetDown(here.link("data0")))
		s.until(t, "no routes", func() bool { return hopOf(s.table, "2001:db8:1000::1").State == route.NoRoute })
		here.up("data0")
		here.addr("data0", "2001:db8:77::1/64")
	}
}

// within runs fn on a thread in the namespace.
func within(t *testing.T, ns netns.NsHandle, fn func() error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	must(t, netns.Set(ns))
	err = fn()
	must(t, netns.Set(home))
	must(t, err)
}

// Attributes of nexthop objects and of routes that use one
// (include/uapi/linux/nexthop.h, rtnetlink.h).
const (
	nhaID, nhaOIF, nhaGateway = 1, 5, 6
	rtaNHID                   = 30
)

// nhmsg is struct nhmsg of IPv4.
type nhmsg struct{}

func (nhmsg) Len() int          { return 8 }
func (nhmsg) Serialize() []byte { return []byte{unix.AF_INET, 0, 0, 0, 0, 0, 0, 0} }

// TestNexthopObject: routes that name a nexthop object are read like others,
// and follow when the object changes.
func TestNexthopObject(t *testing.T) {
	here, peer := pair(t)
	peer.addr("data0", "10.77.0.3/24")
	index := here.link("data0").Attrs().Index
	setObject := func(gw string) {
		within(t, here.ns, func() error {
			req := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
			req.AddData(nhmsg{})
			req.AddData(nl.NewRtAttr(nhaID, nl.Uint32Attr(7)))
			req.AddData(nl.NewRtAttr(nhaOIF, nl.Uint32Attr(uint32(index))))
			req.AddData(nl.NewRtAttr(nhaGateway, net.ParseIP(gw).To4()))
			_, err := req.Execute(unix.NETLINK_ROUTE, 0)
			return err
		})
	}
	f, s := start(t, here, "data0")
	setObject("10.77.0.2")
	within(t, here.ns, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_ACK)
		msg := nl.NewRtMsg()
		msg.Dst_len = 16
		msg.Family = unix.AF_INET
		req.AddData(msg)
		req.AddData(nl.NewRtAttr(unix.RTA_DST, net.IPv4(10, 99, 0, 0).To4()))
		req.AddData(nl.NewRtAttr(rtaNHID, nl.Uint32Attr(7)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	dst := netip.MustParseAddr("10.99.1.1")
	by := func(gw string) func() bool {
		return func() bool {
			id := s.table.Lookup(addrOf(dst))
			return s.table.Hop(id).State == route.Resolved && f.Describe(id) == "next hop "+gw+" on data0"
		}
	}
	s.until(t, "a route by a nexthop object", by("10.77.0.2"))
	setObject("10.77.0.3")
	s.until(t, "the object's new gateway", by("10.77.0.3"))
}

// BenchmarkBuild is what a change costs with a full table of BGP routes.
func BenchmarkBuild(b *testing.B) {
	s := stateOf([]netlink.Route{rt("0.0.0.0/0", 3, "10.0.0.1"), rt("10.0.0.0/24", 3, "")},
		[]netlink.Neigh{nb(3, "10.0.0.1", macA, unix.NUD_REACHABLE), nb(3, "10.0.0.2", macA, unix.NUD_REACHABLE)})
	gws := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	for i := range 1 << 20 {
		a := netip.AddrFrom4([4]byte{byte(16 + i>>16), byte(i >> 8), byte(i), 0})
		s.routes = append(s.routes, routeInfo{prefix: netip.PrefixFrom(a, 24), typ: unix.RTN_UNICAST, one: nexthop{link: 3, gw: gws[i%2]}})
	}
	s.routes = slices.Clip(s.routes)
	bld := newBuilder([]string{"eth1"}, nil, 1)
	for b.Loop() {
		bld.build(s, nil)
	}
}

package follow

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// link is what matters of an interface.
type link struct {
	index  int
	name   string
	up     bool // administratively and by carrier
	mac    [6]byte
	mtu    int
	parent int    // VLAN interface: index of the interface below, else 0
	tag    uint32 // VLAN interface: TPID<<16 | VLAN id
}

// nexthop is one way of a route.
type nexthop struct {
	link  int // interface index
	gw    netip.Addr
	flags int  // RTNH_F_*
	alien bool // needs an encapsulation
}

// routeInfo is a route, small enough for a million of them.
type routeInfo struct {
	prefix netip.Prefix
	rank   int64 // lower wins among routes to one prefix
	mtu    int
	typ    int // RTN_*
	one    nexthop
	many   []nexthop // multipath: instead of one
}

type neighKey struct {
	link int
	addr netip.Addr
}

// neigh is a neighbour; only usable ones have a MAC address to send to.
type neigh struct {
	mac    [6]byte
	usable bool
	state  int // NUD_*
}

// Which NUD states let the kernel itself send at once (include/net/neighbour.h
// NUD_VALID): a stale entry is used and verified at the same time.
const nudUsable = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE |
	unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

// state is the kernel's as last read.
type state struct {
	links  map[int]link
	routes []routeInfo
	neighs map[neighKey]neigh
	hosts  []netip.Addr // all addresses of all interfaces, sorted
	own    []ownAddr    // the same as they stand on the interfaces, in the kernel's order
}

// ownAddr is an address of an interface with its network.
type ownAddr struct {
	link   int
	prefix netip.Prefix
}

// dump runs a netlink dump again while the kernel says that its result is
// inconsistent because something changed meanwhile.
func dump(what string, read func() error) error {
	var err error
	for range 5 {
		if err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("reading %s over netlink: %w", what, err)
	}
	return nil
}

func readLinks(h *netlink.Handle) (map[int]link, error) {
	var out map[int]link
	err := dump("links", func() error {
		list, err := h.LinkList()
		if err != nil {
			return err
		}
		out = make(map[int]link, len(list))
		for _, l := range list {
			i := linkFrom(l)
			out[i.index] = i
		}
		return nil
	})
	return out, err
}

func linkFrom(l netlink.Link) link {
	a := l.Attrs()
	const running = unix.IFF_UP | unix.IFF_RUNNING
	out := link{index: a.Index, name: a.Name, up: a.RawFlags&running == running, mtu: a.MTU}
	copy(out.mac[:], a.HardwareAddr)
	if v, ok := l.(*netlink.Vlan); ok {
		tpid := uint32(v.VlanProtocol)
		if tpid == 0 {
			tpid = unix.ETH_P_8021Q
		}
		out.parent = a.ParentIndex
		out.tag = tpid<<16 | uint32(v.VlanId)&0xfff
	}
	return out
}

func readRoutes(h *netlink.Handle) ([]routeInfo, error) {
	var out []routeInfo
	err := dump("routes", func() error {
		out = out[:0]
		// RT_FILTER_TABLE with no table named: those of every table, of which
		// routeFrom chooses. The kernel sends them all in either case.
		return h.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if i, ok := routeFrom(&r); ok {
					out = append(out, i)
				}
				return true
			})
	})
	return out, err
}

// routeFrom converts a route; ok is false for one we do not follow.
func routeFrom(r *netlink.Route) (out routeInfo, ok bool) {
	if r.Tos != 0 || r.Dst == nil || r.Flags&unix.RTM_F_CLONED != 0 {
		return routeInfo{}, false
	}
	out = routeInfo{rank: int64(uint32(r.Priority)), mtu: r.MTU, typ: r.Type}
	switch r.Table {
	case unix.RT_TABLE_MAIN:
	case unix.RT_TABLE_LOCAL: // the kernel asks it first
		out.rank = -1
	default:
		return routeInfo{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return routeInfo{}, false
	}
	addr = addr.Unmap()
	ones, _ := r.Dst.Mask.Size()
	if out.prefix, ok = prefixOf(addr, ones); !ok {
		return routeInfo{}, false
	}
	if len(r.MultiPath) > 0 {
		for _, m := range r.MultiPath {
			out.many = append(out.many, nexthop{m.LinkIndex, gateway(m.Gw, m.Via), m.Flags, m.Encap != nil})
		}
		return out, true
	}
	out.one = nexthop{r.LinkIndex, gateway(r.Gw, r.Via), r.Flags, r.Encap != nil}
	return out, true
}

func prefixOf(a netip.Addr, ones int) (netip.Prefix, bool) {
	p, err := a.Prefix(ones)
	return p, err == nil
}

// gateway is invalid for a connected route.
func gateway(gw net.IP, via netlink.Destination) netip.Addr {
	if v, ok := via.(*netlink.Via); ok && v != nil {
		gw = v.Addr
	}
	a, ok := netip.AddrFromSlice(gw)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func readNeighs(h *netlink.Handle) (map[neighKey]neigh, error) {
	var out map[neighKey]neigh
	err := dump("neighbours", func() error {
		list, err := h.NeighList(0, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		out = make(map[neighKey]neigh, len(list))
		for i := range list {
			if k, n, ok := neighFrom(&list[i]); ok {
				out[k] = n
			}
		}
		return nil
	})
	return out, err
}

func neighFrom(n *netlink.Neigh) (neighKey, neigh, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok || (n.Family != unix.AF_INET && n.Family != unix.AF_INET6) || n.Flags&netlink.NTF_PROXY != 0 {
		return neighKey{}, neigh{}, false
	}
	out := neigh{state: n.State}
	copy(out.mac[:], n.HardwareAddr)
	out.usable = n.State&nudUsable != 0 && len(n.HardwareAddr) == 6 && out.mac != [6]byte{}
	return neighKey{n.LinkIndex, a.Unmap()}, out, true
}

// readHosts returns the host's addresses, sorted, and as they stand on the interfaces.
func readHosts(h *netlink.Handle) (out []netip.Addr, own []ownAddr, err error) {
	err = dump("addresses", func() error {
		list, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		out, own = out[:0], own[:0]
		for _, a := range list {
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok {
				continue
			}
			ip = ip.Unmap()
			out = append(out, ip)
			ones, _ := a.Mask.Size()
			own = append(own, ownAddr{a.LinkIndex, netip.PrefixFrom(ip, ones)})
		}
		slices.SortFunc(out, netip.Addr.Compare)
		out = slices.Compact(out)
		return nil
	})
	return out, own, err
}

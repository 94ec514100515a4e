package testbed

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VethOptions shape a veth pair. The zero value is one queue, MTU 1500, no
// addresses.
type VethOptions struct {
	Queues         int // receive and transmit queues of each end; 0 = 1
	MTU            int // bytes, 0 = 1500
	AddrsA, AddrsB []netip.Prefix
	// StaticNeighbours enters each end's addresses as permanent neighbours at
	// the other end, so that no ARP or ND is seen.
	StaticNeighbours bool
	// KeepOffloads leaves the driver's offloads on: faster, and nobody computes
	// or verifies checksums.
	KeepOffloads bool
}

// Device is a network device in a namespace.
type Device struct {
	NS    *Namespace
	Name  string
	Index int
	MAC   net.HardwareAddr
	Addrs []netip.Prefix
}

// Addr is the device's first address of a family; invalid if it has none.
func (d *Device) Addr(f Family) netip.Addr {
	for _, p := range d.Addrs {
		if FamilyOf(p.Addr()) == f {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// Veth makes a pair of virtual Ethernet devices, one end in each namespace,
// both up, with offloads and duplicate address detection off.
func Veth(a *Namespace, nameA string, b *Namespace, nameB string, o VethOptions) (da, db *Device, err error) {
	fail := func(err error) (*Device, *Device, error) {
		return nil, nil, fmt.Errorf("veth %s (%s) - %s (%s): %w", nameA, a.role, nameB, b.role, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	attrs.MTU = o.MTU
	if attrs.MTU == 0 {
		attrs.MTU = 1500
	}
	// Stated even when 1: without a number the kernel makes a queue a CPU.
	attrs.NumTxQueues = max(o.Queues, 1)
	attrs.NumRxQueues = attrs.NumTxQueues
	link := netlink.NewVeth(attrs)
	link.PeerName = nameB
	link.PeerNamespace = netlink.NsFd(int(b.file.Fd()))
	if err := a.nl.LinkAdd(link); err != nil {
		return fail(err)
	}
	if da, err = a.adopt(nameA, o.AddrsA, o.KeepOffloads); err != nil {
		return fail(err)
	}
	if db, err = b.adopt(nameB, o.AddrsB, o.KeepOffloads); err != nil {
		return fail(err)
	}
	if o.StaticNeighbours {
		if err := da.knows(db); err != nil {
			return fail(err)
		}
		if err := db.knows(da); err != nil {
			return fail(err)
		}
	}
	return da, db, nil
}

// adopt readies a new device: quiet IPv6, offloads, addresses, up.
func (ns *Namespace) adopt(name string, addrs []netip.Prefix, keepOffloads bool) (*Device, error) {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := ns.Sysctl("net/ipv6/conf/"+name+"/accept_dad", "0"); err != nil {
		return nil, err
	}
	if !keepOffloads {
		if err := ns.OffloadsOff(name); err != nil {
			return nil, err
		}
	}
	d := &Device{NS: ns, Name: name, Index: link.Attrs().Index, MAC: link.Attrs().HardwareAddr}
	if err := ns.nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("up: %w", err)
	}
	for _, p := range addrs {
		if err := d.AddAddr(p); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// AddAddr gives the device an address, usable at once.
func (d *Device) AddAddr(p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: d.Name, Index: d.Index}}
	if err := d.NS.nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, d.Name, err)
	}
	d.Addrs = append(d.Addrs, p)
	return nil
}

// AddNeighbour enters a permanent neighbour.
func (d *Device) AddNeighbour(a netip.Addr, mac net.HardwareAddr) error {
	err := d.NS.nl.NeighSet(&netlink.Neigh{
		LinkIndex: d.Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", a, d.Name, err)
	}
	return nil
}

// knows enters all addresses of a peer as permanent neighbours.
func (d *Device) knows(peer *Device) error {
	for _, p := range peer.Addrs {
		if err := d.AddNeighbour(p.Addr(), peer.MAC); err != nil {
			return err
		}
	}
	return nil
}

// AddRoute adds a route through the device: by a gateway, or, if via is the
// zero Addr, with the destinations on the link itself. The device's first
// address of the family is the preferred source: left alone, IPv6 would take
// the last.
func (d *Device) AddRoute(dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: d.Index, Dst: ipNet(dst)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if src := d.Addr(FamilyOf(dst.Addr())); src.IsValid() {
		r.Src = src.AsSlice()
	}
	if err := d.NS.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %s dev %s: %w", dst, via, d.Name, err)
	}
	return nil
}

// Bridge makes a learning switch without spanning tree or multicast snooping
// in the namespace, and up. Join puts devices on it.
func (ns *Namespace) Bridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(bool)}
	if err := ns.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	// Bridged packets stay away from the IP stack's hooks, which would put
	// fragments together and take them apart again.
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		if err := ns.Sysctl("net.bridge.bridge-nf-call-"+f, "0"); err != nil {
			return err
		}
	}
	// The switch itself must not speak.
	if err := ns.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := ns.OffloadsOff(name); err != nil {
		return err
	}
	if err := ns.nl.LinkSetUp(br); err != nil {
		return fmt.Errorf("bridge %s up: %w", name, err)
	}
	return nil
}

// Join puts the device on a bridge of its namespace.
func (d *Device) Join(bridge string) error {
	if err := d.mute(); err != nil {
		return err
	}
	br, err := d.NS.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("join %s: %w", bridge, err)
	}
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: d.Name, Index: d.Index}}
	if err := d.NS.nl.LinkSetMaster(link, br); err != nil {
		return fmt.Errorf("join %s: %w", bridge, err)
	}
	return nil
}

// Delete removes the device, and the peer of a veth with it.
func (d *Device) Delete() error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: d.Name, Index: d.Index}}
	if err := d.NS.nl.LinkDel(link); err != nil {
		return fmt.Errorf("delete %s: %w", d.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

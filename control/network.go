package control

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/follow"
)

// network is what the host is in by a NIC: untagged, or a VLAN.
type network struct {
	tag     uint32 // TPID<<16 | VLAN id; 0 is untagged
	subnets []netip.Prefix
}

// reaches reports whether an address is on-link there.
func (n network) reaches(a netip.Addr) bool {
	return slices.ContainsFunc(n.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// vlans are the VLANs that the configuration names.
func (d *Daemon) vlans() (out []follow.VLAN) {
	for i, nic := range d.cfg.Interfaces {
		for _, v := range nic.VLANs {
			out = append(out, follow.VLAN{Name: v.Interface, Port: i, ID: uint16(v.ID)})
		}
	}
	return out
}

// readNetworks reads those of all NICs: each one's own, and those of the interfaces
// that are its VLANs, or stand for them. A NIC that is not there keeps what it had, lest
// its addresses be announced elsewhere.
func (d *Daemon) readNetworks() error {
	devices, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("interfaces: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of the interfaces: %w", err)
	}
	for _, l := range d.links {
		if l.program == nil {
			continue
		}
		l.networks = []network{{subnets: subnetsOf(l.ifindex, addrs)}}
		for _, dev := range devices {
			if tag := d.tagOf(l, dev); tag != 0 {
				l.join(network{tag, subnetsOf(dev.Attrs().Index, addrs)})
			}
		}
		if len(l.networks) > 1 && len(l.networks[0].subnets) == 0 {
			l.networks = l.networks[1:] // a trunk, on which nobody speaks without a tag
		}
	}
	return nil
}

// join adds a network to those of the NIC. A VLAN may have two interfaces, of which one
// lies upon the other.
func (l *link) join(n network) {
	for i, o := range l.networks {
		if o.tag == n.tag {
			l.networks[i].subnets = append(o.subnets, n.subnets...)
			return
		}
	}
	l.networks = append(l.networks, n)
}

// tagOf is that of the VLAN of a NIC which a device is or stands for; 0 if none.
func (d *Daemon) tagOf(l *link, dev netlink.Link) uint32 {
	for _, v := range d.vlans() {
		if v.Name == dev.Attrs().Name {
			if v.Port == int(l.id) {
				return unix.ETH_P_8021Q<<16 | uint32(v.ID)
			}
			return 0
		}
	}
	v, ok := dev.(*netlink.Vlan)
	if !ok || dev.Attrs().ParentIndex != l.ifindex {
		return 0
	}
	tpid := uint32(v.VlanProtocol)
	if tpid == 0 {
		tpid = unix.ETH_P_8021Q
	}
	return tpid<<16 | uint32(v.VlanId)
}

// subnetsOf are those of a device.
func subnetsOf(ifindex int, addrs []netlink.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ip = ip.Unmap(); ok && a.LinkIndex == ifindex && !ip.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	return out
}

package announce

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of more groups than maxGroups the NIC takes all multicast frames, until fewer than a
// half are left. The kernel looks through its list of them for each one that comes or
// goes, so 30,000 took half a minute; and a NIC's own filter has no room for a thousand.
const maxGroups = 1024

// Join makes the NIC listen to the solicited-node groups of the IPv6 addresses
// among addrs; IPv4 has none. Addresses joined before are left as they are, so
// a new configuration's whole list may be given.
func (a *Announcer) Join(addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if !addr.Is6() || a.joined[addr] {
			continue
		}
		hw := solicitedNodeHW(addr)
		if a.groups[hw] == 0 {
			if err := a.open(hw); err != nil {
				return fmt.Errorf("solicited-node group of %v on interface %d: %w", addr, a.ifindex, err)
			}
		}
		a.groups[hw]++
		a.joined[addr] = true
	}
	return nil
}

// open has the NIC take a group more.
func (a *Announcer) open(hw [6]byte) error {
	switch {
	case a.all:
		return nil
	case len(a.groups) < maxGroups:
		return a.member(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, hw)
	}
	if err := a.member(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, [6]byte{}); err != nil {
		return err
	}
	a.all = true
	return a.each(unix.PACKET_DROP_MEMBERSHIP)
}

// Leave undoes Join for these addresses; others may share their groups.
func (a *Announcer) Leave(addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if !a.joined[addr] {
			continue
		}
		delete(a.joined, addr)
		hw := solicitedNodeHW(addr)
		if a.groups[hw]--; a.groups[hw] > 0 {
			continue
		}
		delete(a.groups, hw)
		if a.all {
			continue
		}
		if err := a.member(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_MULTICAST, hw); err != nil {
			return fmt.Errorf("solicited-node group of %v on interface %d: %w", addr, a.ifindex, err)
		}
	}
	if !a.all || len(a.groups) >= maxGroups/2 {
		return nil
	}
	if err := a.each(unix.PACKET_ADD_MEMBERSHIP); err != nil {
		return err
	}
	a.all = false
	if err := a.member(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, [6]byte{}); err != nil {
		return fmt.Errorf("all groups on interface %d: %w", a.ifindex, err)
	}
	return nil
}

// each adds or drops the membership of every group.
func (a *Announcer) each(option int) error {
	for hw := range a.groups {
		if err := a.member(option, unix.PACKET_MR_MULTICAST, hw); err != nil {
			return fmt.Errorf("solicited-node group %v on interface %d: %w", net.HardwareAddr(hw[:]), a.ifindex, err)
		}
	}
	return nil
}

func (a *Announcer) member(option int, kind uint16, hw [6]byte) error {
	mreq := unix.PacketMreq{Ifindex: int32(a.ifindex), Type: kind}
	if kind == unix.PACKET_MR_MULTICAST {
		mreq.Alen = uint16(copy(mreq.Address[:], hw[:]))
	}
	return unix.SetsockoptPacketMreq(a.fd, unix.SOL_PACKET, option, &mreq)
}

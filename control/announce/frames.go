package announce

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

var (
	broadcast  = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes   = netip.MustParseAddr("ff02::1")
	allNodesHW = [6]byte{0x33, 0x33, 0, 0, 0, 1}
)

// frameFor returns the frame that announces a place at mac and the MAC address it
// goes to.
func frameFor(p Place, mac [6]byte) (frame []byte, to [6]byte) {
	if p.Addr.Is4() {
		frame, to = gratuitousARP(p.Addr, mac), broadcast
	} else {
		frame, to = unsolicitedNA(p.Addr, mac), allNodesHW
	}
	if p.Tag != 0 {
		const behind = 12 // the MAC addresses
		frame = slices.Insert(frame, behind, binary.BigEndian.AppendUint32(nil, p.Tag)...)
	}
	return frame, to
}

func ethernet(to, from [6]byte, etherType uint16, room int) []byte {
	b := make([]byte, 0, 14+room)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// gratuitousARP is an ARP announcement (RFC 5227 section 3): a request, since
// some peers ignore unasked-for replies, with sender and target address equal.
func gratuitousARP(addr netip.Addr, mac [6]byte) []byte {
	ip := addr.As4()
	b := ethernet(broadcast, mac, unix.ETH_P_ARP, 28)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, address lengths, request
	b = append(b, mac[:]...)
	b = append(b, ip[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, ip[:]...)
}

// unsolicitedNA is an unsolicited neighbour advertisement (RFC 4861 sections
// 4.4 and 7.2.6): from the address itself to all nodes, override set, router
// and solicited not.
func unsolicitedNA(addr netip.Addr, mac [6]byte) []byte {
	const (
		icmpLen  = 32 // header 4, flags 4, target 16, target link-layer address option 8
		override = 0x20
	)
	ip, dst := addr.As16(), allNodes.As16()
	b := ethernet(allNodesHW, mac, unix.ETH_P_IPV6, 40+icmpLen)
	b = append(b, 0x60, 0, 0, 0, 0, icmpLen, unix.IPPROTO_ICMPV6, 255) // hop limit 255 or it is not believed
	b = append(b, ip[:]...)
	b = append(b, dst[:]...)
	b = append(b, 136, 0, 0, 0, override, 0, 0, 0)
	b = append(b, ip[:]...)
	b = append(b, 2, 1)
	b = append(b, mac[:]...)
	icmp := b[14+40:]
	binary.BigEndian.PutUint16(icmp[2:], checksum(ip, dst, icmp))
	return b
}

// checksum is that of ICMPv6 (RFC 4443 section 2.3), pseudo-header included.
func checksum(src, dst [16]byte, icmp []byte) uint16 {
	sum := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{src[:], dst[:], icmp} { // all of even length
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// solicitedNodeHW is the Ethernet address of the group ff02::1:ffXX:XXXX that
// asks for addr (RFC 4291 section 2.7.1, RFC 2464 section 7).
func solicitedNodeHW(addr netip.Addr) [6]byte {
	ip := addr.As16()
	return [6]byte{0x33, 0x33, 0xff, ip[13], ip[14], ip[15]}
}

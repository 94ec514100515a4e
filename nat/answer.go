package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

const (
	macLen    = 6
	groupBit  = 1 // of a MAC's first byte (IEEE 802.3): group address
	answerTTL = 64

	naLen         = 32 // ICMPv6 header, flags, target, one link-layer option
	optSourceLink = 1  // RFC 4861 section 4.6.1
	optTargetLink = 2
	naSolicited   = 1 << 30 // RFC 4861 section 4.4
	naOverride    = 1 << 29
)

// AnswerARP turns a request for p.Dst (KindARP, operation request) into the
// reply that says mac has it (RFC 826), in place and of the same length. A probe
// with sender 0.0.0.0 is answered as RFC 5227 section 2.1.1 has it: that is how
// another host learns that the address is taken. It returns false, with the
// frame untouched, if it is not a request or the sender's hardware address is a
// group address, to which an answer would be an amplifier.
func AnswerARP(frame []byte, p *packet.Packet, mac [6]byte) bool {
	l3 := int(p.L3)
	if p.Kind != packet.KindARP || l3 < packet.EthLen || len(frame) < l3+packet.ARPLen {
		return false
	}
	a := frame[l3 : l3+packet.ARPLen]
	if binary.BigEndian.Uint16(a[packet.ARPOp:]) != packet.ARPRequest || a[packet.ARPSenderMAC]&groupBit != 0 {
		return false
	}
	binary.BigEndian.PutUint16(a[packet.ARPOp:], packet.ARPReply)
	var target [4]byte
	copy(target[:], a[packet.ARPTargetIP:packet.ARPTargetIP+4])
	copy(a[packet.ARPTargetMAC:packet.ARPTargetMAC+macLen+4], a[packet.ARPSenderMAC:packet.ARPSenderMAC+macLen+4])
	copy(a[packet.ARPSenderMAC:packet.ARPSenderMAC+macLen], mac[:])
	copy(a[packet.ARPSenderIP:packet.ARPSenderIP+4], target[:])
	copy(frame[packet.EthDst:packet.EthDst+macLen], a[packet.ARPTargetMAC:packet.ARPTargetMAC+macLen])
	copy(frame[packet.EthSrc:packet.EthSrc+macLen], mac[:])
	return true
}

// AnswerNS turns a neighbour solicitation for p.Dst (KindNS) into the neighbour
// advertisement that says mac has it (RFC 4861 section 7.2.4): hop limit 255,
// override set, router flag clear, target link-layer option. A solicitation from
// the unspecified address (duplicate address detection, RFC 4862 section 5.4) is
// answered to all nodes and without the solicited flag.
//
// It returns the new length of the frame, 0 if the frame cannot be answered. A
// solicitation without a link-layer option is shorter than the answer: the frame
// slice must then have the capacity for it (p.L3+72 bytes), as any frame in a
// 2048-byte chunk does.
func AnswerNS(frame []byte, p *packet.Packet, mac [6]byte) int {
	l3, l4 := int(p.L3), int(p.L4)
	size := l3 + packet.IPv6Len + naLen
	if p.Kind != packet.KindNS || l3 < packet.EthLen || l4 < l3+packet.IPv6Len || int(p.End) > len(frame) ||
		l4+packet.NDOptions > int(p.End) || cap(frame) < size {
		return 0
	}
	var to [macLen]byte
	src := p.Src
	flags := uint32(naSolicited | naOverride)
	if src.IsZero() {
		src = packet.Addr{Hi: 0xff02 << 48, Lo: 1}
		to = [macLen]byte{0x33, 0x33, 0, 0, 0, 1}
		flags = naOverride
	} else {
		to = solicitor(frame, p)
		if to[0]&groupBit != 0 {
			return 0
		}
	}
	frame = frame[:size]
	copy(frame[packet.EthDst:], to[:])
	copy(frame[packet.EthSrc:packet.EthSrc+macLen], mac[:])
	h := frame[l3:]
	binary.BigEndian.PutUint32(h, 6<<28)
	binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], naLen)
	h[packet.IPv6NextHeader], h[packet.IPv6HopLimit] = packet.ProtoICMPv6, 255
	p.Dst.Put16(h[packet.IPv6Src:])
	src.Put16(h[packet.IPv6Dst:])
	m := h[packet.IPv6Len:]
	m[0], m[1], m[2], m[3] = packet.ICMPv6NeighborAdvert, 0, 0, 0
	binary.BigEndian.PutUint32(m[4:], flags)
	p.Dst.Put16(m[packet.NDTarget:])
	m[packet.NDOptions], m[packet.NDOptions+1] = optTargetLink, 1
	copy(m[packet.NDOptions+2:], mac[:])
	csum := packet.Checksum(m, packet.PseudoSum(p.Dst, src, packet.ProtoICMPv6, naLen))
	binary.BigEndian.PutUint16(m[packet.ICMPChecksum:], csum)
	return size
}

// solicitor returns the link-layer address an advertisement should go to: the
// solicitation's source link-layer option, or who sent the frame.
func solicitor(frame []byte, p *packet.Packet) (mac [macLen]byte) {
	copy(mac[:], frame[packet.EthSrc:])
	o := frame[int(p.L4)+packet.NDOptions : p.End]
	for len(o) >= 8 {
		n := int(o[1]) * 8
		if n == 0 || n > len(o) {
			break
		}
		if o[0] == optSourceLink && n == 8 {
			copy(mac[:], o[2:])
			break
		}
		o = o[n:]
	}
	return mac
}

// AnswerEcho turns an ICMP or ICMPv6 echo request (KindEcho) into its reply, in
// place and of the same length: MACs and addresses swapped, TTL 64, checksums
// updated incrementally (the swap itself changes no sum). It returns false, with
// the frame untouched, if the request came to or from a group MAC address: we
// would be answering from an address that is not ours.
func AnswerEcho(frame []byte, p *packet.Packet) bool {
	l3, l4 := int(p.L3), int(p.L4)
	if p.Kind != packet.KindEcho || l3 < packet.EthLen || l4 < l3+packet.IPv4MinLen || len(frame) < l4+packet.ICMPLen {
		return false
	}
	if (frame[packet.EthDst]|frame[packet.EthSrc])&groupBit != 0 {
		return false
	}
	h, m := frame[l3:], frame[l4:]
	var diff uint16
	if p.V6 {
		if l4 < l3+packet.IPv6Len {
			return false
		}
		h[packet.IPv6HopLimit] = answerTTL
		p.Dst.Put16(h[packet.IPv6Src:])
		p.Src.Put16(h[packet.IPv6Dst:])
		m[0] = packet.ICMPv6EchoReply
		diff = packet.Diff16(packet.ICMPv6EchoRequest<<8, packet.ICMPv6EchoReply<<8)
	} else {
		csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
		csum = packet.Apply(csum, packet.Diff16(uint16(h[packet.IPv4TTL])<<8, answerTTL<<8))
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], csum)
		h[packet.IPv4TTL] = answerTTL
		p.Dst.Put4(h[packet.IPv4Src:])
		p.Src.Put4(h[packet.IPv4Dst:])
		m[0] = packet.ICMPEchoReply
		diff = packet.Diff16(packet.ICMPEchoRequest<<8, packet.ICMPEchoReply<<8)
	}
	csum := packet.Apply(binary.BigEndian.Uint16(m[packet.ICMPChecksum:]), diff)
	if csum == 0 {
		// An IPv4 reply with id, sequence and data 0 is zero all over, the one
		// message whose checksum must be the other zero; no other minds.
		csum = 0xffff
	}
	binary.BigEndian.PutUint16(m[packet.ICMPChecksum:], csum)
	var was [macLen]byte
	copy(was[:], frame[packet.EthDst:])
	copy(frame[packet.EthDst:packet.EthDst+macLen], frame[packet.EthSrc:])
	copy(frame[packet.EthSrc:packet.EthSrc+macLen], was[:])
	return true
}

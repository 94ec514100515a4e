package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// UOAQuoted returns by how much the packet that an ICMP error is about has grown by
// UOAOption. p is Parse's result for frame.
func UOAQuoted(frame []byte, p *packet.Packet) int {
	at := int(p.Payload) + packet.IPv4MinLen
	if p.Kind != packet.KindICMPError || p.V6 || int(p.Inner4) < at+toaLen4 || int(p.Inner4) > len(frame) || frame[at] != optUOA {
		return 0
	}
	return toaLen4
}

// QuotesUOAProtocol reports whether p, Parse's result for frame, is an ICMP error about a
// datagram with UOAProtocol, or UOASeparate. It has to go through UnquoteUOA before
// anything else here, or end.
func QuotesUOAProtocol(frame []byte, p *packet.Packet) bool {
	at := packet.IPv4Proto
	if p.V6 {
		at = packet.IPv6NextHeader
	}
	return p.Kind == packet.KindICMPError && isError(frame, p) && frame[int(p.Payload)+at] == packet.ProtoUOA
}

// UnquoteUOA takes the header of protocol 248 out of the packet that an ICMP error is
// about, as if it had been sent without, and returns its length, by which the MTU is too
// large for the client yet. Lengths, p and checksums are corrected, damage stays.
//
// It returns 0, with nothing changed, unless the error is "fragmentation needed" or
// "packet too big": nothing else concerns the client. A server that knows no protocol 248
// says so, but the next datagrams are without; and what was sent apart is none of the client's.
func UnquoteUOA(frame []byte, p *packet.Packet, e *conntrack.Entry) int {
	if !QuotesUOAProtocol(frame, p) {
		return 0
	}
	msg, h := frame[p.L4:p.End], frame[p.Payload:p.Inner4]
	head := packet.IPv6Len
	tooBig := msg[packet.ICMPType] == packet.ICMPv6PacketTooBig
	if !p.V6 {
		head = int(h[0]&15) * 4
		// Of extensions behind the packet (RFC 4884) it would tell the wrong place.
		tooBig = msg[packet.ICMPType] == packet.ICMPUnreachable && msg[packet.ICMPCode] == packet.ICMPFragNeeded && msg[5] == 0
	}
	n := len(h) - head
	if !tooBig || n != oppLen+int(TOALen(e)) {
		return 0
	}
	before := packet.Fold(packet.Sum(msg, 0))
	if p.V6 {
		h[packet.IPv6NextHeader] = packet.ProtoUDP
		binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], binary.BigEndian.Uint16(h[packet.IPv6PayloadLen:])-uint16(n))
	} else {
		was := binary.BigEndian.Uint16(h[packet.IPv4TotalLen:])
		h[packet.IPv4Proto] = packet.ProtoUDP
		binary.BigEndian.PutUint16(h[packet.IPv4TotalLen:], was-uint16(n))
		diff := packet.AddDiff(packet.Diff16(was, was-uint16(n)), packet.Diff16(packet.ProtoUOA, packet.ProtoUDP))
		csum := h[packet.IPv4Checksum : packet.IPv4Checksum+2]
		binary.BigEndian.PutUint16(csum, packet.Apply(binary.BigEndian.Uint16(csum), diff))
	}
	copy(frame[int(p.Payload)+head:], frame[p.Inner4:p.End])
	p.Inner4 -= uint16(n)
	diff := resize(frame, p, -n)
	msg = frame[p.L4:p.End]
	if !p.V6 {
		diff = 0 // no pseudo header
	}
	diff = packet.AddDiff(diff, packet.AddDiff(packet.Negate(before), packet.Fold(packet.Sum(msg, 0))))
	csum := msg[packet.ICMPChecksum : packet.ICMPChecksum+2]
	binary.BigEndian.PutUint16(csum, packet.Apply(binary.BigEndian.Uint16(csum), diff))
	return n
}

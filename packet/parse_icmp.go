package packet

import "encoding/binary"

func parseICMP4(frame []byte, p *Packet) Err {
	b := frame[p.L4:p.End]
	if len(b) < ICMPLen {
		return ErrTruncated
	}
	p.Payload = p.L4 + ICMPLen
	switch b[ICMPType] {
	case ICMPEchoRequest:
		if b[ICMPCode] == 0 {
			p.Kind = KindEcho
		}
	case ICMPUnreachable, ICMPTimeExceeded, ICMPParameterProblem:
		return parseInner4(frame, p)
	}
	return ErrNone
}

func parseICMP6(frame []byte, p *Packet) Err {
	b := frame[p.L4:p.End]
	if len(b) < ICMPLen {
		return ErrTruncated
	}
	p.Payload = p.L4 + ICMPLen
	switch b[ICMPType] {
	case ICMPv6EchoRequest:
		if b[ICMPCode] == 0 {
			p.Kind = KindEcho
		}
	case ICMPv6Unreachable, ICMPv6PacketTooBig, ICMPv6TimeExceeded, ICMPv6ParameterProblem:
		return parseInner6(frame, p)
	case ICMPv6NeighborSolicit:
		return parseNS(frame, p)
	}
	return ErrNone
}

// parseInner4 reads the packet an ICMP error is about. Its total length and
// header checksum are not believed (routers of all ages change them), nor is
// it ever complete; eight bytes of transport header are owed (RFC 792).
func parseInner4(frame []byte, p *Packet) Err {
	b := frame[p.Payload:p.End]
	if len(b) < IPv4MinLen {
		return ErrICMPInner
	}
	n := int(b[0]&15) * 4
	if b[0]>>4 != 4 || n < IPv4MinLen {
		return ErrICMPInner
	}
	if binary.BigEndian.Uint16(b[IPv4Frag:])&IPv4OffsetMask != 0 {
		return ErrICMPInnerFragment
	}
	src, dst := Addr4(b[IPv4Src:]), Addr4(b[IPv4Dst:])
	return parseInner(frame, p, src, dst, int(p.Payload)+n, b[IPv4Proto])
}

func parseInner6(frame []byte, p *Packet) Err {
	b := frame[p.Payload:p.End]
	if len(b) < IPv6Len || b[0]>>4 != 6 {
		return ErrICMPInner
	}
	src, dst := Addr16(b[IPv6Src:]), Addr16(b[IPv6Dst:])
	if src.Is4() || dst.Is4() {
		return ErrMapped
	}
	w := walk6{at: int(p.Payload) + IPv6Len, proto: b[IPv6NextHeader]}
	if w.walk(frame[:p.End]) != ErrNone {
		return ErrICMPInner
	}
	if w.fragment && w.offset != 0 {
		return ErrICMPInnerFragment
	}
	return parseInner(frame, p, src, dst, w.at, w.proto)
}

// parseInner reads the embedded transport header at l4 and turns the tuple
// round.
func parseInner(frame []byte, p *Packet, src, dst Addr, l4 int, proto uint8) Err {
	if proto == ProtoUOA {
		n := uoaLen(frame[min(l4, int(p.End)):p.End]) // the options before it may be cut
		if n == 0 || p.V6 && l4 != int(p.Payload)+IPv6Len {
			return ErrNone // as below
		}
		l4, proto = l4+n, ProtoUDP
	}
	if proto != ProtoTCP && proto != ProtoUDP {
		return ErrNone // about a packet nobody forwards by flow: KindOther
	}
	if int(p.End)-l4 < 8 {
		return ErrICMPInner
	}
	b := frame[l4 : l4+8 : l4+8]
	p.Src, p.Dst = dst, src
	p.SrcPort = binary.BigEndian.Uint16(b[2:])
	p.DstPort = binary.BigEndian.Uint16(b[0:])
	p.Proto = proto
	if proto == ProtoTCP {
		p.Seq = binary.BigEndian.Uint32(b[TCPSeq:])
	}
	p.Inner4 = uint16(l4)
	p.Kind = KindICMPError
	return ErrNone
}

// uoaLen is the length of the header of ProtoUOA that b begins with: version, the protocol
// behind it, its length, and options. It is 0 if there is not all of that and of a UDP header.
func uoaLen(b []byte) int {
	const least, most = 4, 64
	if len(b) < least || b[1] != ProtoUDP {
		return 0
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < least || n > most || n%4 != 0 || len(b) < n+UDPLen {
		return 0
	}
	return n
}

// parseNS validates a neighbour solicitation as RFC 4861 section 7.1.1 asks,
// the checksum apart. It is stricter in one thing: no extension header may
// precede it. RFC 6980 forbids fragment headers there, and nobody sends others.
func parseNS(frame []byte, p *Packet) Err {
	b := frame[p.L4:p.End]
	if frame[int(p.L3)+IPv6HopLimit] != 255 || b[ICMPCode] != 0 || len(b) < NDOptions || p.L4 != p.L3+IPv6Len {
		return ErrND
	}
	target := Addr16(b[NDTarget:])
	if target.Is4() {
		return ErrMapped
	}
	if target.Hi>>56 == 0xff || target.IsZero() {
		return ErrND
	}
	const sourceLinkAddr = 1
	probe := p.Src.IsZero()
	for o := b[NDOptions:]; len(o) > 0; {
		if len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) || probe && o[0] == sourceLinkAddr {
			return ErrND
		}
		o = o[int(o[1])*8:]
	}
	if probe && !solicitedNode(p.Dst) {
		return ErrND
	}
	p.Dst = target
	p.Payload = p.L4 + NDOptions
	p.Kind = KindNS
	return ErrNone
}

// solicitedNode reports whether a is in ff02::1:ff00:0/104 (RFC 4291 section
// 2.7.1).
func solicitedNode(a Addr) bool {
	return a.Hi == 0xff02<<48 && a.Lo>>24 == 0x1ff
}

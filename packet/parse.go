package packet

import "encoding/binary"

// maxFrame is what 16-bit offsets address.
const maxFrame = 0xffff

// Parse reads the frame, an Ethernet II frame without FCS, into p and returns
// p.Err. Whatever the bytes, it does not panic, allocate or write to the frame,
// and every field of p is written, so p need not be cleared before.
//
// When it returns ErrNone,
//
//	L3 < L4 ≤ Payload ≤ End ≤ len(frame)
//
// and each header named by p.Kind lies wholly before p.End. On refusal p.Kind
// is KindOther and the other fields hold what was learnt until then: good for
// a log or a capture, never for a rewrite.
//
// What is accepted and why:
//   - one VLAN tag, 802.1Q or 802.1ad;
//   - IPv4 options, save source routes: the destination of such a packet is
//     not the address it stands for, and it tunnels past filters (RFC 7126
//     recommends dropping it);
//   - up to 8 IPv6 extension headers; with AH, ESP or none next the packet is
//     KindOther. A fragment header with offset 0 and no more fragments is
//     skipped: such an "atomic fragment" is the whole datagram (RFC 6946);
//   - of ICMP errors only those about TCP and UDP; others are KindOther, as is
//     source quench, which RFC 6633 tells everyone to ignore.
func Parse(frame []byte, p *Packet) Err {
	if len(frame) >= EthLen+IPv4MinLen+UDPLen && len(frame) <= maxFrame && parsePlain4(frame, p) {
		return ErrNone
	}
	*p = Packet{}
	p.Err = parseEthernet(frame, p)
	if p.Err != ErrNone {
		p.Kind = KindOther
	}
	return p.Err
}

// parsePlain4 is the short way for what nearly all traffic is: IPv4 without
// VLAN tag, options or fragments, carrying TCP or UDP. On false the packet is
// anything else, a faulty one included, and p may hold rubbish: the long way
// decides, and says why.
func parsePlain4(frame []byte, p *Packet) bool {
	b := frame[: EthLen+IPv4MinLen+UDPLen : EthLen+IPv4MinLen+UDPLen]
	// EtherType, version and header length in one compare; TOS is masked out.
	if binary.BigEndian.Uint32(b[EthType:])&0xffffff00 != EtherTypeIPv4<<16|0x45<<8 {
		return false
	}
	if binary.BigEndian.Uint16(b[EthLen+IPv4Frag:])&(IPv4MoreFragments|IPv4OffsetMask) != 0 {
		return false
	}
	const l4 = EthLen + IPv4MinLen
	end := EthLen + uint(binary.BigEndian.Uint16(b[EthLen+IPv4TotalLen:]))
	src := binary.BigEndian.Uint32(b[EthLen+IPv4Src:])
	dst := binary.BigEndian.Uint32(b[EthLen+IPv4Dst:])
	if end > uint(len(frame)) || martian4(src) || src == dst || dst == 0 {
		return false
	}
	var payload, window uint
	var seq, ack uint32
	var flags uint8
	var kind Kind
	proto := b[EthLen+IPv4Proto]
	switch proto {
	case ProtoTCP:
		if len(frame) < l4+TCPMinLen {
			return false
		}
		t := frame[l4 : l4+TCPMinLen : l4+TCPMinLen]
		n := uint(t[TCPOffset]) >> 4 * 4
		payload = l4 + n
		if n < TCPMinLen || payload > end {
			return false
		}
		kind = KindTCP
		seq = binary.BigEndian.Uint32(t[TCPSeq:])
		ack = binary.BigEndian.Uint32(t[TCPAck:])
		flags = t[TCPFlags]
		window = uint(binary.BigEndian.Uint16(t[TCPWindow:]))
	case ProtoUDP:
		n := uint(binary.BigEndian.Uint16(b[l4+UDPLength:]))
		if n < UDPLen || l4+n > end {
			return false
		}
		kind = KindUDP
		payload = l4 + UDPLen
	default:
		return false
	}
	ports := binary.BigEndian.Uint32(b[l4:])
	*p = Packet{}
	p.Src.Lo = mappedPrefix | uint64(src)
	p.Dst.Lo = mappedPrefix | uint64(dst)
	p.SrcPort = uint16(ports >> 16)
	p.DstPort = uint16(ports)
	p.Proto = proto
	p.Seq = seq
	p.Ack = ack
	p.L3 = EthLen
	p.L4 = l4
	p.Payload = uint16(payload)
	p.End = uint16(end)
	p.Kind = kind
	p.TCPFlags = flags
	p.Window = uint16(window)
	return true
}

func isVLAN(etherType uint16) bool {
	return etherType == EtherTypeVLAN || etherType == EtherTypeSTAG
}

func parseEthernet(frame []byte, p *Packet) Err {
	if len(frame) > maxFrame {
		return ErrFrameTooLong
	}
	if len(frame) < EthLen {
		return ErrTruncated
	}
	etherType := binary.BigEndian.Uint16(frame[EthType:])
	p.L3 = EthLen
	if isVLAN(etherType) {
		if len(frame) < VLANEthLen {
			return ErrTruncated
		}
		etherType = binary.BigEndian.Uint16(frame[VLANType:])
		p.L3 = VLANEthLen
		if isVLAN(etherType) {
			return ErrStackedVLAN
		}
	}
	switch etherType {
	case EtherTypeIPv4:
		return parse4(frame, p)
	case EtherTypeIPv6:
		return parse6(frame, p)
	case EtherTypeARP:
		return parseARP(frame, p)
	}
	return ErrEtherType
}

// parseTransport reads the header at p.L4, all of p before it being set, and
// sets Kind last. Fragments do not come here.
func parseTransport(frame []byte, p *Packet) Err {
	p.Payload = p.L4
	switch {
	case p.Proto == ProtoTCP:
		return parseTCP(frame, p)
	case p.Proto == ProtoUDP:
		return parseUDP(frame, p)
	case p.Proto == ProtoICMP && !p.V6:
		return parseICMP4(frame, p)
	case p.Proto == ProtoICMPv6 && p.V6:
		return parseICMP6(frame, p)
	}
	return ErrNone
}

func parseTCP(frame []byte, p *Packet) Err {
	b := frame[p.L4:p.End]
	if len(b) < TCPMinLen {
		return ErrTruncated
	}
	b = b[:TCPMinLen:TCPMinLen]
	n := uint16(b[TCPOffset]) >> 4 * 4
	if n < TCPMinLen || n > p.End-p.L4 {
		return ErrTCPOffset
	}
	p.SrcPort = binary.BigEndian.Uint16(b[TCPSrcPort:])
	p.DstPort = binary.BigEndian.Uint16(b[TCPDstPort:])
	p.Seq = binary.BigEndian.Uint32(b[TCPSeq:])
	p.Ack = binary.BigEndian.Uint32(b[TCPAck:])
	p.TCPFlags = b[TCPFlags]
	p.Window = binary.BigEndian.Uint16(b[TCPWindow:])
	p.Payload = p.L4 + n
	if p.Src == p.Dst && p.SrcPort == p.DstPort {
		return ErrLand
	}
	p.Kind = KindTCP
	return ErrNone
}

func parseUDP(frame []byte, p *Packet) Err {
	b := frame[p.L4:p.End]
	if len(b) < UDPLen {
		return ErrTruncated
	}
	b = b[:UDPLen:UDPLen]
	// The length may be less than the datagram holds: what is between belongs
	// to nobody (or to RFC 9868's UDP options) and travels along.
	n := binary.BigEndian.Uint16(b[UDPLength:])
	if n < UDPLen || n > p.End-p.L4 {
		return ErrUDPLength
	}
	p.SrcPort = binary.BigEndian.Uint16(b[UDPSrcPort:])
	p.DstPort = binary.BigEndian.Uint16(b[UDPDstPort:])
	p.Payload = p.L4 + UDPLen
	if p.V6 && binary.BigEndian.Uint16(b[UDPChecksum:]) == 0 {
		return ErrUDPZeroChecksum
	}
	if p.Src == p.Dst && p.SrcPort == p.DstPort {
		return ErrLand
	}
	p.Kind = KindUDP
	return ErrNone
}

// parseARP takes requests and replies for IPv4 over Ethernet (RFC 826). The
// sender may be 0.0.0.0: so a host probes for its own address (RFC 5227).
func parseARP(frame []byte, p *Packet) Err {
	b := frame[p.L3:]
	if len(b) < ARPLen {
		return ErrTruncated
	}
	b = b[:ARPLen:ARPLen]
	const ethernetIPv4 = 0x0001<<48 | 0x0800<<32 | 0x0604<<16 // hardware, protocol, their address lengths
	head := binary.BigEndian.Uint64(b)
	op := uint16(head)
	if head&^0xffff != ethernetIPv4 || op != ARPRequest && op != ARPReply {
		return ErrARP
	}
	p.Src = Addr4(b[ARPSenderIP:])
	p.Dst = Addr4(b[ARPTargetIP:])
	p.L4 = p.L3 + ARPLen
	p.Payload = p.L4
	p.End = p.L4
	p.Window = op
	if src := p.Src.V4(); src != 0 && martian4(src) {
		return ErrMartianSource
	}
	p.Kind = KindARP
	return ErrNone
}

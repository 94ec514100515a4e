package packet

import (
	"encoding/binary"
	"math/bits"
)

// maxFrame is what 16-bit offsets address.
const maxFrame = 0xffff

// Parse reads the frame, an Ethernet II frame without FCS, into p and returns
// p.Err. Whatever the bytes, it does not panic, allocate or write to the frame,
// and every field of p is written, so p need not be cleared before. (The
// padding of Tuple is not: compare with == or hash the fields, never the
// memory.)
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
//
// A packet of IPv4 without tag, options or fragments, carrying TCP or UDP, is
// read right here, one of IPv6 by parsePlain6; anything else, a faulty one
// included, is left to parseAny, which also says what is wrong with it.
func Parse(frame []byte, p *Packet) Err {
	const l4 = EthLen + IPv4MinLen
	if len(frame) < l4+TCPMinLen || len(frame) > maxFrame {
		return parseAny(frame, p)
	}
	b := frame[: l4+TCPMinLen : l4+TCPMinLen] // the only bounds check
	end := EthLen + uint(binary.BigEndian.Uint16(b[EthLen+IPv4TotalLen:]))
	src := binary.BigEndian.Uint32(b[EthLen+IPv4Src:])
	dst := binary.BigEndian.Uint32(b[EthLen+IPv4Dst:])
	// EtherType, version and header length at once. What is only compared is read
	// in the processor's order, which takes no instruction to turn it round.
	if binary.LittleEndian.Uint32(b[EthType:])&0x00ffffff != 0x45_00_08 {
		return parsePlain6(frame, p)
	}
	const moreOrOffset = (IPv4MoreFragments|IPv4OffsetMask)>>8 | IPv4OffsetMask&0xff<<8
	// Sources from 224/8 on are looked at more closely by parseAny, see martian4.
	if binary.LittleEndian.Uint16(b[EthLen+IPv4Frag:])&moreOrOffset != 0 ||
		end > uint(len(frame)) || src>>24-1 >= 223 || src>>24 == 127 || src == dst || dst == 0 {
		return parseAny(frame, p)
	}
	switch b[EthLen+IPv4Proto] {
	case ProtoTCP:
		payload := l4 + uint(b[l4+TCPOffset]>>2&0x3c)
		if payload < l4+TCPMinLen || payload > end {
			return parseAny(frame, p)
		}
		p.segment((*[TCPMinLen]byte)(b[l4:]))
		p.Payload = uint16(payload)
	case ProtoUDP:
		n := uint(binary.BigEndian.Uint16(b[l4+UDPLength:]))
		if n < UDPLen || l4+n > end {
			return parseAny(frame, p)
		}
		p.datagram()
		p.Payload = l4 + UDPLen
	default:
		return parseAny(frame, p)
	}
	// Every field is assigned: clearing all first costs a tenth more. The
	// tests parse over a Packet full of rubbish to see that none is forgotten.
	p.Src = Addr{Lo: mappedPrefix | uint64(src)}
	p.Dst = Addr{Lo: mappedPrefix | uint64(dst)}
	p.ports(binary.BigEndian.Uint32(b[l4:]))
	p.L3, p.L4, p.End = EthLen, l4, uint16(end)
	p.V6, p.Err, p.Inner4 = false, ErrNone, 0
	return ErrNone
}

// segment takes from a TCP header what is TCP's alone.
func (p *Packet) segment(t *[TCPMinLen]byte) {
	p.Proto, p.Kind = ProtoTCP, KindTCP
	seq := bits.RotateLeft64(binary.BigEndian.Uint64(t[TCPSeq:]), 32)
	p.Seq, p.Ack = uint32(seq), uint32(seq>>32)
	p.TCPFlags = t[TCPFlags]
	p.Window = binary.BigEndian.Uint16(t[TCPWindow:])
}

// datagram is segment for UDP, which has none of that.
func (p *Packet) datagram() {
	p.Proto, p.Kind = ProtoUDP, KindUDP
	p.Seq, p.Ack = 0, 0
	p.TCPFlags = 0
	p.Window = 0
}

// ports takes the first word of a TCP or UDP header.
func (p *Packet) ports(word uint32) {
	word = bits.RotateLeft32(word, 16)
	p.SrcPort, p.DstPort = uint16(word), uint16(word>>16)
}

// parseAny is Parse for any frame. Inlined at each call above it makes the
// short way slower (measured: 4 %).
//
//go:noinline
func parseAny(frame []byte, p *Packet) Err {
	*p = Packet{}
	p.Err = parseEthernet(frame, p)
	if p.Err != ErrNone {
		p.Kind = KindOther
	}
	return p.Err
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

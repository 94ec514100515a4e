package packet

import "encoding/binary"

// Ethernet (IEEE 802.3): offsets from the frame's first byte, and lengths.
const (
	EthDst     = 0
	EthSrc     = 6
	EthType    = 12
	EthLen     = 14
	VLANTCI    = 14 // tag control information, if EthType is a VLAN's
	VLANType   = 16 // EtherType behind the tag
	VLANEthLen = 18
)

// EtherTypes (IEEE 802).
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeVLAN = 0x8100
	EtherTypeIPv6 = 0x86dd
	EtherTypeSTAG = 0x88a8 // 802.1ad service tag
)

// IPv4 (RFC 791): offsets from Packet.L3.
const (
	IPv4TOS      = 1
	IPv4TotalLen = 2
	IPv4ID       = 4
	IPv4Frag     = 6 // flags (3 bits) and offset (13 bits, units of 8 bytes)
	IPv4TTL      = 8
	IPv4Proto    = 9
	IPv4Checksum = 10
	IPv4Src      = 12
	IPv4Dst      = 16
	IPv4MinLen   = 20
)

// Bits of the 16-bit word at IPv4Frag.
const (
	IPv4DontFragment  = 0x4000
	IPv4MoreFragments = 0x2000
	IPv4OffsetMask    = 0x1fff
)

// IPv6 (RFC 8200): offsets from Packet.L3.
const (
	IPv6PayloadLen = 4
	IPv6NextHeader = 6
	IPv6HopLimit   = 7
	IPv6Src        = 8
	IPv6Dst        = 24
	IPv6Len        = 40
)

// TCP (RFC 9293): offsets from Packet.L4.
const (
	TCPSrcPort  = 0
	TCPDstPort  = 2
	TCPSeq      = 4
	TCPAck      = 8
	TCPOffset   = 12 // data offset, upper 4 bits, in words of 4 bytes
	TCPFlags    = 13
	TCPWindow   = 14
	TCPChecksum = 16
	TCPUrgent   = 18
	TCPMinLen   = 20
	TCPMaxLen   = 60
)

// UDP (RFC 768): offsets from Packet.L4.
const (
	UDPSrcPort  = 0
	UDPDstPort  = 2
	UDPLength   = 4
	UDPChecksum = 6
	UDPLen      = 8
)

// ICMP (RFC 792, 1191) and ICMPv6 (RFC 4443, 4861): offsets from Packet.L4.
const (
	ICMPType     = 0
	ICMPCode     = 1
	ICMPChecksum = 2
	ICMPEchoID   = 4
	ICMPEchoSeq  = 6
	ICMPMTU      = 6 // IPv4 "fragmentation needed": 16 bits
	ICMPv6MTU    = 4 // "packet too big": 32 bits
	ICMPLen      = 8
	NDTarget     = 8
	NDOptions    = 24
)

// ICMP and ICMPv6 types used here (IANA).
const (
	ICMPEchoReply          = 0
	ICMPUnreachable        = 3
	ICMPFragNeeded         = 4 // a code of ICMPUnreachable
	ICMPEchoRequest        = 8
	ICMPTimeExceeded       = 11
	ICMPParameterProblem   = 12
	ICMPv6Unreachable      = 1
	ICMPv6PacketTooBig     = 2
	ICMPv6TimeExceeded     = 3
	ICMPv6ParameterProblem = 4
	ICMPv6EchoRequest      = 128
	ICMPv6EchoReply        = 129
	ICMPv6NeighborSolicit  = 135
	ICMPv6NeighborAdvert   = 136
)

// ARP for Ethernet and IPv4 (RFC 826): offsets from Packet.L3.
const (
	ARPOp        = 6
	ARPSenderMAC = 8
	ARPSenderIP  = 14
	ARPTargetMAC = 18
	ARPTargetIP  = 24
	ARPLen       = 28
	ARPRequest   = 1 // value of ARPOp; Parse leaves it in Packet.Window
	ARPReply     = 2
)

// OuterAddrs reads source and destination of the outermost IP header, which
// for ICMP errors and neighbour solicitations differ from the Tuple. p must be
// an IP packet that Parse accepted in frame.
func (p *Packet) OuterAddrs(frame []byte) (src, dst Addr) {
	h := frame[p.L3:]
	if p.V6 {
		return Addr16(h[IPv6Src:]), Addr16(h[IPv6Dst:])
	}
	return Addr4(h[IPv4Src:]), Addr4(h[IPv4Dst:])
}

// TTL reads the time to live or hop limit. p must be an IP packet that Parse
// accepted in frame.
func (p *Packet) TTL(frame []byte) uint8 {
	if p.V6 {
		return frame[int(p.L3)+IPv6HopLimit]
	}
	return frame[int(p.L3)+IPv4TTL]
}

// DontFragment reports whether routers may not fragment the packet: always so
// in IPv6. p must be an IP packet that Parse accepted in frame.
func (p *Packet) DontFragment(frame []byte) bool {
	return p.V6 || binary.BigEndian.Uint16(frame[int(p.L3)+IPv4Frag:])&IPv4DontFragment != 0
}

// IPLen is the length of the IP datagram in bytes, headers included: what is
// held against an MTU.
func (p *Packet) IPLen() int { return int(p.End) - int(p.L3) }

// VLAN reads the tag control information (priority, DEI and 12-bit VLAN id, as
// a number in host order) of a frame with a tag.
func (p *Packet) VLAN(frame []byte) (tci uint16, ok bool) {
	if p.L3 != VLANEthLen {
		return 0, false
	}
	return binary.BigEndian.Uint16(frame[VLANTCI:]), true
}

// ICMPProto is the protocol number of p's own ICMP header: Tuple.Proto of an
// ICMP error is that of the embedded packet.
func (p *Packet) ICMPProto() uint8 {
	if p.V6 {
		return ProtoICMPv6
	}
	return ProtoICMP
}

// Fragment is what ties the fragments of one datagram together.
type Fragment struct {
	ID     uint32 // 16 bits in IPv4
	Offset uint16 // of this fragment's data within the datagram's, in bytes
	More   bool   // not the last one
}

// Fragment reads the fragment fields of a KindFragment packet. Its data begins
// at p.L4; a fragment with Offset 0 of TCP or UDP holds the whole fixed
// transport header there.
func (p *Packet) Fragment(frame []byte) Fragment {
	if p.V6 {
		h := frame[p.L4-ip6FragLen:]
		w := binary.BigEndian.Uint16(h[2:])
		return Fragment{ID: binary.BigEndian.Uint32(h[4:]), Offset: w &^ 7, More: w&1 != 0}
	}
	h := frame[p.L3:]
	w := binary.BigEndian.Uint16(h[IPv4Frag:])
	return Fragment{
		ID:     uint32(binary.BigEndian.Uint16(h[IPv4ID:])),
		Offset: w & IPv4OffsetMask << 3,
		More:   w&IPv4MoreFragments != 0,
	}
}

// FirstFragment reads the transport header of p, a KindFragment packet of TCP or
// UDP with Offset 0, so that it can be handled as KindTCP or KindUDP: what Parse
// says of a whole datagram is then true of p, but for End, which stays the
// fragment's, while a UDP length or checksum speaks of all fragments. On refusal
// p stays a fragment. VerifyL4 is not for the result. Of a TCP header with its
// options all must be there: else others could put options where nobody looks for
// them (RFC 1858).
func (p *Packet) FirstFragment(frame []byte) Err {
	if p.Proto == ProtoTCP {
		e := parseTCP(frame, p)
		if e == ErrTCPOffset && frame[p.L4+TCPOffset]>>4 >= TCPMinLen/4 {
			e = ErrTinyFragment
		}
		return e
	}
	b := frame[p.L4 : p.L4+UDPLen : p.L4+UDPLen]
	p.SrcPort = binary.BigEndian.Uint16(b[UDPSrcPort:])
	p.DstPort = binary.BigEndian.Uint16(b[UDPDstPort:])
	switch {
	case binary.BigEndian.Uint16(b[UDPLength:]) < UDPLen:
		return ErrUDPLength
	case p.V6 && binary.BigEndian.Uint16(b[UDPChecksum:]) == 0:
		return ErrUDPZeroChecksum
	case p.Src == p.Dst && p.SrcPort == p.DstPort:
		return ErrLand
	}
	p.Payload, p.Kind = p.L4+UDPLen, KindUDP
	return ErrNone
}

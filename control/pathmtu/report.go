package pathmtu

import (
	"encoding/binary"
	"net/netip"

	"github.com/l4fwd/l4fwd/packet"
)

// What is told at least, of each family: nothing less than Linux itself believes of
// an IPv4 path (net.ipv4.route.min_pmtu), and no IPv6 path is narrower (RFC 8200
// section 5). LeastBlind is for what has no Quote, so that anybody can make it up: few
// would notice it.
const (
	Least4     = 552
	Least6     = 1280
	LeastBlind = 1280
)

const (
	icmpUnreachable = packet.ICMPUnreachable
	icmpv6TooBig    = packet.ICMPv6PacketTooBig
)

// Report is what an ICMP error says of a packet that was too big.
type Report struct {
	Dst   netip.Addr // of the packet
	Proto uint8      // its protocol
	Port  uint16     // destination port, if that is UDP
	MTU   int        // bytes of IP packet that would have gone on, Least4 or Least6 at least
	Quote Quote
}

// Quote is what an error tells of the packet in the tunnel, if it quotes so much. Only
// who has sent such a packet, or seen it, knows all of it (RFC 5927 section 4.1).
type Quote struct {
	Src, Dst netip.AddrPort // not valid if it does not
	Proto    uint8          // TCP or UDP
	Seq      uint32         // of TCP
}

// quoted reads the packet that b begins with, or may; not valid unless it is TCP or UDP,
// with its ports, behind an IP header without extension headers.
func quoted(b []byte) (q Quote) {
	var src, dst netip.Addr
	n := packet.IPv6Len
	switch {
	case len(b) >= packet.IPv4MinLen && b[0]>>4 == 4:
		if n = int(b[0]&15) * 4; n < packet.IPv4MinLen || binary.BigEndian.Uint16(b[packet.IPv4Frag:])&packet.IPv4OffsetMask != 0 {
			return Quote{}
		}
		q.Proto, src, dst = b[packet.IPv4Proto], netip.AddrFrom4([4]byte(b[packet.IPv4Src:])), netip.AddrFrom4([4]byte(b[packet.IPv4Dst:]))
	case len(b) >= packet.IPv6Len && b[0]>>4 == 6:
		q.Proto, src, dst = b[packet.IPv6NextHeader], netip.AddrFrom16([16]byte(b[packet.IPv6Src:])), netip.AddrFrom16([16]byte(b[packet.IPv6Dst:]))
	default:
		return Quote{}
	}
	if len(b) < n+8 || q.Proto != packet.ProtoTCP && q.Proto != packet.ProtoUDP {
		return Quote{}
	}
	b = b[n:]
	q.Src, q.Dst = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[packet.TCPDstPort:]))
	if q.Proto == packet.ProtoTCP {
		q.Seq = binary.BigEndian.Uint32(b[packet.TCPSeq:])
	}
	return q
}

// Parse4 reads an ICMP message; ok is false for any but "fragmentation needed" with an
// MTU (RFC 1191) about a whole packet or the first fragment of one. rest is what it quotes
// behind that packet's IP header.
func Parse4(b []byte) (r Report, rest []byte, ok bool) {
	const head = packet.ICMPLen
	if len(b) < head+packet.IPv4MinLen+8 || b[packet.ICMPType] != icmpUnreachable || b[packet.ICMPCode] != packet.ICMPFragNeeded ||
		packet.Checksum(b, 0) != 0 {
		return r, nil, false
	}
	mtu, ip := int(binary.BigEndian.Uint16(b[packet.ICMPMTU:])), b[head:]
	n := int(ip[0]&15) * 4
	if mtu == 0 || ip[0]>>4 != 4 || n < packet.IPv4MinLen || len(ip) < n+8 ||
		binary.BigEndian.Uint16(ip[packet.IPv4Frag:])&packet.IPv4OffsetMask != 0 {
		return r, nil, false
	}
	r = Report{Dst: netip.AddrFrom4([4]byte(ip[packet.IPv4Dst:])), Proto: ip[packet.IPv4Proto], MTU: max(mtu, Least4)}
	r.port(ip[n:])
	return r, ip[n:], true
}

// Parse6 reads an ICMPv6 message, whose checksum the kernel has verified; ok is false
// for any but "packet too big" about a packet without extension headers, as tunnels
// here send them. rest is as of Parse4.
func Parse6(b []byte) (r Report, rest []byte, ok bool) {
	const head = packet.ICMPLen
	if len(b) < head+packet.IPv6Len+8 || b[packet.ICMPType] != icmpv6TooBig || b[head]>>4 != 6 {
		return r, nil, false
	}
	mtu, ip := binary.BigEndian.Uint32(b[packet.ICMPv6MTU:]), b[head:]
	r = Report{
		Dst: netip.AddrFrom16([16]byte(ip[packet.IPv6Dst:])), Proto: ip[packet.IPv6NextHeader],
		MTU: int(min(max(mtu, Least6), 0xffff)),
	}
	r.port(ip[packet.IPv6Len:])
	return r, ip[packet.IPv6Len:], true
}

// port reads the destination port of the transport header that b begins with.
func (r *Report) port(b []byte) {
	if r.Proto == packet.ProtoUDP {
		r.Port = binary.BigEndian.Uint16(b[packet.UDPDstPort:])
	}
}

// Look is how tunnels' packets look at one of their ends: protocol, port if that is UDP,
// and the bytes between the outer IP header and that of the packet within.
type Look struct {
	Proto uint8
	Port  uint16
	Head  int
}

// End is one of them, and what is believed of the way to it.
type End struct {
	Looks []Look
	// Least is the narrowest that is believed, in bytes of IP packet, where that is
	// more than Least4 or Least6. With IPv6 within, no sender makes its packets
	// smaller than 1280 bytes (RFC 8200 section 5), whoever says so.
	Least int
}

// Ends are the configured ends of tunnels.
type Ends map[netip.Addr]End

// heed reports whether r is about a packet to one of the ends, raises its MTU to what is
// believed, and takes the Quote out of rest.
func (e Ends) heed(r *Report, rest []byte) (ours bool) {
	end := e[r.Dst]
	for _, l := range end.Looks {
		if l.Proto != r.Proto || l.Port != r.Port {
			continue
		}
		ours = true
		if q := quoted(rest[min(l.Head, len(rest)):]); q.Src.IsValid() {
			r.Quote = q
		}
	}
	if r.MTU = max(r.MTU, end.Least); !r.Quote.Src.IsValid() {
		r.MTU = max(r.MTU, LeastBlind)
	}
	return ours
}

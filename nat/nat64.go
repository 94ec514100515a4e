package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// NAT64: IPv6 clients of an IPv6 VIP before IPv4 real servers, in Full-NAT only
// (in DNAT the server would have to answer an IPv6 address). Headers are
// translated by the rules of RFC 7915; the addresses come from the flow, not from
// a prefix. The transport checksums change by the flow's PortSum as in every other
// rewrite: both pseudo-headers sum protocol and length alike and differ in the
// addresses alone.
//
// The transport header and its data never move. The IP header before them becomes
// shorter or longer, so the frame begins elsewhere in its chunk.

// fragmentable4 is how long an IPv4 packet may be and still be sent without DF
// (RFC 7915 section 5.1): what an IPv6 host sends at the least MTU. It is told of
// no smaller MTU, so routers must be able to fragment such packets.
const fragmentable4 = minMTU6 - Shrink64

// translates reports whether e is a flow of an IPv6 client to an IPv4 server, and
// Prepare has been here.
func translates(e *conntrack.Entry) bool {
	return e.Mode == conntrack.FullNAT && e.Flags&(conntrack.V6Client|conntrack.V6Server) == conntrack.V6Client
}

// isFrame reports whether chunk[off:off+n] is a frame of which p may tell the
// truth: an IP header of at least ipLen bytes, behind an Ethernet header, before a
// whole TCP or UDP header.
func isFrame(chunk []byte, off, n int, p *packet.Packet, ipLen int) bool {
	if off < 0 || off > len(chunk) || n < int(p.End) || n > len(chunk)-off ||
		!hasEthernet(p) || int(p.L4) < int(p.L3)+ipLen {
		return false
	}
	switch p.Kind {
	case packet.KindTCP:
		return int(p.Payload) >= int(p.L4)+packet.TCPMinLen && p.Payload <= p.End
	case packet.KindUDP:
		return int(p.End) >= int(p.L4)+packet.UDPLen
	}
	return false
}

// hasEthernet reports whether p.L3 is behind an Ethernet header that Parse knows.
func hasEthernet(p *packet.Packet) bool { return p.L3 == packet.EthLen || p.L3 == packet.VLANEthLen }

// Forward64 is Forward for an IPv6 client's TCP or UDP packet to an IPv4 server:
// addresses, ports, sequence number and checksums as there, the IP header by RFC
// 7915 section 5.1. The traffic class becomes the type of service, ECN included;
// the hop limit is decremented (the caller has refused 1 and less); flow label and
// extension headers go. DF is set if the packet is longer than 1260 bytes, not
// counting a TOA option of ours, by which the client cannot be told to send less.
// An atomic fragment (RFC 6946), or a first one, goes without DF whatever its
// length, and stays what it is, as section 5.1.1 has it.
//
// id is the identification, from a counter of the caller's that must not soon
// repeat for one pair of addresses (RFC 6864): packets without DF may be
// fragmented on the way. A fragment's own is not used; many clients share one local
// address, and they do not agree on theirs. Later fragments of one datagram get the
// first one's, from Readdress64.
//
// The frame is chunk[off:off+n], as received or as InsertTOA made it. It shrinks
// at its front, by 20 bytes and what there was of extension headers; the Ethernet
// header moves along and gets the other EtherType. The new offset and length are
// returned, the latter without Ethernet padding: it may be less than Ethernet's 60
// bytes. p's offsets and p.V6 are those of the new frame afterwards, all else of it
// stays as received. InsertTOA may also follow, with what this returned.
//
// It returns false, with nothing changed, if the packet cannot be a client packet
// of this flow, or the flow is not one to be translated; then the frame must not be
// sent.
func Forward64(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory, id uint16) (newOff, newLen int, ok bool) {
	src, dst, ports, ok := serverSide(e, dir)
	if !ok || !translates(e) || !p.V6 || !isFrame(chunk, off, n, p, packet.IPv6Len) {
		return off, n, false
	}
	l3, l4 := int(p.L3), int(p.L4)
	frame := chunk[off : off+n]
	h := header64{
		src: src, dst: dst, class: class6(frame[l3:]), hops: frame[l3+packet.IPv6HopLimit] - 1,
		proto: p.Proto, size: int(p.End) - l4, id: id, frag: fragment4(frame, p, e),
	}
	t := frame[l4:p.End]
	if p.Kind == packet.KindUDP {
		udpPorts(t, 0, ports, e.PortSum)
	} else {
		diff := packet.AddDiff(e.PortSum, shift32(t[packet.TCPSeq:], e.SeqDelta))
		binary.BigEndian.PutUint32(t, ports)
		applyTCP(t, diff)
	}
	newOff = off + reheader(p, packet.IPv4MinLen)
	copy(chunk[newOff:newOff+l3], chunk[off:off+l3])
	frame = chunk[newOff:]
	binary.BigEndian.PutUint16(frame[l3-2:], packet.EtherTypeIPv4)
	h.put4(frame[l3:])
	return newOff, int(p.End), true
}

// Reply64 is Reply for an IPv4 server's TCP or UDP packet to an IPv6 client:
// addresses, ports, acknowledgement, SACK blocks and checksums as there, the IP
// header by RFC 7915 section 4.1. The type of service becomes the traffic class,
// the TTL is decremented, flow label and extension headers there are none; IPv4
// options go (Parse has refused source routes). A UDP packet without checksum gets
// one computed over its data, which IPv6 demands (section 4.5). That takes a pass
// over the payload, and the only one in this package.
//
// The frame is chunk[off:off+n]. It grows at its front, by 20 bytes less the IPv4
// options; for what is returned, and what becomes of p, see Forward64. Of a first
// fragment it makes an IPv6 packet without a fragment header: Split has to follow,
// and to be told what p.Fragment said before. The caller refuses one of UDP without
// checksum: what one could be computed over is not all there (section 4.5).
//
// The caller has seen to it that the IPv4 header's checksum is right
// (packet.VerifyIPv4): there is none in IPv6, so damage that it alone would show
// ends unseen here (RFC 1812 section 5.2.2).
//
// It returns false, with nothing changed, if the packet cannot be a server packet
// of this flow, the flow is not one to be translated, or there is no space before
// the frame in its chunk; then the frame must not be sent.
func Reply64(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory) (newOff, newLen int, ok bool) {
	if int(e.Service) >= len(dir.Services) || !translates(e) || p.V6 || !isFrame(chunk, off, n, p, packet.IPv4MinLen) {
		return off, n, false
	}
	l3, l4, end := int(p.L3), int(p.L4), int(p.End)
	grow := l3 + packet.IPv6Len - l4
	if grow > off || end+grow > 0xffff {
		return off, n, false
	}
	vip := &dir.Services[e.Service]
	frame := chunk[off : off+n]
	h := header64{
		src: vip.Addr, dst: e.Client, class: frame[l3+packet.IPv4TOS], hops: frame[l3+packet.IPv4TTL] - 1,
		proto: p.Proto, size: end - l4,
	}
	ports := uint32(vip.Port)<<16 | uint32(e.ClientPort)
	if p.Kind == packet.KindUDP {
		replyUDP(frame[l4:end], ports, e, vip.Addr)
	} else {
		replyTCP(frame, p, ports, e)
	}
	newOff = off + reheader(p, packet.IPv6Len)
	copy(chunk[newOff:newOff+l3], chunk[off:off+l3])
	frame = chunk[newOff:]
	binary.BigEndian.PutUint16(frame[l3-2:], packet.EtherTypeIPv6)
	h.put6(frame[l3:])
	return newOff, int(p.End), true
}

// replyTCP is the part of Reply that concerns the TCP header.
func replyTCP(frame []byte, p *packet.Packet, ports uint32, e *conntrack.Entry) {
	h := frame[p.L4:p.End]
	diff := packet.Negate(e.PortSum)
	if h[packet.TCPFlags]&packet.ACK != 0 && e.SeqDelta != 0 {
		diff = packet.AddDiff(diff, shift32(h[packet.TCPAck:], -e.SeqDelta))
		diff = packet.AddDiff(diff, shiftSACK(frame, p, -e.SeqDelta))
	}
	binary.BigEndian.PutUint32(h, ports)
	applyTCP(h, diff)
}

// replyUDP does it for UDP. u begins with the header; its length field, which
// Parse has checked, says how much the checksum covers.
func replyUDP(u []byte, ports uint32, e *conntrack.Entry, vip packet.Addr) {
	udpPorts(u, 0, ports, packet.Negate(e.PortSum))
	csum := u[packet.UDPChecksum : packet.UDPChecksum+2]
	if csum[0]|csum[1] != 0 {
		return
	}
	u = u[:min(len(u), int(binary.BigEndian.Uint16(u[packet.UDPLength:])))]
	c := packet.Checksum(u, packet.PseudoSum(vip, e.Client, packet.ProtoUDP, len(u)))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(csum, c)
}

// reheader gives p the offsets it has once its IP header is ipLen bytes long and
// of the other family, and returns by how much the frame begins later.
func reheader(p *packet.Packet, ipLen int) int {
	shift := int(p.L4) - int(p.L3) - ipLen
	p.L4 = p.L3 + uint16(ipLen)
	p.Payload = uint16(int(p.Payload) - shift)
	p.End = uint16(int(p.End) - shift)
	p.V6 = !p.V6
	return shift
}

// header64 is an IP header of either family, as far as one is made of the other.
type header64 struct {
	src, dst packet.Addr
	class    uint8 // traffic class, type of service
	hops     uint8 // hop limit, TTL
	proto    uint8
	size     int    // of what follows the header
	id       uint16 // IPv4 only, as is
	frag     uint16 // the word at packet.IPv4Frag
}

// put4 writes the 20 bytes of an IPv4 header. The checksum is made of the words
// before they are written: reading bytes just written would wait for them.
func (h *header64) put4(b []byte) {
	b = b[:packet.IPv4MinLen]
	first := 0x45<<24 | uint32(h.class)<<16 | uint32(min(packet.IPv4MinLen+h.size, 0xffff))
	second := uint32(h.id)<<16 | uint32(h.frag)
	third := uint32(h.hops)<<24 | uint32(h.proto)<<16
	addrs := uint64(h.src.V4())<<32 | uint64(h.dst.V4())
	sum := uint64(first) + uint64(second) + uint64(third) + addrs>>32 + addrs&0xffffffff
	binary.BigEndian.PutUint32(b, first)
	binary.BigEndian.PutUint32(b[packet.IPv4ID:], second)
	binary.BigEndian.PutUint32(b[packet.IPv4TTL:], third|uint32(^packet.Fold(sum)))
	binary.BigEndian.PutUint64(b[packet.IPv4Src:], addrs)
}

// put6 writes the 40 bytes of an IPv6 header, flow label 0.
func (h *header64) put6(b []byte) {
	b = b[:packet.IPv6Len]
	word := 6<<60 | uint64(h.class)<<52 | uint64(uint16(h.size))<<16 | uint64(h.proto)<<8 | uint64(h.hops)
	binary.BigEndian.PutUint64(b, word)
	h.src.Put16(b[packet.IPv6Src:])
	h.dst.Put16(b[packet.IPv6Dst:])
}

// class6 is the traffic class of the IPv6 header b begins with.
func class6(b []byte) uint8 { return uint8(binary.BigEndian.Uint16(b) >> 4) }

// fragment4 is the word at packet.IPv4Frag for an IPv6 packet translated: see
// Forward64. Only of a first fragment can there be anything but DF in it.
func fragment4(frame []byte, p *packet.Packet, e *conntrack.Entry) uint16 {
	if int(p.L4)-int(p.L3) > packet.IPv6Len {
		if f, ok := fragmentHeader(frame[:p.L4], int(p.L3)); ok {
			w := binary.BigEndian.Uint16(f)
			return fragmentWord(packet.Fragment{Offset: w &^ 7, More: w&1 != 0})
		}
	}
	size := packet.IPv4MinLen + int(p.End) - int(p.L4)
	if size <= fragmentable4 || size <= fragmentable4+toaLen6 && hasTOA(frame, p, e) {
		return 0
	}
	return packet.IPv4DontFragment
}

// hasTOA reports whether the first TCP option is the one InsertTOA writes for the
// IPv6 client of e, of whatever kind.
func hasTOA(frame []byte, p *packet.Packet, e *conntrack.Entry) bool {
	at := int(p.L4) + packet.TCPMinLen
	if p.Kind != packet.KindTCP || int(p.Payload) < at+toaLen6 {
		return false
	}
	o := frame[at : at+toaLen6]
	return o[1] == toaLen6 && binary.BigEndian.Uint16(o[2:]) == e.ClientPort && packet.Addr16(o[4:]) == e.Client
}

// fragmentHeader looks for a fragment header among the extension headers of the
// IPv6 header at b[l3:] and returns its last 6 bytes: offset and flags, then
// identification. b ends where the transport header begins.
func fragmentHeader(b []byte, l3 int) (fields []byte, ok bool) {
	proto := b[l3+packet.IPv6NextHeader]
	for at := l3 + packet.IPv6Len; len(b)-at >= 8; {
		h := b[at : at+8]
		if proto == fragmentHeader6 {
			return h[2:], true
		}
		proto = h[0]
		at += 8 + int(h[1])*8
	}
	return nil, false
}

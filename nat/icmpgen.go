package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// Unreach says why a packet cannot be delivered.
type Unreach uint8

// The reasons, and the codes they become in ICMP and ICMPv6.
const (
	UnreachNet   Unreach = iota // no route: 0, 0
	UnreachHost                 // next hop does not answer: 1, 3
	UnreachPort                 // nobody listens: 3, 4
	UnreachAdmin                // forbidden by configuration: 13, 1
	numUnreach
)

var unreachCodes = [numUnreach]struct{ v4, v6 uint8 }{{0, 0}, {1, 3}, {3, 4}, {13, 1}}

// How long an error becomes at most, IP header included: RFC 1812 section
// 4.3.2.3, RFC 4443 section 2.4 c.
const (
	maxError4 = 576
	maxError6 = 1280
)

// errorTOS is IP precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
const errorTOS = 0xc0

// TimeExceeded turns the packet p, a whole frame chunk[off:off+n] as received,
// into the ICMP or ICMPv6 error that says its TTL ran out: what makes l4fwd a
// hop of traceroute. src is our address the error comes from, of p's family.
//
// The error is built in place: the offending IP datagram stays where it is, cut
// off behind 576 bytes of error (IPv4) or 1280 (IPv6), and the new headers, 28
// or 48 bytes, go before it into the headroom. TTL 64, ID 0 with DF set (RFC
// 6864 section 4.1), all checksums computed afresh. It goes to the offending
// packet's source as received.
//
// On success the frame is chunk[newOff:newOff+newLen]. Its link header is a copy
// of the old one and the caller's to overwrite; there are packet.VLANEthLen bytes
// of the chunk or more before the IP header, whatever came. p describes the new
// frame, with the addresses of its outer IP header and KindOther: it is to be
// routed by p.Dst, never looked up as a flow.
//
// ok is false, with chunk and p unchanged, where there must be no error (RFC
// 1122 section 3.2.2, RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 e): about an
// ICMP error or redirect, a later fragment, a frame to or from a group MAC
// address, a packet to a group or broadcast address, one whose source is no
// single host, or anything but IP; and where src is of the wrong family or there
// is no headroom. About ICMPv4 it is stricter than it must be: only echo is
// answered. Directed broadcasts it cannot know.
//
// The caller limits the rate: see Bucket. It has to call before Forward or Reply,
// else the source is not the sender.
func TimeExceeded(chunk []byte, off, n int, p *packet.Packet, src packet.Addr) (newOff, newLen int, ok bool) {
	kind := uint8(packet.ICMPTimeExceeded)
	if p.V6 {
		kind = packet.ICMPv6TimeExceeded
	}
	return buildError(chunk, off, n, p, src, kind, 0, 0)
}

// TooBig is like TimeExceeded and says that packets may be no longer than mtu
// bytes, IP header included: ICMP "fragmentation needed" (RFC 1191 section 4),
// about packets with DF only, or ICMPv6 "packet too big". An mtu below what every
// link must carry, 68 and 1280, is announced as that; above 65535 as 65535.
//
// The caller takes off the mtu whatever the packet would grow by on its way
// through l4fwd (TOALen, ProxyLen).
func TooBig(chunk []byte, off, n int, p *packet.Packet, src packet.Addr, mtu int) (newOff, newLen int, ok bool) {
	if p.V6 {
		return buildError(chunk, off, n, p, src, packet.ICMPv6PacketTooBig, 0, uint32(min(max(mtu, minMTU6), 0xffff)))
	}
	l3 := int(p.L3)
	if !within(chunk, off, n, p) || binary.BigEndian.Uint16(chunk[off+l3+packet.IPv4Frag:])&packet.IPv4DontFragment == 0 {
		return off, n, false
	}
	return buildError(chunk, off, n, p, src, packet.ICMPUnreachable, packet.ICMPFragNeeded, uint32(min(max(mtu, minMTU4), 0xffff)))
}

// Unreachable is like TimeExceeded and says that the packet cannot be delivered,
// and why.
func Unreachable(chunk []byte, off, n int, p *packet.Packet, src packet.Addr, why Unreach) (newOff, newLen int, ok bool) {
	if why >= numUnreach {
		return off, n, false
	}
	if p.V6 {
		return buildError(chunk, off, n, p, src, packet.ICMPv6Unreachable, unreachCodes[why].v6, 0)
	}
	return buildError(chunk, off, n, p, src, packet.ICMPUnreachable, unreachCodes[why].v4, 0)
}

// buildError puts an IP and an ICMP header with the given type, code and second
// word before p's datagram.
func buildError(chunk []byte, off, n int, p *packet.Packet, src packet.Addr, kind, code uint8, rest uint32) (newOff, newLen int, ok bool) {
	if !within(chunk, off, n, p) || !mayHaveError(chunk[off:off+n], p) || src.Is4() == p.V6 || src.IsZero() || src == p.Src {
		return off, n, false
	}
	l3, head, limit, tos, proto := int(p.L3), packet.IPv4MinLen, maxError4, uint8(errorTOS), uint8(packet.ProtoICMP)
	if p.V6 {
		head, limit, tos, proto = packet.IPv6Len, maxError6, 0, packet.ProtoICMPv6
	}
	grow := head + packet.ICMPLen
	ip := off + l3 - grow
	if ip < packet.VLANEthLen {
		return off, n, false
	}
	size := min(grow+int(p.End)-l3, limit)
	dst := p.Src
	newOff = ip - l3
	copy(chunk[newOff:ip], chunk[off:off+l3])
	msg := chunk[ip+head : ip+size]
	msg[packet.ICMPType], msg[packet.ICMPCode], msg[packet.ICMPChecksum], msg[packet.ICMPChecksum+1] = kind, code, 0, 0
	binary.BigEndian.PutUint32(msg[packet.ICMPChecksum+2:], rest)
	var pseudo uint64 // of ICMPv6 only
	if p.V6 {
		pseudo = packet.PseudoSum(src, dst, proto, len(msg))
	}
	binary.BigEndian.PutUint16(msg[packet.ICMPChecksum:], packet.Checksum(msg, pseudo))
	putIP(chunk[ip:ip+head], tos, proto, len(msg), src, dst)
	*p = packet.Packet{
		Tuple: packet.Tuple{Src: src, Dst: dst, Proto: proto},
		L3:    uint16(l3), L4: uint16(l3 + head), Payload: uint16(l3 + grow), End: uint16(l3 + size),
		Kind: packet.KindOther, V6: p.V6,
	}
	return newOff, l3 + size, true
}

// within reports whether p's headers can be those of the frame chunk[off:off+n].
func within(chunk []byte, off, n int, p *packet.Packet) bool {
	head := packet.IPv4MinLen
	if p.V6 {
		head = packet.IPv6Len
	}
	return p.Err == packet.ErrNone && p.Kind != packet.KindARP &&
		off >= 0 && off <= len(chunk) && n >= int(p.End) && n <= len(chunk)-off &&
		p.L3 >= packet.EthLen && p.L3 <= packet.VLANEthLen &&
		int(p.L4) >= int(p.L3)+head && p.Payload >= p.L4 && p.End >= p.Payload
}

// mayHaveError reports whether hosts allow an ICMP error about p.
func mayHaveError(frame []byte, p *packet.Packet) bool {
	switch p.Kind {
	case packet.KindICMPError, packet.KindNS:
		return false
	case packet.KindFragment:
		if p.V6 && int(p.L4) < int(p.L3)+packet.IPv6Len+8 || p.Fragment(frame).Offset != 0 {
			return false
		}
	}
	if p.Proto == p.ICMPProto() {
		if p.L4 == p.End {
			return false
		}
		kind := frame[p.L4]
		if p.V6 && (kind < 128 || kind == icmpv6Redirect) ||
			!p.V6 && kind != packet.ICMPEchoRequest && kind != packet.ICMPEchoReply {
			return false
		}
	}
	return betweenHosts(frame, p)
}

const icmpv6Redirect = 137 // RFC 4861 section 4.5

// betweenHosts reports whether p travels from one host to one host, as far as
// its MAC and IP addresses tell: only then may it be answered unasked.
func betweenHosts(frame []byte, p *packet.Packet) bool {
	return (frame[packet.EthDst]|frame[packet.EthSrc])&groupBit == 0 && singleHost(p.Src) && singleHost(p.Dst)
}

// singleHost reports whether a is no group, broadcast, loopback or unspecified
// address, nor of the class E.
func singleHost(a packet.Addr) bool {
	if a.Is4() {
		top := a.V4() >> 24
		return top != 0 && top != 127 && top < 224
	}
	return a.Hi>>56 != 0xff && (a.Hi != 0 || a.Lo > 1)
}

// putIP writes the IP header of a datagram of our own, with size bytes behind
// it, over h, which is just as long as the header of src's family.
func putIP(h []byte, tos, proto uint8, size int, src, dst packet.Addr) {
	if !src.Is4() {
		binary.BigEndian.PutUint32(h, 6<<28|uint32(tos)<<20)
		binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], uint16(size))
		h[packet.IPv6NextHeader], h[packet.IPv6HopLimit] = proto, answerTTL
		src.Put16(h[packet.IPv6Src:])
		dst.Put16(h[packet.IPv6Dst:])
		return
	}
	binary.BigEndian.PutUint32(h, 0x45<<24|uint32(tos)<<16|uint32(packet.IPv4MinLen+size))
	binary.BigEndian.PutUint32(h[packet.IPv4ID:], packet.IPv4DontFragment)
	binary.BigEndian.PutUint32(h[packet.IPv4TTL:], answerTTL<<24|uint32(proto)<<16)
	src.Put4(h[packet.IPv4Src:])
	dst.Put4(h[packet.IPv4Dst:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Checksum(h, 0))
}

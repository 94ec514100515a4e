package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// The least MTU an error may still announce after TOA's length was taken off:
// below these no host goes (RFC 791 section 3.2, RFC 8200 section 5).
const (
	minMTU4 = 68
	minMTU6 = 1280
)

// TranslateError rewrites an ICMP or ICMPv6 error (KindICMPError) about a packet
// of flow e, travelling in direction d, so that its receiver recognises the
// packet it once sent: outer addresses, TTL, and in the embedded packet the
// addresses, ports, TCP sequence (towards the client), acknowledgement and SACK
// blocks (towards the server), IP and transport checksums as far as present.
// Type and code stay (RFC 5508 section 4.2).
//
// Outer source: towards the client always the VIP, also for an error from a
// router in between. RFC 5508 (REQ-5 c) wants a public address of the NAT there:
// the client never learns an address of the servers' network, and filters against
// private sources on the way do not eat its path MTU discovery. The price is that
// traceroute sees the VIP for each hop behind l4fwd. Towards the server in
// Full-NAT it is the local address, like every packet of the flow, since the
// servers' network need have no route for others; in DNAT it stays.
//
// Towards the client the MTU in "fragmentation needed" and "packet too big" is
// lowered by room, which is by how many bytes l4fwd makes the client's packets
// longer: TOARoom where the service tells the client's address by TOA, else 0.
//
// All checksums, the ICMP one too, are updated incrementally: an error that
// arrives damaged leaves damaged, and RFC 5508 (REQ-3) is met by whoever checks.
// What the embedded packet has of our own doing beyond that, a TOA option and
// the length it adds, or a lowered MSS, stays: hosts match on addresses, ports
// and sequence.
//
// It returns false if the error cannot be about this flow; then the frame must
// not be sent.
func TranslateError(frame []byte, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir, dir *conntrack.Directory, room int) bool {
	server, rs, ports, ok := serverSide(e, dir)
	if !ok || int(e.Service) >= len(dir.Services) || !isError(frame, p) ||
		p.V6 != (e.Flags&conntrack.V6Client != 0) || p.V6 != (e.Flags&conntrack.V6Server != 0) {
		return false
	}
	vip := &dir.Services[e.Service]
	msg := frame[p.L4:p.End]
	// The fields changed lie within the embedded headers, so comparing the sums of
	// that much before and after gives the change to the ICMP checksum.
	covered := msg[:min(len(msg), int(p.Inner4-p.L4)+packet.TCPMaxLen)]
	before := packet.Fold(packet.Sum(covered, 0))
	var src, dst packet.Addr
	if d == conntrack.Reply {
		src, dst = vip.Addr, e.Client
		embedded{
			src: e.Client, dst: vip.Addr, ports: uint32(e.ClientPort)<<16 | uint32(vip.Port),
			addrDiff: packet.Negate(e.AddrSum), portDiff: packet.Negate(e.PortSum), seq: -e.SeqDelta,
		}.restore(frame, p)
		lowerMTU(msg, p.V6, uint16(room))
	} else {
		src, _ = p.OuterAddrs(frame)
		dst = rs
		if e.Mode == conntrack.FullNAT {
			src = server
		}
		embedded{
			src: rs, dst: server, ports: ports<<16 | ports>>16,
			addrDiff: e.AddrSum, portDiff: e.PortSum, ack: e.SeqDelta,
		}.restore(frame, p)
	}
	diff := packet.AddDiff(packet.Negate(before), packet.Fold(packet.Sum(covered, 0)))
	oldSrc, oldDst := p.OuterAddrs(frame)
	addrDiff := packet.AddDiff(packet.DiffAddr(oldSrc, src), packet.DiffAddr(oldDst, dst))
	if p.V6 {
		diff = packet.AddDiff(diff, addrDiff) // ICMPv6 has a pseudo header, ICMP none
	}
	csum := binary.BigEndian.Uint16(msg[packet.ICMPChecksum:])
	binary.BigEndian.PutUint16(msg[packet.ICMPChecksum:], packet.Apply(csum, diff))
	return readdress(frame, p, src, dst, addrDiff)
}

// isError reports whether p is an ICMP error whose headers, outer and embedded,
// lie within frame.
func isError(frame []byte, p *packet.Packet) bool {
	ipLen := packet.IPv4MinLen
	if p.V6 {
		ipLen = packet.IPv6Len
	}
	return p.Kind == packet.KindICMPError && int(p.End) <= len(frame) &&
		int(p.L3)+ipLen <= int(p.L4) && int(p.L4)+packet.ICMPLen <= int(p.Payload) &&
		int(p.Payload)+ipLen <= int(p.Inner4) && int(p.Inner4)+packet.UDPLen <= int(p.End)
}

// embedded is what the packet within an ICMP error was before l4fwd rewrote it,
// as far as the flow determines it, and the diffs that brings.
type embedded struct {
	src, dst           packet.Addr
	ports              uint32
	addrDiff, portDiff uint16
	seq, ack           uint32 // added to the TCP numbers
}

// restore writes it, and the embedded packet's own checksums; not the error's.
// How much of the transport header there is beyond 8 bytes is up to the sender.
func (m embedded) restore(frame []byte, p *packet.Packet) {
	h := frame[p.Payload:p.Inner4]
	if p.V6 {
		m.src.Put16(h[packet.IPv6Src:])
		m.dst.Put16(h[packet.IPv6Dst:])
	} else {
		m.src.Put4(h[packet.IPv4Src:])
		m.dst.Put4(h[packet.IPv4Dst:])
		csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, m.addrDiff))
	}
	t := frame[p.Inner4:p.End]
	binary.BigEndian.PutUint32(t, m.ports)
	if p.Proto == packet.ProtoUDP {
		csum := binary.BigEndian.Uint16(t[packet.UDPChecksum:])
		binary.BigEndian.PutUint16(t[packet.UDPChecksum:], packet.ApplyUDP(csum, m.portDiff))
		return
	}
	diff := packet.AddDiff(m.portDiff, shift32(t[packet.TCPSeq:], m.seq))
	if len(t) > packet.TCPFlags && t[packet.TCPFlags]&packet.ACK != 0 && m.ack != 0 {
		diff = packet.AddDiff(diff, shift32(t[packet.TCPAck:], m.ack))
		if n := int(t[packet.TCPOffset]>>4) * 4; n <= len(t) {
			inner := packet.Packet{Kind: packet.KindTCP, L4: p.Inner4, Payload: p.Inner4 + uint16(n)}
			diff = packet.AddDiff(diff, shiftSACK(frame, &inner, m.ack))
		}
	}
	if len(t) >= packet.TCPChecksum+2 {
		applyTCP(t, diff)
	}
}

// shift32 adds delta to the number b begins with and returns the diff.
func shift32(b []byte, delta uint32) uint16 {
	was := binary.BigEndian.Uint32(b)
	binary.BigEndian.PutUint32(b, was+delta)
	return packet.Diff32(was, was+delta)
}

// lowerMTU takes by off the MTU that an ICMP message reports, if it reports one.
// Zero is a router from before RFC 1191 and stays.
func lowerMTU(msg []byte, v6 bool, by uint16) {
	if v6 {
		if msg[packet.ICMPType] != packet.ICMPv6PacketTooBig {
			return
		}
		if mtu := binary.BigEndian.Uint32(msg[packet.ICMPv6MTU:]); mtu > minMTU6 {
			binary.BigEndian.PutUint32(msg[packet.ICMPv6MTU:], max(mtu-uint32(by), minMTU6))
		}
		return
	}
	if msg[packet.ICMPType] != packet.ICMPUnreachable || msg[packet.ICMPCode] != packet.ICMPFragNeeded {
		return
	}
	if mtu := binary.BigEndian.Uint16(msg[packet.ICMPMTU:]); mtu > minMTU4 {
		binary.BigEndian.PutUint16(msg[packet.ICMPMTU:], uint16(max(int(mtu)-int(by), minMTU4)))
	}
}

package nat

import (
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Fixed is what all flows of one backend have in common, by direction: what a
// client's packet is sent to, which is the real server, and what a reply comes from,
// which is the VIP. Ports are in host order.
type Fixed struct {
	Addr [2]packet.Addr
	Port [2]uint16
}

// The functions below are the parts of Forward (with d conntrack.Forward) and of
// Reply (with d conntrack.Reply) for packets without IPv4 options and, if they are
// replies, without SACK blocks, of flows whose two sides are of one family. Nothing
// in them depends on the direction by a branch: which it is, no processor can
// foretell.

// PlainEnds returns what the two ends of a packet become: own is the flow's, which
// stands where the packet's own direction has its sender in a client's packet and
// its destination in a reply, other is fixed's. Ports are the first word of a TCP
// or UDP header.
func PlainEnds(e *conntrack.Entry, d conntrack.Dir, fixed *Fixed, local *packet.Addr) (own packet.Addr, ports uint32) {
	// The client's in a reply, and in DNAT always.
	client := -uint64(d) | -uint64(e.Mode)
	own.Hi = local.Hi ^ (local.Hi^e.Client.Hi)&client
	own.Lo = local.Lo ^ (local.Lo^e.Client.Lo)&client
	port := uint32(e.LocalPort) ^ uint32(e.LocalPort^e.ClientPort)&uint32(client)
	return own, bits.RotateLeft32(port<<16|uint32(fixed.Port[d&1]), int(d)*16)
}

// PlainIPv4 rewrites an IPv4 header: addresses, TTL, checksum.
func PlainIPv4(h []byte, e *conntrack.Entry, d conntrack.Dir, own, other packet.Addr) {
	_ = h[packet.IPv4MinLen-1]
	h[packet.IPv4TTL]--
	sum := uint32(^binary.BigEndian.Uint16(h[packet.IPv4Checksum:])) + uint32(e.AddrSum^-uint16(d)) + ttlStep
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], ^fold32(sum))
	binary.BigEndian.PutUint64(h[packet.IPv4Src:], bits.RotateLeft64(own.Lo<<32|uint64(other.V4()), int(d)*32))
}

// PlainIPv6 rewrites an IPv6 header.
func PlainIPv6(h []byte, d conntrack.Dir, own, other packet.Addr) {
	_ = h[packet.IPv6Len-1]
	h[packet.IPv6HopLimit]--
	own.Put16(h[packet.IPv6Src+int(d&1)*16:])
	other.Put16(h[packet.IPv6Dst-int(d&1)*16:])
}

// PlainTCP rewrites a TCP header: ports, a client's sequence number or a server's
// acknowledgement, was before, and the checksum.
func PlainTCP(h []byte, e *conntrack.Entry, d conntrack.Dir, ports, was uint32) {
	_ = h[packet.TCPMinLen-1]
	binary.BigEndian.PutUint32(h, ports)
	is := was + (e.SeqDelta ^ -uint32(d)) + uint32(d)
	binary.BigEndian.PutUint32(h[packet.TCPSeq+int(d&1)*4:], is)
	sum := uint64(^binary.BigEndian.Uint16(h[packet.TCPChecksum:])) + uint64(e.PortSum^-uint16(d)) + uint64(^was) + uint64(is)
	binary.BigEndian.PutUint16(h[packet.TCPChecksum:], ^fold34(sum))
}

// PlainUDP rewrites a UDP header: ports and checksum.
func PlainUDP(h []byte, e *conntrack.Entry, d conntrack.Dir, ports uint32) {
	udpPorts(h, 0, ports, e.PortSum^-uint16(d))
}

// fold32 is packet.Fold for a sum of three words.
func fold32(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// fold34 is packet.Fold for a sum of two words and two double words.
func fold34(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// PlainOptions reports whether p, TCP of KindTCP, has no options, or none but
// timestamps: nothing that anybody forges or translates.
func PlainOptions(frame []byte, p *packet.Packet) bool {
	return p.Payload-p.L4 == packet.TCPMinLen || onlyTimestamps(frame, p)
}

package nat

import (
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// The functions below are the parts of Forward (with d conntrack.Forward) and of
// Reply (with d conntrack.Reply) for packets without IPv4 options and, if they are
// replies, without SACK blocks, of flows whose two sides are of one family. Nothing
// in them depends on the direction by a branch: which it is, no processor can
// foretell.

// PlainPorts returns the first word of a TCP or UDP header: own is of the flow's own end,
// other of the other: the real server's, in a reply the VIP's.
func PlainPorts(d conntrack.Dir, own, other uint16) uint32 {
	return bits.RotateLeft32(uint32(own)<<16|uint32(other), int(d)*16)
}

// PlainIPv4 rewrites an IPv4 header: addresses, TTL, checksum. own is of the flow's own
// end, other of the other.
func PlainIPv4(h *[packet.IPv4MinLen]byte, e *conntrack.Entry, d conntrack.Dir, own, other uint64) {
	h[packet.IPv4TTL]--
	sum := uint32(e.AddrSum^-uint16(d)) + uint32(^binary.BigEndian.Uint16(h[packet.IPv4Checksum:])) + TTLStep
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], ^fold32(sum))
	binary.BigEndian.PutUint64(h[packet.IPv4Src:], bits.RotateLeft64(own<<32|other&0xffffffff, int(d)*32))
}

// PlainIPv6 rewrites an IPv6 header.
func PlainIPv6(h *[packet.IPv6Len]byte, d conntrack.Dir, own, other packet.Addr) {
	h[packet.IPv6HopLimit]--
	own.Put16(h[packet.IPv6Src+int(d&1)*16:])
	other.Put16(h[packet.IPv6Dst-int(d&1)*16:])
}

// PlainNumber returns what was, a client's sequence number or the acknowledgement of a
// server, becomes.
func PlainNumber(e *conntrack.Entry, d conntrack.Dir, was uint32) uint32 {
	return was + (e.SeqDelta ^ -uint32(d)) + uint32(d)
}

// PlainTCP rewrites a TCP header: ports, checksum, and the number that was and is now.
// diff is the change of addresses and ports.
func PlainTCP(h *[packet.TCPMinLen]byte, d conntrack.Dir, ports, was, is uint32, diff uint16) {
	binary.BigEndian.PutUint32(h[:], ports)
	binary.BigEndian.PutUint32(h[packet.TCPSeq+int(d&1)*4:], is)
	sum := uint64(^was) + uint64(is) + uint64(diff) + uint64(^binary.BigEndian.Uint16(h[packet.TCPChecksum:]))
	binary.BigEndian.PutUint16(h[packet.TCPChecksum:], ^fold32(uint32((sum+bits.RotateLeft64(sum, 32))>>32)))
}

// PlainUDP rewrites a UDP header: ports and checksum. diff is the change of addresses
// and ports.
func PlainUDP(h *[packet.UDPLen]byte, ports uint32, diff uint16) {
	binary.BigEndian.PutUint32(h[:], ports)
	csum := binary.BigEndian.Uint16(h[packet.UDPChecksum:])
	binary.BigEndian.PutUint16(h[packet.UDPChecksum:], packet.ApplyUDP(csum, diff))
}

// fold32 is packet.Fold for a sum below 2^32.
func fold32(s uint32) uint16 { return uint16((s + bits.RotateLeft32(s, 16)) >> 16) }

// PlainOptions reports whether p, TCP of KindTCP, has no options, or none but
// timestamps: nothing that anybody forges or translates.
func PlainOptions(frame []byte, p *packet.Packet) bool {
	return p.Payload-p.L4 == packet.TCPMinLen || onlyTimestamps(frame, p)
}

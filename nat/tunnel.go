package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// Encapsulation is what a packet travels in to a real server beyond routers.
type Encapsulation uint8

// The encapsulations. Of each the simplest form is sent, without options, keys or
// checksums of its own.
const (
	NoTunnel Encapsulation = iota
	IPIP                   // IP in IP (RFC 2003, RFC 2473, RFC 4213)
	GRE                    // RFC 2784
	GUE                    // UDP, a header of 4 bytes, IP (draft-ietf-intarea-gue-09, variant 0; linux/gue.h)
	FOU                    // UDP, IP (foo over UDP, as net/ipv4/fou_core.c of Linux has it)
	VXLAN                  // UDP, a header of 8 bytes, Ethernet, IP (RFC 7348)
	NumEncapsulations
)

// inside is how many bytes lie between the outer IP header and the packet.
var inside = [NumEncapsulations]int{
	GRE:   greLen,
	GUE:   packet.UDPLen + gueLen,
	FOU:   packet.UDPLen,
	VXLAN: packet.UDPLen + vxlanLen + packet.EthLen,
}

const (
	greLen   = 4
	gueLen   = 4
	vxlanLen = 8
)

// MaxOverhead is the longest that Encapsulate ever writes: VXLAN over IPv6.
const MaxOverhead = packet.IPv6Len + packet.UDPLen + vxlanLen + packet.EthLen

// IP protocol numbers of what a tunnel's packet is to the outer IP header (IANA).
const (
	protoIPv4 = 4
	protoIPv6 = 41
	protoGRE  = 47
)

// Where source ports are chosen from: the dynamic ones (RFC 6335 section 6), as RFC
// 7348 section 5 recommends.
const (
	firstTunnelPort = 49152
	tunnelPorts     = 65536 - firstTunnelPort
)

// Tunnel is how a service's packets reach its real servers. The zero value is none.
type Tunnel struct {
	Kind Encapsulation
	Port uint16 // UDP port of the server, where Kind has one
	VNI  uint32 // VXLAN network identifier, 24 bits
	// MAC is the destination of the Ethernet header within VXLAN, that of the
	// servers' VXLAN interface.
	MAC [6]byte
	// Source is the first of the outer source addresses, zero for that of the
	// interface by which packets leave; Spread is how many of its last bits the
	// flow chooses.
	Source packet.Addr
	Spread uint8
}

// Overhead is how much longer packets become on their way to a server of either
// family, 0 without a tunnel.
func (t *Tunnel) Overhead(v4 bool) int {
	if t.Kind == NoTunnel || t.Kind >= NumEncapsulations {
		return 0
	}
	if v4 {
		return packet.IPv4MinLen + inside[t.Kind]
	}
	return packet.IPv6Len + inside[t.Kind]
}

// Protocol is what the outer header says of a packet of either family.
func (t *Tunnel) Protocol(v4 bool) uint8 {
	switch {
	case t.Kind == GRE:
		return protoGRE
	case t.Kind >= GUE:
		return packet.ProtoUDP
	case v4:
		return protoIPv4
	}
	return protoIPv6
}

// SourceFor is the outer source address of a flow with that hash, so that a server's
// NIC spreads flows over its queues though all their packets come from here; zero if
// the tunnel has none of its own. The first and last address of a network are left
// out, since routers take them for broadcasts.
func (t *Tunnel) SourceFor(hash uint32) packet.Addr {
	a := t.Source
	a.Lo |= uint64(hostOf(hash, t.Spread))
	return a
}

// hostOf is the part of SourceFor that a flow chooses, spread bits.
func hostOf(hash uint32, spread uint8) uint32 {
	if spread == 0 {
		return 0
	}
	mask := uint32(1)<<min(spread, 31) - 1
	host := hash & mask
	switch {
	case mask == 1:
	case host == 0:
		host = 1
	case host == mask:
		host--
	}
	return host
}

// Outer is what of the outer headers the tunnel and the packet do not determine.
type Outer struct {
	Src, Dst packet.Addr // of one family
	Hash     uint32      // the flow's: UDP source port and IPv6 flow label
	ID       uint16      // IPv4 identification, of a packet that may be fragmented
	MAC      [6]byte     // source of the Ethernet header within VXLAN
}

// Encapsulate writes t's headers before the IP packet chunk[ip:end], whose own bytes
// it leaves alone, and returns where they begin; false if there is no room, or t or o
// are none.
//
// The outer header has the TTL of the packet, 64 if that is more: with a fresh one each
// time, two balancers that send tunnels into each other would never end. It has the
// packet's DSCP and ECN bits (RFC 6040 section 4.1, normal mode). Outer IPv4 has DF if the packet is IPv6 or has it, and
// then the identification 0 (RFC 6864 section 4.1). The UDP checksum is zero over
// IPv4. Over IPv6 it is there: a Linux server drops UDP without, unless it is told
// otherwise for each tunnel. It costs little where p is not nil, which says that
// the packet is whole and p describes it: its own checksum tells then what it sums up
// to, and if that is wrong, so is the outer one.
func (t *Tunnel) Encapsulate(chunk []byte, ip, end int, p *packet.Packet, o *Outer) (start int, ok bool) {
	v4 := o.Src.Is4()
	start = ip - t.Overhead(v4)
	if t.Kind == NoTunnel || t.Kind >= NumEncapsulations || v4 != o.Dst.Is4() || start < 0 || ip+packet.IPv4MinLen > end || end > len(chunk) {
		return 0, false
	}
	in := chunk[ip:end]
	six := in[0]>>4 == 6
	tos, ttl, fragmentable := in[packet.IPv4TOS], in[packet.IPv4TTL], binary.BigEndian.Uint16(in[packet.IPv4Frag:])&packet.IPv4DontFragment == 0
	if six {
		tos, ttl, fragmentable = in[0]<<4|in[1]>>4, in[packet.IPv6HopLimit], false
	}
	ttl = min(ttl, maxOuterTTL)
	h := chunk[start:ip]
	head := packet.IPv4MinLen
	if !v4 {
		head = packet.IPv6Len
	}
	size := end - start - head
	proto := t.putInside(h[head:], six, size, o)
	if v4 {
		putOuter4(h[:head], tos, ttl, proto, size, fragmentable, o)
		return start, true
	}
	putOuter6(h[:head], tos, ttl, proto, size, o)
	if proto == packet.ProtoUDP {
		sum := packet.Sum(h[head:], packet.PseudoSum(o.Src, o.Dst, proto, size)) + sumOf(in, p)
		if csum := ^packet.Fold(sum); csum != 0 {
			binary.BigEndian.PutUint16(h[head+packet.UDPChecksum:], csum)
		} else {
			binary.BigEndian.PutUint16(h[head+packet.UDPChecksum:], 0xffff)
		}
	}
	return start, true
}

// putInside writes what lies between the outer IP header and the packet, of IPv6 if
// six is set, over b, and returns the outer header's protocol number. Behind the outer
// header are size bytes. A UDP checksum is left zero.
func (t *Tunnel) putInside(b []byte, six bool, size int, o *Outer) (proto uint8) {
	inner, etherType := uint8(protoIPv4), uint16(packet.EtherTypeIPv4)
	if six {
		inner, etherType = protoIPv6, packet.EtherTypeIPv6
	}
	proto = t.Protocol(!six)
	switch t.Kind {
	case IPIP:
		return proto
	case GRE:
		binary.BigEndian.PutUint32(b, uint32(etherType))
		return proto
	case GUE:
		binary.BigEndian.PutUint32(b[packet.UDPLen:], uint32(inner)<<16)
	case VXLAN:
		const vniIsThere = 0x08 << 56
		binary.BigEndian.PutUint64(b[packet.UDPLen:], vniIsThere|uint64(t.VNI)<<8)
		eth := b[packet.UDPLen+vxlanLen:]
		copy(eth[packet.EthDst:], t.MAC[:])
		copy(eth[packet.EthSrc:], o.MAC[:])
		binary.BigEndian.PutUint16(eth[packet.EthType:], etherType)
	}
	// In one piece, as Sum reads it.
	binary.BigEndian.PutUint64(b, uint64(firstTunnelPort+o.Hash%tunnelPorts)<<48|uint64(t.Port)<<32|uint64(size)<<16)
	return proto
}

// sumOf is the sum of the packet in, which p describes if it is whole and not nil.
func sumOf(in []byte, p *packet.Packet) uint64 {
	if p == nil || p.V6 && p.L4-p.L3 != packet.IPv6Len {
		return packet.Sum(in, 0)
	}
	head, n := int(p.L4-p.L3), int(p.End-p.L4)
	switch {
	case p.Kind == packet.KindTCP:
	case p.Kind != packet.KindUDP,
		int(binary.BigEndian.Uint16(in[head+packet.UDPLength:])) != n,
		in[head+packet.UDPChecksum]|in[head+packet.UDPChecksum+1] == 0:
		return packet.Sum(in, 0)
	}
	// With the pseudo-header the rest adds up to zero, which is all ones.
	return packet.Sum(in[:head], uint64(^packet.Fold(packet.PseudoSum(p.Src, p.Dst, p.Proto, n))))
}

// maxOuterTTL is what tunnels' packets have at most (RFC 1700, as RFC 2003 section 3.1
// asks).
const maxOuterTTL = 64

// putOuter4 writes the outer IPv4 header of a packet with size bytes behind it. The
// checksum is made of what is written, not of what stands there then: to read bytes
// that were just stored in other pieces takes as long as all the rest.
func putOuter4(h []byte, tos, ttl, proto uint8, size int, fragmentable bool, o *Outer) {
	h = h[:packet.IPv4MinLen]
	first := 0x45<<24 | uint32(tos)<<16 | uint32(packet.IPv4MinLen+size)
	second := uint32(packet.IPv4DontFragment)
	if fragmentable {
		second = uint32(o.ID) << 16
	}
	third, src, dst := uint32(ttl)<<24|uint32(proto)<<16, o.Src.V4(), o.Dst.V4()
	third |= uint32(^packet.Fold(uint64(first) + uint64(second) + uint64(third) + uint64(src) + uint64(dst)))
	binary.BigEndian.PutUint64(h, uint64(first)<<32|uint64(second))
	binary.BigEndian.PutUint64(h[packet.IPv4TTL:], uint64(third)<<32|uint64(src))
	binary.BigEndian.PutUint32(h[packet.IPv4Dst:], dst)
}

// flowLabel is that of a flow (RFC 6438), never 0.
func flowLabel(hash uint32) uint32 { return max(hash>>12&(1<<20-1), 1) }

// putOuter6 is putOuter4 for IPv6.
func putOuter6(h []byte, tos, ttl, proto uint8, size int, o *Outer) {
	binary.BigEndian.PutUint32(h, 6<<28|uint32(tos)<<20|flowLabel(o.Hash))
	binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], uint16(size))
	h[packet.IPv6NextHeader], h[packet.IPv6HopLimit] = proto, ttl
	o.Src.Put16(h[packet.IPv6Src:])
	o.Dst.Put16(h[packet.IPv6Dst:])
}

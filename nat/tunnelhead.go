package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// TunnelHeadLen is the room before a packet that TunnelHead.Put needs: MaxOverhead, in
// whole words.
const TunnelHeadLen = 72

var _ [TunnelHeadLen - MaxOverhead]byte

// TunnelHead is a tunnel's headers for one server, all but what differs from packet to
// packet.
type TunnelHead struct {
	bytes  [TunnelHeadLen]byte // they end where it does
	sum    uint64              // of what their checksum covers in them, without low
	ports  uint64              // first word of UDP, before the flow's choice
	third  uint32              // third word of IPv4, TTL and checksum 0
	low    uint32              // the last 32 bits of the source, before the flow's choice
	spread uint8               // of Tunnel
	size   uint8               // bytes of all headers
	inside uint8               // of those behind the outer IP header
	v4     bool                // the outer header is IPv4
	udp    bool
}

// Head is t's headers for o, of which Hash and ID are each packet's, and for packets of
// IPv6 if six is set, else of IPv4; false if t or o are none.
func (t *Tunnel) Head(o *Outer, six bool) (h TunnelHead, ok bool) {
	v4 := o.Dst.Is4()
	if t.Kind == NoTunnel || t.Kind >= NumEncapsulations || o.Src.IsZero() || o.Src.Is4() != v4 {
		return h, false
	}
	each := *o
	each.Hash, each.ID = 0, 0
	h = TunnelHead{
		low: uint32(o.Src.Lo), size: uint8(t.Overhead(v4)), inside: uint8(inside[t.Kind]), v4: v4, udp: t.Kind >= GUE,
	}
	if o.Src == t.Source {
		h.spread = t.Spread
	}
	at := TunnelHeadLen - int(h.inside)
	proto := t.putInside(h.bytes[at:], six, 0, &each)
	if h.udp {
		h.ports = binary.BigEndian.Uint64(h.bytes[at:])
	}
	if v4 {
		putOuter4(h.bytes[at-packet.IPv4MinLen:at], 0, 0, proto, 0, false, &each)
		h.third = uint32(proto) << 16
		h.sum = uint64(o.Dst.V4())
		return h, true
	}
	putOuter6(h.bytes[at-packet.IPv6Len:at], 0, 0, proto, 0, &each)
	each.Src.Lo &^= 0xffffffff
	h.sum = packet.Sum(h.bytes[at:], packet.PseudoSum(each.Src, o.Dst, proto, 0))
	return h, true
}

// Len is by how much packets become longer.
func (h *TunnelHead) Len() int { return int(h.size) }

// V4 reports whether the outer header is IPv4.
func (h *TunnelHead) V4() bool { return h.v4 }

// Put does what DecTTL and Encapsulate do, for a packet without IPv4 options, whole and
// as p says, that lies in b behind TunnelHeadLen bytes. hash is its flow's, id the
// identification of one that may be fragmented. It returns how long the packet is now.
// What lies before the headers in b is lost.
func (h *TunnelHead) Put(b []byte, p *packet.Packet, hash uint32, id uint16) (n uint16) {
	in, second := (*[packet.IPv4MinLen]byte)(b[TunnelHeadLen:]), uint32(packet.IPv4DontFragment)
	var tos, ttl uint32
	if p.V6 {
		tos = uint32(binary.BigEndian.Uint16(in[:]) >> 4 & 0xff)
		in[packet.IPv6HopLimit]--
		ttl = uint32(in[packet.IPv6HopLimit])
	} else {
		first, csum := binary.BigEndian.Uint64(in[:]), binary.BigEndian.Uint16(in[packet.IPv4Checksum:])
		tos = uint32(first >> 48 & 0xff)
		if first&packet.IPv4DontFragment == 0 {
			second = uint32(id) << 16
		}
		in[packet.IPv4TTL]--
		ttl = uint32(in[packet.IPv4TTL])
		binary.BigEndian.PutUint16(in[packet.IPv4Checksum:], packet.Apply(csum, TTLStep))
	}
	ttl = min(ttl, maxOuterTTL)
	const near = 32
	*(*[near]byte)(b[TunnelHeadLen-near:]) = *(*[near]byte)(h.bytes[TunnelHeadLen-near:])
	if h.size > near {
		*(*[TunnelHeadLen - near]byte)(b[:]) = *(*[TunnelHeadLen - near]byte)(h.bytes[:])
	}
	n = uint16(h.size) + uint16(len(b)-TunnelHeadLen)
	low := h.low | hostOf(hash, h.spread)
	if !h.v4 {
		h.put6(b, p, n, tos, ttl, low, hash)
		return n
	}
	behind := TunnelHeadLen - uint(h.inside)&63
	head := (*[packet.IPv4MinLen]byte)(b[behind-packet.IPv4MinLen:])
	first := 0x45<<24 | tos<<16 | uint32(n)
	third := h.third | ttl<<24
	third |= uint32(^packet.Fold(h.sum + uint64(first) + uint64(second) + uint64(third) + uint64(low)))
	binary.BigEndian.PutUint64(head[:], uint64(first)<<32|uint64(second))
	binary.BigEndian.PutUint64(head[packet.IPv4TTL:], uint64(third)<<32|uint64(low))
	if h.udp {
		binary.BigEndian.PutUint64(b[behind:], h.ports|uint64(hash%tunnelPorts)<<48|uint64(n-packet.IPv4MinLen)<<16)
	}
	return n
}

// put6 is the rest of Put where the outer header is IPv6.
func (h *TunnelHead) put6(b []byte, p *packet.Packet, n uint16, tos, ttl, low, hash uint32) {
	behind := TunnelHeadLen - uint(h.inside)&63
	head := (*[packet.IPv6Len]byte)(b[behind-packet.IPv6Len:])
	size := n - packet.IPv6Len
	binary.BigEndian.PutUint32(head[:], 6<<28|tos<<20|flowLabel(hash))
	binary.BigEndian.PutUint16(head[packet.IPv6PayloadLen:], size)
	head[packet.IPv6HopLimit] = uint8(ttl)
	binary.BigEndian.PutUint32(head[packet.IPv6Dst-4:], low)
	if !h.udp {
		return
	}
	port := uint64(hash % tunnelPorts)
	sum := h.sum + uint64(low) + 2*uint64(size) + port + sumOf(b[TunnelHeadLen:], p)
	csum := ^packet.Fold(sum)
	if csum == 0 {
		csum = 0xffff
	}
	binary.BigEndian.PutUint64(b[behind:], h.ports|port<<48|uint64(size)<<16|uint64(csum))
}

package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// KeepTTL gives a packet back the one that Forward, Reply, Readdress,
// TranslateError or their NAT64 kind has taken off its TTL or hop limit, for an
// l4fwd that is no hop. It is called right after one of them, with the frame and
// the p they leave. The caller has refused packets whose TTL is 0.
func KeepTTL(frame []byte, p *packet.Packet) {
	h := frame[p.L3:]
	if p.V6 {
		h[packet.IPv6HopLimit]++
		return
	}
	h[packet.IPv4TTL]++
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, packet.Negate(TTLStep)))
}

// DecTTL takes one off the TTL or hop limit of a packet that is routed onward
// otherwise untouched, as Forward and Reply do. The caller has refused packets
// whose TTL is 1 or less; p is Parse's result for frame, an IP packet.
func DecTTL(frame []byte, p *packet.Packet) {
	h := frame[p.L3:]
	if p.V6 {
		h[packet.IPv6HopLimit]--
		return
	}
	h[packet.IPv4TTL]--
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, TTLStep))
}

// PlainTTL is DecTTL for the beginning of an IP header, which h is.
func PlainTTL(h *[packet.IPv4MinLen]byte, v6 bool) {
	if v6 {
		h[packet.IPv6HopLimit]--
		return
	}
	h[packet.IPv4TTL]--
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, TTLStep))
}

package dataplane

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// plainHeaders is room for the next hop's Ethernet header, and the longest headers
// behind it that a plain packet has, up to the first word of TCP's options.
type plainHeaders [route.VLANLen + packet.IPv6Len + packet.TCPMinLen + 4]byte

// headersIn is the plainHeaders around the IP header at ip in umem. A chunk has room
// before a frame and behind its first bytes, so they lie in it, however short the frame.
func headersIn(umem []byte, ip uint64) *plainHeaders {
	at := ip - route.VLANLen
	end := at + uint64(len(plainHeaders{}))
	return (*plainHeaders)(umem[at:end:end])
}

// isV6 is set in burst.ip if the header is IPv6's.
const isV6 = 1 << 63

// moreOrOffset is what says that a packet is a fragment in the eight bytes of an IPv4
// header from the total length on: that, identification, fragment, TTL and protocol, in
// the order of memory.
const moreOrOffset = ((packet.IPv4MoreFragments|packet.IPv4OffsetMask)>>8 | packet.IPv4OffsetMask&0xff<<8) << 32

// deciding are the flags that no plain segment has.
const deciding = packet.FIN | packet.SYN | packet.RST

// glance reads of a frame in the UMEM what its flow is looked up by, and no more, if it
// is what nearly all are: UDP, or TCP without SYN, FIN and RST, whole, without IPv4 options
// or extension headers.
// ip is then where its IP header begins, else 0: packet.Parse has to read it.
//
// What an address must not be and how long a transport header is is not looked at. That
// the flow is the packet's answers the first, and plain looks at the second: whatever
// goes another way is parsed first.
func glance(umem []byte, d *unix.XDPDesc, t *conntrack.Table) (hash uint32, ip uint64) {
	ip, n := d.Addr+packet.EthLen, uint64(d.Len)
	for range 2 { // with the tag, if there is one
		h := headersIn(umem, ip)
		b := (*[packet.IPv6Len + packet.TCPMinLen]byte)(h[route.VLANLen:])
		// EtherType, version and, of IPv4, header length at once.
		switch first := binary.LittleEndian.Uint32(h[route.VLANLen-2:]); {
		case first&0x00ffffff == 0x45_00_08:
			word := binary.LittleEndian.Uint64(b[packet.IPv4TotalLen:])
			total, proto := uint64(bits.ReverseBytes16(uint16(word))), word>>56
			if word&moreOrOffset != 0 || total < packet.IPv4MinLen+packet.UDPLen || total+packet.EthLen > n ||
				proto != packet.ProtoUDP && (proto != packet.ProtoTCP || b[packet.IPv4MinLen+packet.TCPFlags]&deciding != 0) {
				return 0, 0
			}
			ports := binary.BigEndian.Uint32(b[packet.IPv4MinLen:])
			return t.Hash4(binary.BigEndian.Uint64(b[packet.IPv4Src:]), uint64(bits.RotateLeft32(ports, 16))|proto<<32), ip
		case first&0x00f0ffff == 0x60_dd_86:
			word := binary.LittleEndian.Uint32(b[packet.IPv6PayloadLen:])
			payload, proto := uint64(bits.ReverseBytes16(uint16(word))), uint64(word>>16&0xff)
			if payload < packet.UDPLen || payload+packet.EthLen+packet.IPv6Len > n ||
				proto != packet.ProtoUDP && (proto != packet.ProtoTCP || b[packet.IPv6Len+packet.TCPFlags]&deciding != 0) {
				return 0, 0
			}
			ports := binary.BigEndian.Uint32(b[packet.IPv6Len:])
			return t.Hash6((*[32]byte)(b[packet.IPv6Src:]), uint64(bits.RotateLeft32(ports, 16))|proto<<32), ip | isV6
		case first&0xffff != 0x00_81 && first&0xffff != 0xa8_88:
			return 0, 0
		}
		// n counts as if there were no tag.
		ip, n = ip+packet.VLANEthLen-packet.EthLen, max(n, packet.VLANEthLen-packet.EthLen)-(packet.VLANEthLen-packet.EthLen)
	}
	return 0, 0
}

// destination is to whom the packet is, of IPv6 if six.
func (h *plainHeaders) destination(six bool) (to packet.Addr, port uint16) {
	if six {
		b := (*[packet.IPv6Len + 4]byte)(h[route.VLANLen:])
		return packet.Addr16(b[packet.IPv6Dst:]), binary.BigEndian.Uint16(b[packet.IPv6Len+packet.TCPDstPort:])
	}
	b := (*[packet.IPv4MinLen + 4]byte)(h[route.VLANLen:])
	return packet.Addr4(b[packet.IPv4Dst:]), binary.BigEndian.Uint16(b[packet.IPv4MinLen+packet.TCPDstPort:])
}

// source is from whom the packet is.
func (h *plainHeaders) source(six bool) (from packet.Addr, port uint16) {
	if six {
		b := (*[packet.IPv6Len + 4]byte)(h[route.VLANLen:])
		return packet.Addr16(b[packet.IPv6Src:]), binary.BigEndian.Uint16(b[packet.IPv6Len:])
	}
	b := (*[packet.IPv4MinLen + 4]byte)(h[route.VLANLen:])
	return packet.Addr4(b[packet.IPv4Src:]), binary.BigEndian.Uint16(b[packet.IPv4MinLen:])
}

// proto is the transport protocol.
func (h *plainHeaders) proto(six bool) uint8 {
	if six {
		return h[route.VLANLen+packet.IPv6NextHeader]
	}
	return h[route.VLANLen+packet.IPv4Proto]
}

// whole is of the IP header what glance has left: how long the packet is, how long the
// header, and the TTL or hop limit.
func (h *plainHeaders) whole() (n, l4 int, ttl uint8) {
	b := h[route.VLANLen:]
	if b[0]>>4 == 6 {
		return packet.IPv6Len + int(binary.BigEndian.Uint16(b[packet.IPv6PayloadLen:])), packet.IPv6Len, b[packet.IPv6HopLimit]
	}
	return int(binary.BigEndian.Uint16(b[packet.IPv4TotalLen:])), packet.IPv4MinLen, b[packet.IPv4TTL]
}

// wholeUDP reports whether the packet of n bytes, UDP behind an IP header of l4, holds the
// datagram, and has a checksum if it must.
func (h *plainHeaders) wholeUDP(n, l4 int) bool {
	t := (*[packet.UDPLen]byte)(h[route.VLANLen+l4&63:])
	size := int(binary.BigEndian.Uint16(t[packet.UDPLength:]))
	return size >= packet.UDPLen && l4+size <= n && (l4 == packet.IPv4MinLen || binary.LittleEndian.Uint16(t[packet.UDPChecksum:]) != 0)
}

// Of the word of a TCP header's length and flags, what a plain segment's is: one without
// options, or with timestamps.
const (
	segmentLooked  = 0xf000 | packet.ACK | deciding
	segmentBare    = packet.TCPMinLen/4<<12 | packet.ACK
	segmentStamped = (packet.TCPMinLen+nat.PlainTimestampsLen)/4<<12 | packet.ACK
)

// plainSegment reports whether the TCP header t, at the beginning of n bytes, has ACK and
// none of SYN, FIN and RST, and no options but timestamps, and how much data is behind it.
func plainSegment(t *[packet.TCPMinLen + 4]byte, n int) (data uint32, ok bool) {
	word := binary.BigEndian.Uint16(t[packet.TCPOffset:])
	data = uint32(n) - uint32(word>>12)*4
	flags := word & segmentLooked
	return data, int32(data) >= 0 && (flags == segmentBare || flags == segmentStamped && binary.BigEndian.Uint32(t[packet.TCPMinLen:]) == nat.PlainTimestamps)
}

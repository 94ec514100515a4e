package bench

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// MAC addresses of generated frames. They are locally administered; the third
// to sixth byte of the sender's is the number of the flow, big endian.
const (
	clientOUI = 0x0246 // sender of what a client sent
	serverOUI = 0x0252 // sender of what a real server sent
)

var nicMAC = [6]byte{0x02, 0, 0, 0, 1, 0} // l4fwd's NIC

// minCaptured is the shortest Ethernet frame without its checksum.
const minCaptured = 60

// fcs is the Ethernet checksum, which captures do not hold.
const fcs = 4

// segment describes a frame to build. Ports are in host order.
type segment struct {
	src, dst         packet.Addr
	srcPort, dstPort uint16
	proto            uint8
	flags            uint8
	seq, ack         uint32
	options          []byte // TCP, a multiple of 4 bytes
	payload          int    // bytes
	oui              uint16 // of the sender's MAC address
	flow             uint32 // the rest of it
}

// headerLen is what precedes the payload.
func (s *segment) headerLen() int {
	n := packet.EthLen + packet.IPv4MinLen
	if !s.src.Is4() {
		n = packet.EthLen + packet.IPv6Len
	}
	if s.proto == packet.ProtoUDP {
		return n + packet.UDPLen
	}
	return n + packet.TCPMinLen + len(s.options)
}

// build writes the frame to the start of buf, which must be long enough, and
// returns it: with correct lengths and checksums, padded to 60 bytes.
func (s *segment) build(buf []byte) []byte {
	n := s.headerLen() + s.payload
	f := buf[:max(n, minCaptured)]
	clear(f)
	copy(f, nicMAC[:])
	binary.BigEndian.PutUint16(f[packet.EthSrc:], s.oui)
	binary.BigEndian.PutUint32(f[packet.EthSrc+2:], s.flow)
	l4 := s.network(f, n)
	for i := s.headerLen(); i < n; i++ {
		f[i] = byte(uint32(i) + s.flow)
	}
	h := f[l4:n]
	binary.BigEndian.PutUint16(h, s.srcPort)
	binary.BigEndian.PutUint16(h[2:], s.dstPort)
	if s.proto == packet.ProtoUDP {
		binary.BigEndian.PutUint16(h[packet.UDPLength:], uint16(len(h)))
	} else {
		binary.BigEndian.PutUint32(h[packet.TCPSeq:], s.seq)
		binary.BigEndian.PutUint32(h[packet.TCPAck:], s.ack)
		h[packet.TCPOffset] = uint8(packet.TCPMinLen+len(s.options)) / 4 << 4
		h[packet.TCPFlags] = s.flags
		binary.BigEndian.PutUint16(h[packet.TCPWindow:], 0xffff)
		copy(h[packet.TCPMinLen:], s.options)
	}
	putChecksum(h, s.src, s.dst, s.proto)
	return f
}

// network writes Ethernet type and IP header of a frame of n bytes and returns
// where the transport header begins.
func (s *segment) network(f []byte, n int) int {
	h := f[packet.EthLen:]
	if !s.src.Is4() {
		binary.BigEndian.PutUint16(f[packet.EthType:], packet.EtherTypeIPv6)
		h[0] = 6 << 4
		binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], uint16(n-packet.EthLen-packet.IPv6Len))
		h[packet.IPv6NextHeader] = s.proto
		h[packet.IPv6HopLimit] = 64
		s.src.Put16(h[packet.IPv6Src:])
		s.dst.Put16(h[packet.IPv6Dst:])
		return packet.EthLen + packet.IPv6Len
	}
	binary.BigEndian.PutUint16(f[packet.EthType:], packet.EtherTypeIPv4)
	h[0] = 4<<4 | packet.IPv4MinLen/4
	binary.BigEndian.PutUint16(h[packet.IPv4TotalLen:], uint16(n-packet.EthLen))
	binary.BigEndian.PutUint16(h[packet.IPv4Frag:], packet.IPv4DontFragment)
	h[packet.IPv4TTL] = 64
	h[packet.IPv4Proto] = s.proto
	s.src.Put4(h[packet.IPv4Src:])
	s.dst.Put4(h[packet.IPv4Dst:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Checksum(h[:packet.IPv4MinLen], 0))
	return packet.EthLen + packet.IPv4MinLen
}

// putChecksum makes the TCP or UDP checksum anew; h is header and payload.
func putChecksum(h []byte, src, dst packet.Addr, proto uint8) {
	at := packet.TCPChecksum
	if proto == packet.ProtoUDP {
		at = packet.UDPChecksum
	}
	binary.BigEndian.PutUint16(h[at:], 0)
	c := packet.Checksum(h, packet.PseudoSum(src, dst, proto, len(h)))
	if c == 0 && proto == packet.ProtoUDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(h[at:], c)
}

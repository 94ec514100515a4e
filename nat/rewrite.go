package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TTLStep is the diff of a TTL decremented by one: the TTL is the upper byte of
// its word, and -0x0100 in one's complement is 0xfeff.
const TTLStep = 0xfeff

// Prepare computes what never changes over a flow's life from its ids and
// ports: AddrSum and PortSum, the one's complement differences (RFC 1624) that
// the rewrite client→server makes to the IPv4 header's sum and to the transport
// checksum (the pseudo header holds the addresses, so PortSum includes AddrSum),
// and the flags V6Client and V6Server. The reply direction is the exact inverse
// and uses the negated sums. All of it survives conntrack's Insert, so prepare
// the template. With direct return nothing is rewritten: the sums are those of no
// change, and both sides are of the client's family, whatever the address is by
// which the real server is found.
//
// Call it once Client, ClientPort, Local, LocalPort, Service, Backend and Mode
// are set, and again when one of them changes. It returns false if an id means
// nothing in dir; such a flow must not be used.
func Prepare(e *conntrack.Entry, dir *conntrack.Directory) bool {
	src, dst, ports, ok := serverSide(e, dir)
	if !ok || int(e.Service) >= len(dir.Services) {
		return false
	}
	vip := &dir.Services[e.Service]
	e.AddrSum = packet.AddDiff(packet.DiffAddr(e.Client, src), packet.DiffAddr(vip.Addr, dst))
	e.PortSum = packet.AddDiff(e.AddrSum, packet.Diff32(uint32(e.ClientPort)<<16|uint32(vip.Port), ports))
	e.Flags = e.Flags&^(conntrack.V6Client|conntrack.V6Server) | Families(e, dir)
	return true
}

// Families returns the flags V6Client and V6Server as they follow from e.Client,
// e.Mode and e.Backend, which must mean something in dir.
func Families(e *conntrack.Entry, dir *conntrack.Directory) (f conntrack.Flags) {
	server := dir.Backends[e.Backend].Addr
	if e.Mode == conntrack.DirectReturn {
		server = e.Client
	}
	if !e.Client.Is4() {
		f |= conntrack.V6Client
	}
	if !server.Is4() {
		f |= conntrack.V6Server
	}
	return f
}

// serverSide returns what a packet of the flow bears between l4fwd and the real
// server, seen from the client: addresses, and both ports as the first word of a
// TCP or UDP header.
func serverSide(e *conntrack.Entry, dir *conntrack.Directory) (src, dst packet.Addr, ports uint32, ok bool) {
	src, ports = e.Client, uint32(e.ClientPort)<<16
	if e.Mode == conntrack.FullNAT {
		if int(e.Local) >= len(dir.Locals) {
			return src, dst, 0, false
		}
		src, ports = dir.Locals[e.Local], uint32(e.LocalPort)<<16
	}
	if int(e.Backend) >= len(dir.Backends) {
		return src, dst, 0, false
	}
	rs := &dir.Backends[e.Backend]
	if e.Mode == conntrack.DirectReturn { // the server has the VIP, too
		if int(e.Service) >= len(dir.Services) {
			return src, dst, 0, false
		}
		rs = &dir.Services[e.Service]
	}
	return src, rs.Addr, ports | uint32(rs.Port), true
}

// Forward rewrites a client's TCP or UDP packet for the real server: in
// Full-NAT both ends, in DNAT the destination only; on TCP the sequence number
// moves by e.SeqDelta. The TTL or hop limit is decremented: the caller has
// refused, or answered, packets whose TTL is 1 or less. Checksums are updated
// incrementally; a UDP checksum of zero (none) stays zero.
//
// frame is exactly the frame that p was parsed from (or that InsertTOA made of
// it); p is only read, and afterwards describes the packet as received. Both
// sides must be of one family. It returns false if the packet cannot be a client
// packet of this flow; then the frame must not be sent.
func Forward(frame []byte, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory) bool {
	src, dst, ports, ok := serverSide(e, dir)
	if !ok || p.V6 != (e.Flags&conntrack.V6Server != 0) || !readdress(frame, p, src, dst, e.AddrSum) {
		return false
	}
	l4 := int(p.L4)
	if p.Kind == packet.KindUDP {
		return udpPorts(frame, l4, ports, e.PortSum)
	}
	if p.Kind != packet.KindTCP || len(frame) < l4+packet.TCPMinLen {
		return false
	}
	h := frame[l4 : l4+packet.TCPMinLen]
	seq := binary.BigEndian.Uint32(h[packet.TCPSeq:])
	diff := packet.AddDiff(e.PortSum, packet.Diff32(seq, seq+e.SeqDelta))
	binary.BigEndian.PutUint32(h, ports)
	binary.BigEndian.PutUint32(h[packet.TCPSeq:], seq+e.SeqDelta)
	applyTCP(h, diff)
	return true
}

// Reply rewrites a real server's TCP or UDP packet for the client: the source
// becomes the VIP, in Full-NAT the destination becomes the client; on TCP the
// acknowledgement, where there is one, and the SACK blocks move back by
// e.SeqDelta. For the rest it is as Forward.
func Reply(frame []byte, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory) bool {
	if int(e.Service) >= len(dir.Services) || p.V6 != (e.Flags&conntrack.V6Client != 0) {
		return false
	}
	vip := &dir.Services[e.Service]
	if !readdress(frame, p, vip.Addr, e.Client, packet.Negate(e.AddrSum)) {
		return false
	}
	ports := uint32(vip.Port)<<16 | uint32(e.ClientPort)
	l4 := int(p.L4)
	diff := packet.Negate(e.PortSum)
	if p.Kind == packet.KindUDP {
		return udpPorts(frame, l4, ports, diff)
	}
	if p.Kind != packet.KindTCP || len(frame) < l4+packet.TCPMinLen {
		return false
	}
	h := frame[l4 : l4+packet.TCPMinLen]
	if h[packet.TCPFlags]&packet.ACK != 0 {
		ack := binary.BigEndian.Uint32(h[packet.TCPAck:])
		binary.BigEndian.PutUint32(h[packet.TCPAck:], ack-e.SeqDelta)
		diff = packet.AddDiff(diff, packet.Diff32(ack, ack-e.SeqDelta))
		if e.SeqDelta != 0 && h[packet.TCPOffset]>>4 > packet.TCPMinLen/4 {
			diff = packet.AddDiff(diff, shiftSACK(frame, p, -e.SeqDelta))
		}
	}
	binary.BigEndian.PutUint32(h, ports)
	applyTCP(h, diff)
	return true
}

// readdress writes both addresses of the IP header and decrements its TTL. diff
// is the change of the addresses, for the IPv4 header checksum.
func readdress(frame []byte, p *packet.Packet, src, dst packet.Addr, diff uint16) bool {
	l3 := int(p.L3)
	if p.V6 {
		if len(frame) < l3+packet.IPv6Len {
			return false
		}
		h := frame[l3 : l3+packet.IPv6Len]
		h[packet.IPv6HopLimit]--
		src.Put16(h[packet.IPv6Src:])
		dst.Put16(h[packet.IPv6Dst:])
		return true
	}
	if len(frame) < l3+packet.IPv4MinLen {
		return false
	}
	h := frame[l3 : l3+packet.IPv4MinLen]
	h[packet.IPv4TTL]--
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	csum = packet.Apply(csum, packet.AddDiff(diff, TTLStep))
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], csum)
	binary.BigEndian.PutUint64(h[packet.IPv4Src:], uint64(src.V4())<<32|uint64(dst.V4()))
	return true
}

// udpPorts writes both ports of the UDP header at l4 and updates its checksum.
func udpPorts(frame []byte, l4 int, ports uint32, diff uint16) bool {
	if len(frame) < l4+packet.UDPLen {
		return false
	}
	PlainUDP((*[packet.UDPLen]byte)(frame[l4:]), ports, diff)
	return true
}

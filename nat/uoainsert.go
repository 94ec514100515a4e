package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// UOAForm is how the client's address goes along with a client's datagram, by the
// option that DPVS calls UOA: type 31, length 8 or 20, port, address (include/uoa.h).
type UOAForm uint8

// The forms. A real server that knows none of them loses the packets of UOAProtocol,
// and nothing of the client's with the two others.
const (
	NoUOA       UOAForm = iota
	UOASeparate         // in an empty datagram before the client's, which is made as with UOAProtocol
	UOAProtocol         // in a header of IP protocol 248 between the IP and the UDP header
	UOAOption           // as an IPv4 option; client and server of IPv4
)

// UOAResult is what became of a UOA that a client's datagram was to bear.
type UOAResult uint8

// The results.
const (
	UOAInserted   UOAResult = iota // the datagram bears it
	UOASent                        // a datagram of its own does, just ahead
	UOAFailed                      // there was no frame for that; the client's goes on without
	NumUOAResults                  // how many there are
)

var uoaResults = [NumUOAResults]string{"uoa_inserted", "uoa_sent", "uoa_failed"}

// String returns a word usable as a metric label.
func (r UOAResult) String() string {
	if r >= NumUOAResults {
		return "uoa_unknown"
	}
	return uoaResults[r]
}

// The header of packet.ProtoUOA: version, which is 1 with a client of IPv4 and 2 with one
// of IPv6, in the upper half of the first byte; the protocol behind it; its length with
// its options.
const (
	oppLen    = 4
	oppClient = 1 // version of a client of IPv4; one more for IPv6
)

// uoaEnd is how much longer than any other a UOA is that has a datagram to itself: the
// end of the option list four times (RFC 791 section 3.1). By it `l4fwd rs uoa` knows
// that nobody has sent the empty datagram. To DPVS's module it is padding.
const uoaEnd = 4

// maxIPv4 is an IPv4 header with all options that it has room for.
const maxIPv4 = 60

// UOADue reports whether a client's datagram of UDP flow e, which conntrack has tracked,
// is among the first datagrams of it, which bear UOA, for none is repeated. Of a flow
// of one datagram each is.
func UOADue(e *conntrack.Entry, datagrams uint8) bool {
	return e.Packets[conntrack.Forward] <= uint32(datagrams) || e.State == conntrack.UDPOnePacket
}

// InsertUOA puts the client's address and port into a client's datagram of flow e, after
// Forward or Forward64:
//
//	UOAOption:   the IPv4 option 31, first of all: 31, 8, port (2), address (4)
//	UOAProtocol: version<<4, 17, length (2), and the same option, or 31, 20, port (2), address (16)
//
// all in network order, by the client's family and not the packet's. The UDP header
// keeps its checksum: it covers neither the IP header's options nor its protocol.
//
// The frame is chunk[off:off+n]. It grows at its front: what is before moves towards
// the chunk's start. The new offset and length are returned, p's offsets, the lengths and
// the IPv4 header's checksum corrected; Ethernet padding that is no longer needed goes.
// Parse would not take a packet of UOAProtocol for UDP any more.
//
// It returns false, with nothing changed, if the packet would exceed mtu, the IP MTU of
// the way out, its IPv4 header 60 bytes or the frame its chunk; if it is IPv6 with an
// extension header; or if form is not one for it. Then the datagram of BuildUOA may go
// ahead of it. A fragment must not come here.
func InsertUOA(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, form UOAForm, mtu int) (newOff, newLen int, ok bool) {
	if p.Kind != packet.KindUDP || e.Mode != conntrack.FullNAT || !within(chunk, off, n, p) {
		return off, n, false
	}
	head, at, grow := int(p.L4-p.L3), int(p.L4), int(TOALen(e))
	switch form {
	case UOAOption:
		at = int(p.L3) + packet.IPv4MinLen
		ok = !p.V6 && e.Client.Is4() && head+grow <= maxIPv4
	case UOAProtocol:
		grow += oppLen
		ok = !p.V6 || head == packet.IPv6Len
	}
	if !ok || p.IPLen()+grow > mtu || int(p.End)+grow > 0xffff || off < grow {
		return off, n, false
	}
	newOff = off - grow
	copy(chunk[newOff:], chunk[off:off+at])
	frame := chunk[newOff : off+n]
	h, b := frame[p.L3:], frame[at:at+grow]
	var diff uint16 // of the IPv4 header
	switch {
	case form == UOAOption:
		was := uint16(h[0]) << 8
		h[0] += byte(grow / 4)
		diff = packet.AddDiff(putTOA(b, e, optUOA), packet.Diff16(was, uint16(h[0])<<8))
	case p.V6:
		h[packet.IPv6NextHeader] = packet.ProtoUOA
	default:
		h[packet.IPv4Proto] = packet.ProtoUOA
		diff = packet.Diff16(packet.ProtoUDP, packet.ProtoUOA)
	}
	if form == UOAProtocol {
		putOPP(b, e)
	}
	if !p.V6 {
		csum := h[packet.IPv4Checksum : packet.IPv4Checksum+2]
		binary.BigEndian.PutUint16(csum, packet.Apply(binary.BigEndian.Uint16(csum), diff))
	}
	resize(frame, p, grow)
	p.L4 += uint16(grow)
	p.Payload += uint16(grow)
	return newOff, unpadded(n+grow, int(p.End)), true
}

// putOPP writes the header of protocol 248 with UOA over b, which may be longer by what
// is the end of the option list.
func putOPP(b []byte, e *conntrack.Entry) {
	size := TOALen(e)
	b[0], b[1] = oppClient<<4, packet.ProtoUDP
	if size == toaLen6 {
		b[0] = (oppClient + 1) << 4
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	putTOA(b[oppLen:oppLen+size], e, optUOA)
	clear(b[oppLen+size:])
}

// BuildUOA writes into a free chunk an empty datagram that tells the real server of flow
// e who its client is, in the form of UOAOption, or else of UOAProtocol. It has the
// flow's addresses and ports, TTL 64 and DF.
//
// The frame is chunk[off:off+n], its IP header at off+packet.EthLen. MAC addresses are
// zero and the caller's to write, with room for a VLAN tag before off.
//
// ok is false if the flow's ids mean nothing in dir, if it is not Full-NAT, if form is not
// one for it, or if the chunk is shorter than 172 bytes.
func BuildUOA(chunk []byte, e *conntrack.Entry, dir *conntrack.Directory, form UOAForm) (off, n int, ok bool) {
	const longest = packet.IPv6Len + oppLen + toaLen6 + uoaEnd + packet.UDPLen
	src, dst, ports, ok := serverSide(e, dir)
	if !ok || e.Mode != conntrack.FullNAT || src.Is4() != dst.Is4() || len(chunk) < resetRoom+longest ||
		form == UOAOption && (!src.Is4() || !e.Client.Is4()) {
		return 0, 0, false
	}
	head, etherType, proto := packet.IPv4MinLen, uint16(packet.EtherTypeIPv4), uint8(packet.ProtoUOA)
	if !src.Is4() {
		head, etherType = packet.IPv6Len, packet.EtherTypeIPv6
	}
	more := oppLen + int(TOALen(e)) + uoaEnd
	if form == UOAOption {
		more, proto = toaLen4+uoaEnd, packet.ProtoUDP
	}
	off, n = resetRoom-packet.EthLen, packet.EthLen+head+more+packet.UDPLen
	frame := chunk[off : off+n]
	clear(frame[:packet.EthType])
	binary.BigEndian.PutUint16(frame[packet.EthType:], etherType)
	h, between := frame[packet.EthLen:packet.EthLen+head], frame[packet.EthLen+head:n-packet.UDPLen]
	putIP(h, 0, proto, more+packet.UDPLen, src, dst)
	if form == UOAOption {
		putTOA(between[:toaLen4], e, optUOA)
		clear(between[toaLen4:])
		h[0] += byte(more / 4)
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], 0)
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Checksum(frame[packet.EthLen:n-packet.UDPLen], 0))
	} else {
		putOPP(between, e)
	}
	u := frame[n-packet.UDPLen:]
	binary.BigEndian.PutUint32(u, ports)
	binary.BigEndian.PutUint32(u[packet.UDPLength:], packet.UDPLen<<16)
	csum := packet.Checksum(u, packet.PseudoSum(src, dst, packet.ProtoUDP, packet.UDPLen))
	if csum == 0 {
		csum = 0xffff
	}
	binary.BigEndian.PutUint16(u[packet.UDPChecksum:], csum)
	return off, n, true
}

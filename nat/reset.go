package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// ResetFor turns a TCP segment that belongs to no flow, the frame
// chunk[off:off+n], into the RST that RFC 9293 section 3.10.7.1 prescribes, in
// place: with ACK, the RST's sequence number is the segment's acknowledgement;
// without, the sequence number is 0 and the RST acknowledges the segment, SYN and
// FIN counted. No options, TTL 64, checksums computed afresh.
//
// The frame begins where it began and ends behind the RST; the link header is
// still the received one and the caller's to overwrite. p describes the new
// frame, which is to be routed by p.Dst.
//
// ok is false, with chunk and p unchanged, if p is not TCP, or a RST, which is
// never answered, or did not come from one host for one host (RFC 1122 section
// 4.2.3.10), or is damaged: who sends a segment with a wrong checksum would get an
// answer to numbers that it may never have sent (RFC 9293 section 3.1). The caller
// limits the rate: see Bucket.
func ResetFor(chunk []byte, off, n int, p *packet.Packet) (newOff, newLen int, ok bool) {
	if p.Kind != packet.KindTCP || p.TCPFlags&packet.RST != 0 || !within(chunk, off, n, p) ||
		int(p.Payload) < int(p.L4)+packet.TCPMinLen || !betweenHosts(chunk[off:off+n], p) ||
		!packet.VerifyIPv4(chunk[off:off+n], p) || !packet.VerifyL4(chunk[off:off+n], p) {
		return off, n, false
	}
	seq, ack, flags := p.Ack, uint32(0), uint8(packet.RST)
	if p.TCPFlags&packet.ACK == 0 {
		seq, ack, flags = 0, p.Seq+segmentLen(p), packet.RST|packet.ACK
	}
	l3 := int(p.L3)
	head := packet.IPv4MinLen
	if p.V6 {
		head = packet.IPv6Len
	}
	src, dst := p.Dst, p.Src
	ports := uint32(p.DstPort)<<16 | uint32(p.SrcPort)
	size := head + packet.TCPMinLen
	putRST(chunk[off+l3:off+l3+size], src, dst, ports, seq, ack, flags)
	*p = packet.Packet{
		Tuple: packet.Tuple{Src: src, Dst: dst, SrcPort: uint16(ports >> 16), DstPort: uint16(ports), Proto: packet.ProtoTCP},
		Seq:   seq, Ack: ack, L3: p.L3, L4: uint16(l3 + head), Payload: uint16(l3 + size), End: uint16(l3 + size),
		Kind: packet.KindTCP, TCPFlags: flags, V6: p.V6,
	}
	return off, l3 + size, true
}

// segmentLen is SEG.LEN of RFC 9293: data, SYN and FIN.
func segmentLen(p *packet.Packet) uint32 {
	n := uint32(p.End - p.Payload)
	if p.TCPFlags&packet.SYN != 0 {
		n++
	}
	if p.TCPFlags&packet.FIN != 0 {
		n++
	}
	return n
}

// resetRoom is where BuildReset puts the IP header: room for any link header and a
// tunnel's.
const resetRoom = 96

var _ [resetRoom - packet.VLANEthLen - MaxOverhead]byte

// BuildReset writes into a free chunk the RST that ends flow e for one of its
// sides when it is given up: d Reply goes to the client and comes from the VIP,
// d Forward goes to the real server and comes from where the flow's packets do,
// the local address or the client. Call it before the flow is removed.
//
// It is a RST with ACK whose sequence number is the highest that this side has
// been sent, plus one, in its own sequence space: what a peer that has received
// everything expects next, so that it believes the RST at once (RFC 5961 section
// 3). A peer that misses some of it answers a challenge ACK, which then belongs to
// no flow: ResetFor is the exact answer. header is ProxyLen of a flow with PROXY
// that is not ProxyDone, else 0: the server has been sent that much more than the
// flow's windows tell, and has most likely got it, its acknowledgement being lost.
//
// The frame is chunk[off:off+n], its IP header at off+packet.EthLen. MAC
// addresses are zero and the caller's to write, with room for a VLAN tag before
// off.
//
// ok is false if the flow is not Resettable, if its ids mean nothing in dir, if the
// chunk is shorter than 156 bytes, or, where replies take another way, towards the
// client, whose numbers nobody here has seen; the server then gets a RST without ACK.
func BuildReset(chunk []byte, e *conntrack.Entry, d conntrack.Dir, dir *conntrack.Directory, header int) (off, n int, ok bool) {
	src, dst, ports, ok := serverSide(e, dir)
	if !ok || int(e.Service) >= len(dir.Services) || !Resettable(e) ||
		len(chunk) < resetRoom+packet.IPv6Len+packet.TCPMinLen {
		return 0, 0, false
	}
	seq, ack, flags := e.Win[conntrack.Forward].End+e.SeqDelta+uint32(header), e.Win[conntrack.Reply].End, uint8(packet.RST|packet.ACK)
	switch {
	case d == conntrack.Reply && e.Mode.OneWay():
		return 0, 0, false
	case d == conntrack.Reply:
		vip := &dir.Services[e.Service]
		src, dst, ports = vip.Addr, e.Client, uint32(vip.Port)<<16|uint32(e.ClientPort)
		seq, ack = ack, e.Win[conntrack.Forward].End
	case e.Mode.OneWay():
		ack, flags = 0, packet.RST
	}
	if src.Is4() != dst.Is4() {
		return 0, 0, false
	}
	head, etherType := packet.IPv4MinLen, uint16(packet.EtherTypeIPv4)
	if !src.Is4() {
		head, etherType = packet.IPv6Len, packet.EtherTypeIPv6
	}
	off, n = resetRoom-packet.EthLen, packet.EthLen+head+packet.TCPMinLen
	frame := chunk[off : off+n]
	clear(frame[:packet.EthType])
	binary.BigEndian.PutUint16(frame[packet.EthType:], etherType)
	putRST(frame[packet.EthLen:], src, dst, ports, seq, ack, flags)
	return off, n, true
}

// Resettable reports whether flow e is TCP and between the end of its handshake and
// its end, so that both ends hold the connection to be open.
func Resettable(e *conntrack.Entry) bool {
	switch e.State {
	case conntrack.Established, conntrack.FinWait, conntrack.CloseWait, conntrack.LastAck:
		return e.Proto == packet.ProtoTCP
	}
	return false
}

// putRST writes a whole datagram over d: IP header and TCP header without
// options. ports is the first word of the TCP header.
func putRST(d []byte, src, dst packet.Addr, ports, seq, ack uint32, flags uint8) {
	l4 := len(d) - packet.TCPMinLen
	t := d[l4:]
	binary.BigEndian.PutUint32(t, ports)
	binary.BigEndian.PutUint32(t[packet.TCPSeq:], seq)
	binary.BigEndian.PutUint32(t[packet.TCPAck:], ack)
	binary.BigEndian.PutUint32(t[packet.TCPOffset:], packet.TCPMinLen/4<<28|uint32(flags)<<16)
	binary.BigEndian.PutUint32(t[packet.TCPChecksum:], 0)
	sum := packet.PseudoSum(src, dst, packet.ProtoTCP, packet.TCPMinLen)
	binary.BigEndian.PutUint16(t[packet.TCPChecksum:], packet.Checksum(t, sum))
	putIP(d[:l4], 0, packet.ProtoTCP, packet.TCPMinLen, src, dst)
}

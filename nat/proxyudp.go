package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// ProxyDue reports whether a client's datagram of UDP flow e has to bear the PROXY
// header: the first that the flow forwards, or each where every one has a backend of its own.
// To be asked before Track. What is lost behind l4fwd is not told again.
func ProxyDue(e *conntrack.Entry) bool {
	return e.Bytes[conntrack.Forward] == 0 || e.State == conntrack.UDPOnePacket
}

// InsertProxyUDP puts the PROXY header of version 2 before the data of a client's
// datagram of flow e, which is due. chunk, off, n, p, mtu and the results are those
// of InsertProxy: only ProxyRefused, ProxyTooBig, ProxyNoHeadroom and ProxyInserted. A
// datagram that may be divided is never too big for the MTU; the caller sees to that.
// One without checksum, over IPv4, stays without.
func InsertProxyUDP(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory, mtu int) (newOff, newLen int, res ProxyResult) {
	if p.Kind != packet.KindUDP || !within(chunk, off, n, p) || p.Payload != p.L4+packet.UDPLen || e.Mode != conntrack.FullNAT {
		return off, n, ProxyRefused
	}
	var header [MaxProxyLen]byte
	grow := proxyHeader(&header, e, dir, ProxyV2)
	switch {
	case grow == 0:
		return off, n, ProxyRefused
	case p.IPLen()+grow > mtu || int(p.End)+grow > 0xffff:
		return off, n, ProxyTooBig
	case off < grow:
		return off, n, ProxyNoHeadroom
	}
	newOff = off - grow
	copy(chunk[newOff:], chunk[off:off+int(p.Payload)])
	frame := chunk[newOff : off+n]
	copy(frame[p.Payload:], header[:grow]) // an even number: the data's sum stays
	u := frame[p.L4:p.Payload]
	was := binary.BigEndian.Uint16(u[packet.UDPLength:])
	binary.BigEndian.PutUint16(u[packet.UDPLength:], was+uint16(grow))
	diff := packet.AddDiff(packet.Diff16(was, was+uint16(grow)), packet.Fold(packet.Sum(header[:grow], 0)))
	diff = packet.AddDiff(diff, resize(frame, p, grow))
	csum := u[packet.UDPChecksum:]
	binary.BigEndian.PutUint16(csum, packet.ApplyUDP(binary.BigEndian.Uint16(csum), diff))
	return newOff, unpadded(n+grow, int(p.End)), ProxyInserted
}

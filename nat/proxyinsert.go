package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// ProxyResult is what InsertProxy made of a client's packet. The zero value is a
// reason to drop.
type ProxyResult uint8

// The results. After the first four, which Drop reports, the packet is as it was
// and must not be sent.
const (
	ProxyRefused    ProxyResult = iota // not a client's TCP packet of this flow, or no header for it
	ProxyEarly                         // data that would reach the server where the header has to be
	ProxyTooBig                        // with the header the datagram would exceed the MTU
	ProxyNoHeadroom                    // no space before the frame in its chunk
	ProxyUntouched                     // goes on as it is
	ProxyShifted                       // sequence number moved behind the header
	ProxyInserted                      // carries the header
	ProxyProbe                         // a SYN on a connection that exists: asks the server about it
	NumProxyResults
)

var proxyResults = [NumProxyResults]string{"proxy_refused", "proxy_early", "proxy_too_big", "proxy_no_headroom",
	"proxy_untouched", "proxy_shifted", "proxy_inserted", "proxy_probe"}

// String returns a word usable as a metric label.
func (r ProxyResult) String() string {
	if r >= NumProxyResults {
		return "proxy_unknown"
	}
	return proxyResults[r]
}

// Drop reports whether the packet must not be sent.
func (r ProxyResult) Drop() bool { return r < ProxyUntouched || r >= NumProxyResults }

// InsertProxy gives a client's packet of a flow with PROXY, tracked already and
// not yet through Forward, its place behind the header, or the header itself. Every
// segment that begins at the client's ISN+1 carries it until the server has
// acknowledged it, the bare ACK of the handshake included: where the header is
// lost the ACK is lost with it, so the server repeats its SYN-ACK and the client
// its ACK, also if neither has anything to say. A flow that is done is left alone.
//
// The frame is chunk[off:off+n]. It grows at its front, by at most MaxProxyLen:
// link, IP and TCP headers move towards the chunk's start, and the header goes
// between them and the data. The new offset and length are returned, p, the
// lengths, the urgent pointer and the checksums corrected; Ethernet padding that
// is no longer needed goes. mtu is the IP MTU of the way out; of a packet that is
// too big with DF the client should hear by TooBig with mtu less ProxyLen.
//
// Refused as ProxyEarly: data or FIN before the handshake is complete, data on a
// SYN (see CutSYN), and a segment that begins before ISN+1 and ends behind it. No
// stack sends any of these; a client that forges a header would. The caller must
// for the same reason drop a client's TCP fragments.
//
// A RST bears no header. With ACK it is the client's own, most likely sent when
// the server has the header, and goes behind it; without, it is the answer to
// something the server said, which has not got it, and goes before it.
//
// A SYN that is not the one the flow began with does not reach the server, which
// could take it for a new connection. It becomes a bare ACK from long ago instead.
// A server that has the connection answers with what it expects, to which the
// client answers a RST, and a server that has not answers a RST itself; either
// ends the flow, and the client's next SYN opens another. So it is with a live
// server anyway (RFC 5961 section 4), and an honest client whose address was forged
// sees no more than an acknowledgement twice.
func InsertProxy(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, dir *conntrack.Directory, version ProxyVersion, mtu int) (newOff, newLen int, res ProxyResult) {
	if p.Kind != packet.KindTCP || !within(chunk, off, n, p) || int(p.Payload) < int(p.L4)+packet.TCPMinLen ||
		e.Mode != conntrack.FullNAT {
		return off, n, ProxyRefused
	}
	at := proxyPhase(e)
	syn, rst, ack := p.TCPFlags&packet.SYN != 0, p.TCPFlags&packet.RST != 0, p.TCPFlags&packet.ACK != 0
	data := p.End > p.Payload
	behind := int32(p.Seq + e.SeqDelta - *proxyWord(e)) // pending only
	switch {
	case syn && data || at == proxyOpening && (data || p.TCPFlags&packet.FIN != 0):
		return off, n, ProxyEarly
	case syn && (at != proxyOpening || p.Seq+1 != e.Win[conntrack.Forward].End):
		probe(chunk[off:off+n], p, e)
		return off, n, ProxyProbe
	case at != proxyPending:
		return off, n, ProxyUntouched
	case behind < 0 && behind+int32(segmentLen(p)) > 0:
		return off, n, ProxyEarly
	case behind < 0:
		return off, n, ProxyUntouched
	case rst && behind == 0 && !ack:
		if data {
			return off, n, ProxyEarly
		}
		return off, n, ProxyUntouched
	}
	var header [MaxProxyLen]byte
	grow := proxyHeader(&header, e, dir, version)
	switch {
	case grow == 0:
		return off, n, ProxyRefused
	case behind > 0 || rst:
		shiftSeq(chunk[off:off+n], p, uint32(grow))
		return off, n, ProxyShifted
	case p.IPLen()+grow > mtu || int(p.End)+grow > 0xffff:
		return off, n, ProxyTooBig
	case off < grow:
		return off, n, ProxyNoHeadroom
	}
	newOff = off - grow
	copy(chunk[newOff:], chunk[off:off+int(p.Payload)])
	frame := chunk[newOff : off+n]
	copy(frame[p.Payload:], header[:grow])
	applyTCP(frame[p.L4:], insertDiff(frame, p, grow))
	return newOff, unpadded(n+grow, int(p.End)), ProxyInserted
}

// longAgo is how far behind the client's newest data a probe lies: further than a
// segment that could still be waited for, on a window that is not huge.
const longAgo = 1 << 16

// probe makes a client's SYN a bare ACK of before the server's window, to which
// every server must answer (RFC 9293 section 3.10.7.4). The options become NOPs.
func probe(frame []byte, p *packet.Packet, e *conntrack.Entry) {
	t := frame[p.L4:p.Payload]
	start := e.Win[conntrack.Forward].End
	if proxyPhase(e) == proxyPending {
		start = *proxyWord(e) - e.SeqDelta
	}
	diff := shift32(t[packet.TCPSeq:], start-longAgo-p.Seq)
	diff = packet.AddDiff(diff, shift32(t[packet.TCPAck:], e.Win[conntrack.Reply].End-p.Ack))
	diff = packet.AddDiff(diff, packet.Diff16(uint16(t[packet.TCPFlags]), packet.ACK))
	t[packet.TCPFlags] = packet.ACK
	diff = packet.AddDiff(diff, blank(frame, int(p.L4), int(p.L4)+packet.TCPMinLen, int(p.Payload)))
	applyTCP(t, diff)
	p.Seq, p.Ack, p.TCPFlags = start-longAgo, e.Win[conntrack.Reply].End, packet.ACK
}

// shiftSeq adds by to the sequence number, in p too.
func shiftSeq(frame []byte, p *packet.Packet, by uint32) {
	t := frame[p.L4:p.Payload]
	applyTCP(t, shift32(t[packet.TCPSeq:], by))
	p.Seq += by
}

// insertDiff corrects everything in the headers, the TCP checksum apart, for the
// grow bytes that have been put before the data, and returns that checksum's change.
func insertDiff(frame []byte, p *packet.Packet, grow int) uint16 {
	data := frame[int(p.Payload)+grow : int(p.End)+grow]
	diff := packet.Fold(packet.Sum(frame[p.Payload:int(p.Payload)+grow], 0))
	if grow&1 != 0 {
		// Every byte of the data counts in the other half of its word now. Old
		// and new are taken from the same bytes: damaged data stays damaged.
		sum := packet.Fold(packet.Sum(data, 0))
		diff = packet.AddDiff(diff, packet.Diff16(sum, packet.DiffAt(sum, grow)))
	}
	if p.TCPFlags&packet.URG != 0 {
		// Counted from the segment's first byte (RFC 9293 section 3.8.5).
		u := frame[int(p.L4)+packet.TCPUrgent:]
		was := binary.BigEndian.Uint16(u)
		now := uint16(min(int(was)+grow, 0xffff))
		binary.BigEndian.PutUint16(u, now)
		diff = packet.AddDiff(diff, packet.Diff16(was, now))
	}
	return packet.AddDiff(diff, resize(frame, p, grow))
}

// ProxyError corrects an ICMP error about a packet to the server of a flow with
// PROXY, before TranslateError towards the client: the embedded
// sequence number, so that, SeqDelta taken off, it is the client's, and the MTU,
// if it is about a packet that carried the header. size is ProxyLen. Of any other
// error, or of a flow that is ProxyDone, it changes nothing.
func ProxyError(frame []byte, p *packet.Packet, e *conntrack.Entry, size int) {
	if proxyPhase(e) != proxyPending || !isError(frame, p) || p.Proto != packet.ProtoTCP {
		return
	}
	start := *proxyWord(e)
	if int32(p.Seq-start) < 0 {
		return
	}
	msg := frame[p.L4:p.End]
	covered := msg[:min(len(msg), int(p.Inner4-p.L4)+packet.TCPMinLen)]
	before := packet.Fold(packet.Sum(covered, 0))
	if p.Seq == start {
		lowerMTU(msg, p.V6, uint16(size))
	}
	t := frame[p.Inner4:p.End]
	seq := ProxyAck(p.Seq, start, uint32(size))
	diff := shift32(t[packet.TCPSeq:], seq-p.Seq)
	if len(t) >= packet.TCPChecksum+2 {
		applyTCP(t, diff)
	}
	p.Seq = seq
	diff = packet.AddDiff(packet.Negate(before), packet.Fold(packet.Sum(covered, 0)))
	csum := binary.BigEndian.Uint16(msg[packet.ICMPChecksum:])
	binary.BigEndian.PutUint16(msg[packet.ICMPChecksum:], packet.Apply(csum, diff))
}

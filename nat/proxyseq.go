package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// The PROXY header lies before the client's first byte, so the server's sequence
// space holds L bytes that the client's does not. With S the client's ISN+1, L
// the header's length and D = SeqDelta, which Forward adds and Reply takes off
// (all modulo 2^32, compared by the sign of the difference to S):
//
//	server space less D:  S          S+L                S+L+k
//	                      | header   | client's byte 0  | byte k
//	client space:                    S                  S+k
//
//	client to server, a segment that begins at q:
//	    q < S    q           keep-alive: before all data, stays so
//	    q = S    q           and the header is put before its data, if any
//	    q > S    q + L
//	server to client, an acknowledgement or a SACK edge a (less D):
//	    a ≤ S    a
//	    a < S+L  S           inside the header: nothing of the client's is there
//	    a ≥ S+L  a - L
//
// The comparison with S is good for 2 GiB only. It is not needed for longer than
// a round trip: once the server has acknowledged the whole header, the last line
// of each table is all there is, L is added to D, and from then on the flow is an
// ordinary Full-NAT flow. What comes late after that is harmless: a copy of a
// segment at S is sent at S+L without header, where it belongs, and an old
// acknowledgement inside the header shows as one before S, which the client
// ignores as old.
//
// A client could forge the header if its bytes reached the server as the first of
// a connection. So nothing of the client's may arrive between S and S+L, and only
// an acknowledgement by the server switches over: no flag or state does, which a
// client can bring about by packets that the server never takes (a wrong checksum
// is enough). And the server must see no SYN but the one that this flow knows of,
// or it could accept a second connection behind the first's back: hence the
// refusals of InsertProxy and ProxyReply.
//
// A flow goes through three phases, told by its state and one word:
//
//	opening  State ≤ SynRecv   S is Win[Forward].End, nothing else was sent
//	pending  later, word ≠ 0   word is S+D, the server's number for it
//	done     later, word = 0

// proxyWord is where that word lives: in place of the time of creation, which is
// read while the flow is in SynSent, and for the age of half-open flows: one that
// is reset or half-closed in mid-handshake is of any age from then on. conntrack
// sets it at Insert and never after.
func proxyWord(e *conntrack.Entry) *uint32 { return &e.Created }

// phase of a flow with PROXY.
type phase uint8

const (
	proxyOpening phase = iota // handshake not complete
	proxyPending              // the server has not acknowledged the header
	proxyDone
)

func proxyPhase(e *conntrack.Entry) phase {
	switch {
	case e.State <= conntrack.SynRecv:
		return proxyOpening
	case *proxyWord(e) != 0:
		return proxyPending
	}
	return proxyDone
}

// ProxyDone reports whether the server has acknowledged the flow's PROXY header.
// From then on its packets go at the speed of any other flow's. It means something
// for flows of services with PROXY only, as does all else here.
func ProxyDone(e *conntrack.Entry) bool { return proxyPhase(e) == proxyDone }

// ProxyDelta is the SeqDelta of a flow with PROXY whose client's SYN has number
// seq and whose server is to see isn, or one more where S+D would be 0, which
// stands for done.
func ProxyDelta(isn, seq uint32) uint32 {
	if isn+1 == 0 {
		isn++
	}
	return isn - seq
}

// ProxyAck is the number that an acknowledgement or SACK edge of the server's,
// SeqDelta taken off already, has towards the client. start is the client's ISN+1,
// size the header's length: what lies behind the header is moved by it, and what lies
// inside it is start.
func ProxyAck(ack, start, size uint32) uint32 {
	into := int32(ack - start)
	if into <= 0 {
		return ack
	}
	return ack - min(uint32(into), size)
}

// ProxyMark is what MarkProxy remembers of a flow for the time of one Track.
type ProxyMark struct {
	start   uint32 // towards the server
	opening bool
}

// MarkProxy is called for every packet of a flow with PROXY, in either direction,
// right before Track, and the result's Tracked right after it.
func MarkProxy(e *conntrack.Entry) ProxyMark {
	return ProxyMark{start: e.Win[conntrack.Forward].End + e.SeqDelta, opening: e.State <= conntrack.SynRecv}
}

// Tracked notes where the client's data begins if Track found the handshake
// complete, or over: until then the client's window ended there.
func (m ProxyMark) Tracked(e *conntrack.Entry) {
	if m.opening && e.State > conntrack.SynRecv {
		*proxyWord(e) = m.start
	}
}

// CutSYN takes Fast Open out of a client's SYN, the cookie and any data: what
// came with a SYN would reach the server where the header has to be, and where the
// client is told by TOA it would make a connection before that could be. The client
// sends the data again behind the handshake, since nobody acknowledges it. It
// returns the new length of the frame, with zeros for the padding a short one
// needs, and corrects p. Of anything but a SYN it changes nothing. It is called
// before Track, which would count the data as sent.
func CutSYN(frame []byte, p *packet.Packet) int {
	if p.Kind != packet.KindTCP || p.TCPFlags&packet.SYN == 0 || int(p.End) > len(frame) {
		return len(frame)
	}
	StripOption(frame, p, packet.OptFastOpen)
	if p.End <= p.Payload {
		return len(frame)
	}
	diff := packet.Negate(packet.Fold(packet.Sum(frame[p.Payload:p.End], 0)))
	applyTCP(frame[p.L4:], packet.AddDiff(diff, resize(frame, p, int(p.Payload)-int(p.End))))
	n := unpadded(len(frame), int(p.End))
	clear(frame[p.End:n])
	return n
}

// resize corrects the IP header and p.End for a datagram that has become longer by
// grow bytes, and returns the change in the pseudo header.
func resize(frame []byte, p *packet.Packet, grow int) (diff uint16) {
	h := frame[p.L3:]
	if p.V6 {
		n := binary.BigEndian.Uint16(h[packet.IPv6PayloadLen:])
		binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], n+uint16(grow))
	} else {
		n := binary.BigEndian.Uint16(h[packet.IPv4TotalLen:])
		binary.BigEndian.PutUint16(h[packet.IPv4TotalLen:], n+uint16(grow))
		csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
		csum = packet.Apply(csum, packet.Diff16(n, n+uint16(grow)))
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], csum)
	}
	was := p.End - p.L4
	p.End += uint16(grow)
	return packet.Diff16(was, p.End-p.L4)
}

// ProxyReply corrects a server's packet of a flow with PROXY, before Track and
// Reply: acknowledgement and SACK blocks so that, SeqDelta taken off, they are the
// client's, and the window so that it promises the client no byte that the header
// takes up. A SACK block inside the header becomes empty. p is corrected too. size
// is ProxyLen; of a flow that is ProxyDone it is not looked at.
//
// An acknowledgement of the whole header, and of nothing that was not sent, ends
// the phase: size is added to e.SeqDelta, and the packet stays as it is.
//
// It returns false for a SYN-ACK of a connection that this flow does not know of,
// which must not reach the client, and for what cannot be a packet of this flow.
func ProxyReply(frame []byte, p *packet.Packet, e *conntrack.Entry, size int) bool {
	at := proxyPhase(e)
	if at == proxyDone && p.TCPFlags&packet.SYN == 0 {
		return true
	}
	if size < 1 && at != proxyDone || p.Kind != packet.KindTCP || int(p.Payload) > len(frame) || int(p.L4)+packet.TCPMinLen > int(p.Payload) {
		return false
	}
	if p.TCPFlags&packet.SYN != 0 && at != proxyOpening && p.Seq+1 != e.ServerNext {
		return false
	}
	if at == proxyDone || p.TCPFlags&packet.ACK == 0 {
		return true
	}
	m := proxyMap{start: e.Win[conntrack.Forward].End + e.SeqDelta, size: uint32(size)}
	into := int32(p.Ack - m.start)
	switch {
	case at == proxyPending:
		sent := m.start - *proxyWord(e)
		m.start = *proxyWord(e)
		into = int32(p.Ack - m.start)
		if into >= int32(m.size) && uint32(into)-m.size <= sent && p.TCPFlags&packet.RST == 0 {
			e.SeqDelta += m.size
			*proxyWord(e) = 0
			return true
		}
	case into != 0 && e.State != conntrack.SynRecv:
		return true // no SYN-ACK, but an answer to an older connection on this tuple
	case into > 0:
		m.size = max(m.size, uint32(into)) // nothing was sent that it could acknowledge
	}
	m.correct(frame, p, e)
	return true
}

// proxyMap is ProxyAck's arithmetic, in the server's space.
type proxyMap struct{ start, size uint32 }

// correct applies it to one segment of the server's.
func (m proxyMap) correct(frame []byte, p *packet.Packet, e *conntrack.Entry) {
	t := frame[p.L4:p.Payload]
	into := min(max(int32(p.Ack-m.start), 0), int32(m.size))
	diff := shift32(t[packet.TCPAck:], ProxyAck(p.Ack, m.start, m.size)-p.Ack)
	p.Ack = binary.BigEndian.Uint32(t[packet.TCPAck:])
	scale := uint8(0)
	if p.TCPFlags&packet.SYN == 0 && e.Flags&conntrack.WindowScaled != 0 {
		scale = min(e.WScale[conntrack.Reply], packet.MaxWindowScale)
	}
	taken := m.size - uint32(into)
	window := uint16(max(int(p.Window)-int((taken+1<<scale-1)>>scale), 0))
	diff = packet.AddDiff(diff, packet.Diff16(p.Window, window))
	binary.BigEndian.PutUint16(t[packet.TCPWindow:], window)
	p.Window = window
	for it := packet.Options(frame, p); it.Next(); {
		if it.Kind != packet.OptSACK {
			continue
		}
		for at := it.Off + 2; at+4 <= it.Off+it.Len; at += 4 {
			edge := binary.BigEndian.Uint32(frame[at:])
			d := shift32(frame[at:], ProxyAck(edge, m.start, m.size)-edge)
			diff = packet.AddDiff(diff, packet.DiffAt(d, at-int(p.L4)))
		}
	}
	applyTCP(t, diff)
}

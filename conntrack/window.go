package conntrack

import "github.com/l4fwd/l4fwd/packet"

const (
	// minSlack is how far behind the newest data a segment may lie even if
	// the peer's window was never that large: retransmissions, keep-alives
	// (RFC 9293 section 3.8.4), windows closed meanwhile.
	minSlack = 1 << 16

	// blindSlack is how far from the client's newest data a segment may lie
	// when the server's acknowledgements and windows are never seen.
	blindSlack = 1 << 20
)

// payloadLen is the length of a segment's data.
func payloadLen(p *packet.Packet) uint32 { return uint32(p.End - p.Payload) }

// Window is the window side d announces with p, in bytes.
func (e *Entry) Window(d Dir, p *packet.Packet) uint32 { return e.Scaled(d, p.Window) }

// Scaled is the window that side d announces by win, in bytes.
func (e *Entry) Scaled(d Dir, win uint16) uint32 {
	if e.Flags&WindowScaled == 0 {
		return uint32(win)
	}
	return uint32(win) << (e.WScale[d&1] & 31)
}

// limit is the highest sequence number that side w may send: as far as the widest
// window of the other side reaches, and at least what it did send.
func (w *Window) limit(peer *Window) uint32 { return later(w.End, w.Acked+max(peer.MaxWin, 1)) }

// segmentEnd is the sequence number after p's data and FIN.
func segmentEnd(p *packet.Packet) uint32 {
	end := p.Seq + payloadLen(p)
	if p.TCPFlags&packet.FIN != 0 {
		end++
	}
	return end
}

// fitsWindow reports whether a segment of side d with ACK can belong to the
// connection: it begins no later than the peer's window allows and ends no
// earlier than a window before the newest data; it acknowledges nothing that
// the peer may not have sent and nothing older than two windows (the first for
// what was in flight, the second after RFC 5961 section 5.2). In SynRecv the
// client must acknowledge the SYN-ACK itself. ack is in the space of the side
// that sent what it acknowledges, as received here.
func (e *Entry) fitsWindow(d Dir, p *packet.Packet, ack uint32) bool {
	me, peer := &e.Win[d], &e.Win[d^1]
	if !me.Admits(peer, p.Seq, segmentEnd(p)) {
		return false
	}
	if e.State == SynRecv && d == Forward {
		return !before(ack, e.ServerNext) && !before(peer.End, ack)
	}
	return peer.Covers(me, ack)
}

// Admits is the part of fitsWindow about what side w sends: data from seq to end.
func (w *Window) Admits(peer *Window, seq, end uint32) bool {
	return !before(w.limit(peer), seq) && !before(end, w.End-max(peer.MaxWin, minSlack))
}

// Covers is the part about what the other side acknowledges of w's.
func (w *Window) Covers(peer *Window, ack uint32) bool {
	return !before(w.limit(peer), ack) && !before(ack, w.End-2*max(peer.MaxWin, minSlack))
}

// MostFlight is how much data a side may have in flight for Follows.
const MostFlight = 2 * minSlack

// Follows reports whether a segment of side w begins right where the last one ended
// and acknowledges no less than before and no more than the other side has sent: a
// simple case of Admits and Covers, and by far the commonest. Then Send makes its end
// the window's and Acknowledge leaves the other one's where it is.
func (w *Window) Follows(peer *Window, seq, ack uint32) bool {
	flight := peer.End - peer.Acked
	return seq == w.End && ack-peer.Acked <= flight && flight <= MostFlight
}

// moveWindow takes note of what a fitting segment of side d sends, acknowledges and
// permits. end is after its data and FIN. Data the peer sent past us counts as sent.
func (e *Entry) moveWindow(d Dir, p *packet.Packet, end, ack uint32) {
	e.Win[d].Send(end, e.Window(d, p))
	e.Win[d^1].Acknowledge(ack)
	if e.Flags&(HasServerISN|ServerAcked) == HasServerISN && d == Forward {
		e.NoteServerAcked(ack)
	}
}

// Send is the part of moveWindow about the sender's own side.
func (w *Window) Send(end, win uint32) {
	w.End = later(w.End, end)
	w.MaxWin = max(w.MaxWin, win)
}

// Acknowledge is the part about the other side's.
func (w *Window) Acknowledge(ack uint32) {
	w.End = later(w.End, ack)
	w.Acked = later(w.Acked, ack)
}

// NoteServerAcked notes whether the client has acknowledged data of the server, or
// its FIN.
func (e *Entry) NoteServerAcked(ack uint32) {
	if before(e.ServerNext, ack) {
		e.Flags |= ServerAcked
	}
}

// expectRST notes, in SynSent, that the server answered with an ACK of an older
// connection on this tuple. The client will clear that with a RST of just this
// sequence number (RFC 9293 section 3.5.1) and go on with its SYN. The server's
// window is not in use before its SYN-ACK, so the note goes there. Where the ACK is
// of a SYN that is noted there already, that will do.
func (e *Entry) expectRST(ack uint32) {
	if !e.ofSecond(ack) {
		e.Win[Reply] = Window{End: ack, MaxWin: 1}
	}
}

// secondSYN in Win[Reply].MaxWin, in SynSent, says that the window is that of another
// SYN of the client's, see noteSYN. Below it are the window and the shift it announces.
const secondSYN = 1 << 31

// noteSYN notes, in SynSent, a SYN of another number than the one that began the flow.
// Which of the two the server takes, its SYN-ACK says. Of any more only the latest is
// noted: whoever forges them cannot have the first one forgotten.
func (e *Entry) noteSYN(p *packet.Packet, scale uint8) {
	end, isn := segmentEnd(p)+1, p.Seq+1
	if s := &e.Win[Reply]; s.MaxWin&secondSYN != 0 && s.Acked == isn {
		end = later(end, s.End) // again, without its data
	}
	e.Win[Reply] = Window{End: end, Acked: isn, MaxWin: secondSYN | uint32(scale)<<16 | uint32(p.Window)}
}

// ofSecond reports whether ack acknowledges the SYN that noteSYN noted, with or without
// the data on it.
func (e *Entry) ofSecond(ack uint32) bool {
	s := &e.Win[Reply]
	return e.State == SynSent && s.MaxWin&secondSYN != 0 && !before(ack, s.Acked) && !before(s.End, ack)
}

// takeSecond makes the SYN that noteSYN noted the flow's, if ack acknowledges it.
func (e *Entry) takeSecond(ack uint32) bool {
	if !e.ofSecond(ack) {
		return false
	}
	s := e.Win[Reply]
	e.Win[Forward] = Window{End: s.End, Acked: s.Acked, MaxWin: max(s.MaxWin&0xffff, 1)}
	e.WScale[Forward] = uint8(s.MaxWin >> 16)
	return true
}

// noteSYNACK: a SYN-ACK after the first, mostly the same again. Another
// sequence number is another connection: a live one never answers so. In
// SynRecv the server forgot its first answer, or it was a SYN cookie, and what
// counts is the latest. Later the server forgot the connection, because it was
// started anew or gave up long before us, while the client takes its port for
// a new one. A SYN-ACK can be forged, so it is only noted until the client
// acknowledges just this, see takesNewServer. ServerNext is not in use then:
// ServerAcked without HasServerISN says that it holds the note, the sum of what
// the handshake's last segment must acknowledge and of the number it must have.
func (e *Entry) noteSYNACK(p *packet.Packet, ack uint32) {
	next := p.Seq + 1
	if e.Flags&HasServerISN != 0 && next == e.ServerNext {
		return
	}
	switch e.State {
	case SynRecv:
		if c := &e.Win[Forward]; ack == c.End {
			e.Win[Reply] = Window{End: next + payloadLen(p), Acked: next, MaxWin: max(uint32(p.Window), 1)}
			e.ServerNext = next
		}
	case Established, FinWait, CloseWait, LastAck:
		e.ServerNext = next + ack
		e.Flags = e.Flags&^HasServerISN | ServerAcked
	}
}

// takesNewServer reports whether p, of the client, is the handshake's last of a
// connection that noteSYNACK noted. In Full-NAT a server knows the client's number
// only with SeqDelta added, so who sees neither side cannot forge both segments.
func (e *Entry) takesNewServer(p *packet.Packet) bool {
	return e.Flags&(HasServerISN|ServerAcked) == ServerAcked && p.Ack+p.Seq == e.ServerNext &&
		e.State >= SynRecv && e.State <= LastAck
}

// renew makes e the new connection, of which p is the handshake's last segment.
// The options of its SYNs were not looked at; if the old connection scaled its
// windows so does this one, by how much is not known, so the most is assumed.
func (e *Entry) renew(p *packet.Packet) {
	e.State = SynRecv
	e.Flags = e.Flags&^(ServerAcked|clientFinAcked|serverFinAcked) | HasServerISN
	if e.Flags&WindowScaled != 0 {
		e.WScale = [2]uint8{packet.MaxWindowScale, packet.MaxWindowScale}
	}
	e.ServerNext = p.Ack
	const unscaled = 1<<16 - 1
	e.Win[Forward] = Window{End: p.Seq, Acked: p.Seq, MaxWin: max(uint32(p.Window), 1)}
	e.Win[Reply] = Window{End: e.ServerNext, Acked: e.ServerNext, MaxWin: unscaled}
}

// noteFinAcked notes whether a segment of side d acknowledges the other side's
// FIN, and reports whether now both are. End stands right behind a FIN once it
// was seen: nothing can be sent after it.
func (e *Entry) noteFinAcked(d Dir, ack uint32) bool {
	switch {
	case before(ack, e.Win[d^1].End):
	case d == Forward && (e.State == CloseWait || e.State == LastAck):
		e.Flags |= serverFinAcked
	case d == Reply && (e.State == FinWait || e.State == LastAck):
		e.Flags |= clientFinAcked
	}
	const both = clientFinAcked | serverFinAcked
	return e.State == LastAck && e.Flags&both == both
}

// judgement of a RST.
type judgement uint8

const (
	rstStranger judgement = iota // nobody asked for it
	rstHarmless                  // forward, believe nothing
	rstExact                     // the receiver will believe it
)

// judgeRST compares a RST of side d with what is expected.
func (e *Entry) judgeRST(d Dir, p *packet.Packet) judgement {
	me, peer := &e.Win[d], &e.Win[d^1]
	switch e.State {
	case None:
		return rstStranger
	case SynSent:
		return e.judgeEarlyRST(d, p)
	}
	// What the receiver expects next is at least what it acknowledged. A host
	// that has forgotten the connection answers an ACK with just this number.
	if p.Seq == me.End || p.Seq == me.Acked {
		return rstExact
	}
	if !before(me.limit(peer)+1, p.Seq) && !before(p.Seq, me.End-max(peer.MaxWin, 1)) {
		return rstHarmless // the receiver asks back, or ignores it
	}
	if d == Reply && p.Seq == 0 && p.TCPFlags&packet.ACK != 0 {
		// A server without the connection refuses a SYN that came for it
		// (RFC 9293 section 3.10.7.1). Only a client that sent one cares.
		return rstHarmless
	}
	return rstStranger
}

// judgeEarlyRST is judgeRST before a SYN-ACK was seen.
func (e *Entry) judgeEarlyRST(d Dir, p *packet.Packet) judgement {
	c, s := &e.Win[Forward], &e.Win[Reply]
	if d == Reply {
		// Must acknowledge the SYN (RFC 9293 section 3.10.7.3), with or
		// without the data on it.
		ack := p.Ack - e.SeqDelta
		if p.TCPFlags&packet.ACK != 0 && !before(ack, c.Acked) && !before(c.End, ack) {
			return rstExact
		}
		if p.TCPFlags&packet.ACK != 0 && e.ofSecond(ack) {
			return rstHarmless // the client may believe it; the flow is the first SYN's
		}
		return rstStranger
	}
	switch {
	case !before(p.Seq, c.Acked-1) && !before(c.End, p.Seq):
		return rstExact // the client gives up
	case e.ofSecond(p.Seq), e.ofSecond(p.Seq + 1):
		return rstHarmless
	case s.MaxWin != 0 && p.Seq == s.End:
		return rstHarmless // clears the server's older connection; the SYN comes again
	}
	return rstStranger
}

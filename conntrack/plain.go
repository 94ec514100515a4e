package conntrack

import "github.com/l4fwd/l4fwd/packet"

// What nearly all packets are is tracked in a few steps, which the caller puts
// together so that they cost no calls: a segment for which Plain holds, or a datagram
// of a flow that is Answered or Unanswered, if CanPutOff, moves windows, counters and
// deadline, and nothing else.
// A segment that its windows do not admit moves none of them, and if the checks are
// ChecksStrict Track has to see it, before anything has been changed.

// Plain reports whether p, a TCP segment of e, leaves the state as it is: a segment
// of an established connection with ACK, perhaps with data, without SYN, FIN or RST.
func (e *Entry) Plain(p *packet.Packet) bool {
	const deciding = packet.ACK | packet.FIN | packet.SYN | packet.RST
	return p.TCPFlags&deciding == packet.ACK && e.State == Established &&
		e.Flags&(HalfOpen|HasServerISN) == HasServerISN && !e.Mode.OneWay()
}

// PlainOneWay reports whether p, a TCP segment of e, of which only the client's come by,
// leaves all as it is but the deadline and the window, which is to Extend: it belongs to
// the current connection, which is Established and so proven and no less alive than the
// other one.
func (e *Entry) PlainOneWay(p *packet.Packet) bool {
	const deciding = packet.ACK | packet.FIN | packet.SYN | packet.RST
	return p.TCPFlags&deciding == packet.ACK && e.State == Established && p.Seq-e.Win[Forward].End+blindSlack <= 2*blindSlack
}

// Extend takes note that the sender has sent data up to end.
func (w *Window) Extend(end uint32) { w.End = later(w.End, end) }

// Answered reports whether e is a UDP flow in which both sides have sent: one whose
// datagrams leave the state as it is.
func (e *Entry) Answered() bool { return e.State == UDPTwoWay && e.Flags&HalfOpen == 0 }

// Unanswered reports whether a datagram of direction d, of e, leaves a state of
// UDPOneWay as it is: a client's, while half-open flows are not scarce.
func (t *Table) Unanswered(e *Entry, d Dir) bool {
	return e.State == UDPOneWay && d == Forward && t.hdr.halfLen <= t.pressure
}

// CanPutOff reports whether e's deadline may be written where it is: the wheel comes by
// no later than before. A deadline sooner than the one there is, which only a change of
// configuration or of pressure brings, is Track's.
func (e *Entry) CanPutOff(deadline uint32) bool { return !before(deadline, e.Expires) }

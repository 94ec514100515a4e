package conntrack

// What nearly all packets are is tracked in a few steps, which the caller puts
// together so that they cost no calls: a segment of a flow that is Steady, or a datagram
// of a flow that is Answered or Unanswered, if CanPutOff, moves windows, counters and
// deadline, and nothing else.
// A segment that its windows do not admit moves none of them, and if the checks are
// ChecksStrict Track has to see it, before anything has been changed.

// Steady reports whether segments with ACK and without SYN, FIN or RST leave the state of
// e, a flow of TCP both of whose sides come by, as it is: it is established.
func (e *Entry) Steady() bool {
	return e.State == Established && e.Flags&(HalfOpen|HasServerISN) == HasServerISN
}

// PlainOneWay reports whether a segment of e that begins with seq, with ACK and without
// SYN, FIN or RST, of which only the client's come by, leaves all as it is but the deadline
// and the window, which is to Extend: it belongs to the current connection, which is
// Established and so proven and no less alive than the other one.
func (e *Entry) PlainOneWay(seq uint32) bool {
	return e.State == Established && seq-e.Win[Forward].End+blindSlack <= 2*blindSlack
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

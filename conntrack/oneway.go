package conntrack

import "github.com/l4fwd/l4fwd/packet"

// With direct return only the client's packets come by, so nothing vouches for
// a SYN: neither a SYN-ACK nor a challenge ACK is ever seen, and both a client
// that begins anew on a tuple and somebody who forges one look the same. So up
// to two connections are remembered, the current one in State and Win[Forward],
// the other one in Win[Reply], which the server's packets do not need, with its
// state in place of MaxWin. A segment belongs to the one whose numbers it fits,
// which is then the current one; what ends one of them ends the flow only if
// the other is no livelier. So a forged connection cannot end a living one, and
// a living one that begins anew needs no more than its own packets.

// otherState is the state of the other connection, None if there is none.
func (e *Entry) otherState() State { return State(e.Win[Reply].MaxWin) }

// exchange makes the other connection the current one.
func (e *Entry) exchange() {
	w, s := e.Win[Forward], e.State
	e.Win[Forward], e.State = e.Win[Reply], e.otherState()
	e.Win[Reply] = w
	e.Win[Reply].MaxWin = uint32(s)
}

// rank orders the states of a connection seen one way by how alive they are.
func rank(s State) int {
	switch s {
	case Established:
		return 3
	case FinWait:
		return 2
	case SynSent:
		return 1
	}
	return 0
}

// trackOneWay tracks a segment of a client whose server's take another way.
func (t *Table) trackOneWay(r Ref, e *Entry, p *packet.Packet, now uint32, pol *Policy) Outcome {
	switch f := p.TCPFlags; {
	case f&packet.RST != 0:
		return t.trackOneWayRST(r, e, p, now, pol)
	case f&packet.SYN != 0:
		switch {
		case f&packet.FIN != 0:
			return DropBadFlags
		case f&packet.ACK != 0:
			return DropBadSYN
		}
		return t.trackOneWaySYN(r, e, p, now, pol)
	case f&packet.ACK == 0:
		return DropBadFlags
	case e.State == None:
		return Pass
	case !e.belongs(p):
		if e.State == Established {
			t.setExpires(r, e, now+pol.Timeouts[Established])
		}
		return Pass
	}
	ev := evACK
	if p.TCPFlags&packet.FIN != 0 {
		ev = evFIN
	}
	w := &e.Win[Forward]
	w.End = later(w.End, segmentEnd(p))
	t.proven(r, e)
	t.moveOneWay(r, e, transitions[oneWay][ev][e.State], now, pol)
	return Pass
}

// trackOneWaySYN: a SYN. One that begins another connection is remembered,
// unless both that there are may be alive.
func (t *Table) trackOneWaySYN(r Ref, e *Entry, p *packet.Packet, now uint32, pol *Policy) Outcome {
	ev := e.synEvent(p)
	next := transitions[oneWay][ev][e.State]
	begun := Window{End: segmentEnd(p) + 1, Acked: p.Seq + 1}
	switch {
	case next == reopen:
		return Reopen
	case e.State == None:
		e.Win[Forward] = begun
	case ev == evNewSYN:
		if s := e.otherState(); s <= SynSent || e.State != Established {
			if s == SynSent && begun.Acked == e.Win[Reply].Acked {
				begun.End = later(begun.End, e.Win[Reply].End) // again, without its data
			}
			begun.MaxWin = uint32(SynSent)
			e.Win[Reply] = begun
		}
		return Pass
	}
	w := &e.Win[Forward]
	w.End = later(w.End, begun.End)
	t.settle(r, e, next, now, &pol.Timeouts)
	return Pass
}

// trackOneWayRST is trackRST.
func (t *Table) trackOneWayRST(r Ref, e *Entry, p *packet.Packet, now uint32, pol *Policy) Outcome {
	if e.State == None || !e.belongs(p) {
		return pol.implausible(DropBadRST)
	}
	if p.Seq == e.Win[Forward].End || e.State == SynSent {
		t.moveOneWay(r, e, transitions[oneWay][evRST][e.State], now, pol)
		return Pass
	}
	e.prefer()
	return Pass
}

// belongs reports whether p fits one of the connections, which is then the
// current one.
func (e *Entry) belongs(p *packet.Packet) bool {
	if fitsOneWay(e.State, &e.Win[Forward], p) {
		return true
	}
	if s := e.otherState(); s == None || !fitsOneWay(s, &e.Win[Reply], p) {
		return false
	}
	e.exchange()
	return true
}

// fitsOneWay compares p with what one connection has sent so far: how much more
// it may send, and what the server has acknowledged, is not known. Right after
// the SYN it can only go on where that ended, with or without data on it.
func fitsOneWay(s State, w *Window, p *packet.Packet) bool {
	if s == SynSent {
		return !before(p.Seq, w.Acked) && !before(w.End, p.Seq)
	}
	return !before(w.End+blindSlack, p.Seq) && !before(p.Seq, w.End-blindSlack)
}

// HasSent reports whether a segment of the client's that began at seq can have come by not
// long ago, in a flow of which only the client's do.
func (e *Entry) HasSent(seq uint32) bool {
	sent := func(w *Window) bool { return !before(w.End, seq) && !before(seq, w.End-blindSlack) }
	return sent(&e.Win[Forward]) || e.otherState() != None && sent(&e.Win[Reply])
}

// moveOneWay lets the current connection enter state s, and goes over to the
// other if that is more alive then.
func (t *Table) moveOneWay(r Ref, e *Entry, s State, now uint32, pol *Policy) {
	was := e.State
	e.State = s
	e.prefer()
	if was == Closed && e.State == Closed {
		return // what is still in flight does not prolong the end
	}
	t.settle(r, e, e.State, now, &pol.Timeouts)
}

// prefer makes the livelier connection the current one. What has ended is not
// remembered.
func (e *Entry) prefer() {
	if rank(e.otherState()) > rank(e.State) {
		e.exchange()
	}
	if e.otherState() == Closed {
		e.Win[Reply] = Window{}
	}
}

package conntrack

import "github.com/l4fwd/l4fwd/packet"

// trackTCP sorts segments by their flags; RST beats SYN beats FIN.
func (t *Table) trackTCP(r Ref, e *Entry, d Dir, p *packet.Packet, scale uint8, now uint32, pol *Policy) Outcome {
	if e.State >= UDPOneWay {
		return Pass // a template of another protocol's state: nothing to judge by
	}
	if e.Mode.OneWay() {
		return t.trackOneWay(r, e, p, now, pol)
	}
	switch f := p.TCPFlags; {
	case f&packet.RST != 0:
		return t.trackRST(r, e, d, p, now, pol)
	case f&packet.SYN != 0:
		synack := f&packet.ACK != 0
		switch {
		case f&packet.FIN != 0:
			return DropBadFlags
		case synack != (d == Reply):
			return DropBadSYN
		case synack:
			return t.trackSYNACK(r, e, p, scale, now, pol)
		}
		return t.trackSYN(r, e, p, scale, now, pol)
	case f&packet.ACK == 0:
		return DropBadFlags
	}
	return t.trackACK(r, e, d, p, now, pol)
}

// trackSYN: a SYN of the client.
func (t *Table) trackSYN(r Ref, e *Entry, p *packet.Packet, scale uint8, now uint32, pol *Policy) Outcome {
	ev := e.synEvent(p)
	next := transitions[Forward][ev][e.State]
	w := &e.Win[Forward]
	switch {
	case next == reopen:
		if e.State == SynSent && now-e.Created < synPatience {
			e.noteSYN(p, scale)
			return Pass
		}
		return Reopen
	case e.State == None:
		*w = Window{End: p.Seq + 1, Acked: p.Seq + 1, MaxWin: max(uint32(p.Window), 1)}
		e.WScale[Forward] = scale
	case ev == evNewSYN || e.State > SynRecv:
		return Pass
	}
	w.End = later(w.End, segmentEnd(p)+1) // data on a SYN: RFC 7413
	t.settle(r, e, next, now, &pol.Timeouts)
	return Pass
}

// synPatience is how long, in ticks, a SYN keeps its flow: one of another number,
// of a client that gave up and tries again or of somebody who forges it, goes to the
// server beside it, see noteSYN, and must not move a flow that is about to be
// answered. Later the first one will not be.
const synPatience = TicksPerSecond

// synEvent tells the SYN that begins e's connection from that of another one.
func (e *Entry) synEvent(p *packet.Packet) event {
	w := &e.Win[Forward]
	same := false
	switch e.State {
	case None:
		same = true
	case SynSent:
		// Another number before any answer: the client gave up and tries again.
		same = p.Seq+1 == w.Acked
	case SynRecv:
		same = segmentEnd(p)+1 == w.End // the SYN that was answered
	}
	if same {
		return evSYN
	}
	return evNewSYN
}

// trackSYNACK: a SYN-ACK of the server.
func (t *Table) trackSYNACK(r Ref, e *Entry, p *packet.Packet, scale uint8, now uint32, pol *Policy) Outcome {
	c, s := &e.Win[Forward], &e.Win[Reply]
	ack := p.Ack - e.SeqDelta
	if e.State != SynSent {
		e.noteSYNACK(p, ack)
		return Pass
	}
	if (before(ack, c.Acked) || before(c.End, ack)) && !e.takeSecond(ack) {
		e.expectRST(ack)
		return Pass
	}
	*s = Window{End: p.Seq + 1 + payloadLen(p), Acked: p.Seq + 1, MaxWin: max(uint32(p.Window), 1)}
	c.Acked = ack
	e.WScale[Reply] = scale
	if e.WScale[Forward] != packet.NoScale && scale != packet.NoScale {
		e.Flags |= WindowScaled
	}
	e.ServerNext = p.Seq + 1
	e.Flags |= HasServerISN
	t.settle(r, e, transitions[Reply][evSYNACK][e.State], now, &pol.Timeouts)
	return Pass
}

// trackACK: a segment with ACK, perhaps FIN, without SYN and RST.
func (t *Table) trackACK(r Ref, e *Entry, d Dir, p *packet.Packet, now uint32, pol *Policy) Outcome {
	ack := p.Ack
	if d == Reply {
		ack -= e.SeqDelta
	}
	if d == Forward && e.takesNewServer(p) {
		e.renew(p)
	}
	switch {
	case e.State == None:
		return Pass
	case e.State == SynSent:
		if d == Reply {
			e.expectRST(ack)
		}
		return Pass
	case !e.fitsWindow(d, p, ack):
		return t.outside(r, e, now, pol)
	}
	e.moveWindow(d, p, segmentEnd(p), ack)
	ev := evACK
	if p.TCPFlags&packet.FIN != 0 {
		ev = evFIN
	}
	if e.noteFinAcked(d, ack) {
		ev = evDone
	}
	if d == Forward {
		t.proven(r, e)
	}
	next := transitions[d][ev][e.State]
	if next == Closed || next == TimeWait && e.State == TimeWait {
		return Pass // what is still in flight does not prolong the end
	}
	t.settle(r, e, next, now, &pol.Timeouts)
	return Pass
}

// outside: a segment with ACK that does not fit the window. Before the
// handshake is complete there is none to fit, and the ends may have to clear
// away an older connection: then it goes on whatever the policy. Where only part
// of the traffic comes by, such a segment is as good a sign of life as any.
func (t *Table) outside(r Ref, e *Entry, now uint32, pol *Policy) Outcome {
	if pol.Checks == ChecksStrict && e.State > SynRecv {
		return DropBadSeq
	}
	if e.State == Established || pol.Checks == ChecksOff && (e.State == FinWait || e.State == CloseWait) {
		t.setExpires(r, e, now+pol.Timeouts[e.State])
	}
	return Pass
}

// trackRST: a RST, with or without ACK. Of the exact sequence number it closes
// the connection. Elsewhere in the window the end point answers a challenge ACK
// at most (RFC 5961 section 3.2), which a true RST of the exact number follows:
// so it goes on and means nothing. Nor may it bring the deadline closer: an idle
// connection has nothing to put it off again. Outside the window it is dropped.
func (t *Table) trackRST(r Ref, e *Entry, d Dir, p *packet.Packet, now uint32, pol *Policy) Outcome {
	switch e.judgeRST(d, p) {
	case rstExact:
		next := transitions[d][evRST][e.State]
		if e.State == SynSent {
			e.Win[Reply] = Window{} // a note in place of a window: see expectRST and noteSYN
		}
		if next != e.State {
			if e.Flags &^= clientFinAcked | serverFinAcked; d == Reply {
				e.Flags |= resetByServer
			}
			t.settle(r, e, next, now, &pol.Timeouts)
		}
	case rstStranger:
		return pol.implausible(DropBadRST)
	}
	return Pass
}

// implausible is what becomes of a RST that nobody asked for, which otherwise would
// be dropped as why.
func (pol *Policy) implausible(why Outcome) Outcome {
	if pol.Checks == ChecksOff {
		return Pass
	}
	return why
}

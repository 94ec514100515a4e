package conntrack

import "github.com/l4fwd/l4fwd/packet"

// event is what a segment means to the state machine, after its sequence
// numbers were found to fit.
type event uint8

const (
	evSYN    event = iota // SYN of the client
	evSYNACK              // SYN-ACK that fits the SYN
	evACK                 // any other segment with ACK
	evFIN                 // segment with FIN
	evDone                // segment after which both FINs are acknowledged
	evRST                 // RST of exactly the sequence number expected next
	numEvents
)

// reopen in place of a state: the segment begins a new connection.
const reopen State = 0xff

// transitions is the state machine: the state after an event in a direction.
//
// A SYN moves nothing before the connection is over: where it is a surprise
// the server answers it with a challenge ACK, the client answers that with a
// RST, which is exact, and its next SYN reopens.
var transitions = [2][numEvents][NumStates]State{
	Forward: {
		// after:  None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay
		evSYN:    {SynSent, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, reopen, reopen, UDPOneWay, UDPTwoWay},
		evSYNACK: {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evACK:    {None, SynSent, Established, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evFIN:    {None, SynSent, FinWait, FinWait, FinWait, LastAck, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evDone:   {None, SynSent, SynRecv, Established, FinWait, CloseWait, TimeWait, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evRST:    {Closed, Closed, Closed, Closed, Closed, Closed, Closed, TimeWait, Closed, UDPOneWay, UDPTwoWay},
	},
	Reply: {
		evSYN:    {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evSYNACK: {None, SynRecv, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evACK:    {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evFIN:    {None, SynSent, CloseWait, CloseWait, LastAck, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evDone:   {None, SynSent, SynRecv, Established, FinWait, CloseWait, TimeWait, TimeWait, Closed, UDPOneWay, UDPTwoWay},
		evRST:    {Closed, Closed, Closed, Closed, Closed, Closed, Closed, TimeWait, Closed, UDPOneWay, UDPTwoWay},
	},
}

// trackTCP sorts segments by their flags; RST beats SYN beats FIN.
func (t *Table) trackTCP(r Ref, e *Entry, d Dir, p *packet.Packet, frame []byte, now uint32, to *Timeouts) Outcome {
	if e.State >= UDPOneWay {
		return Pass // a template of another protocol's state: nothing to judge by
	}
	switch f := p.TCPFlags; {
	case f&packet.RST != 0:
		return t.trackRST(r, e, d, p, now, to)
	case f&packet.SYN != 0:
		synack := f&packet.ACK != 0
		switch {
		case f&packet.FIN != 0:
			return DropBadFlags
		case synack != (d == Reply):
			return DropBadSYN
		case synack:
			return t.trackSYNACK(r, e, p, frame, now, to)
		}
		return t.trackSYN(r, e, p, frame, now, to)
	case f&packet.ACK == 0:
		return DropBadFlags
	}
	return t.trackACK(r, e, d, p, now, to)
}

// trackSYN: a SYN of the client.
func (t *Table) trackSYN(r Ref, e *Entry, p *packet.Packet, frame []byte, now uint32, to *Timeouts) Outcome {
	w := &e.Win[Forward]
	next := transitions[Forward][evSYN][e.State]
	fresh := e.State == None
	switch e.State {
	case SynSent:
		// Another ISN before any answer: the client gave up and tries again.
		if p.Seq+1 != w.MaxEnd {
			return Reopen
		}
	case LastAck:
		// The very last ACK may have been lost on the way here. A new
		// incarnation starts beyond the old (RFC 9293 section 3.6.1); an old
		// duplicate does not.
		if before(w.End, p.Seq) {
			return Reopen
		}
		return Pass
	case Established, FinWait, CloseWait:
		return Pass
	case SynRecv:
		if segmentEnd(p)+1 != w.End {
			return Pass // not the SYN that was answered
		}
	}
	if next == reopen {
		return Reopen
	}
	if fresh {
		*w = Window{End: p.Seq + 1, MaxEnd: p.Seq + 1, MaxWin: max(uint32(p.Window), 1)}
		e.WScale[Forward] = scaleOf(p, frame)
	}
	w.End = later(w.End, segmentEnd(p)+1) // data on a SYN: RFC 7413
	t.settle(r, e, next, now, to)
	return Pass
}

// trackSYNACK: a SYN-ACK of the server.
func (t *Table) trackSYNACK(r Ref, e *Entry, p *packet.Packet, frame []byte, now uint32, to *Timeouts) Outcome {
	c, s := &e.Win[Forward], &e.Win[Reply]
	ack := p.Ack - e.SeqDelta
	if e.State != SynSent {
		e.noteSYNACK(p, ack)
		return Pass
	}
	if before(ack, c.MaxEnd) || before(c.End, ack) {
		e.expectRST(ack)
		return Pass
	}
	*s = Window{End: p.Seq + 1 + payloadLen(p), MaxEnd: p.Seq + 1 + c.MaxWin, MaxWin: max(uint32(p.Window), 1)}
	c.MaxEnd = later(c.MaxEnd, ack+s.MaxWin) // a window on a SYN is never scaled
	e.WScale[Reply] = scaleOf(p, frame)
	if e.WScale[Forward] != noScale && e.WScale[Reply] != noScale {
		e.Flags |= WindowScaled
	}
	e.ServerNext = p.Seq + 1
	e.Flags |= HasServerISN
	t.settle(r, e, transitions[Reply][evSYNACK][e.State], now, to)
	return Pass
}

// plain reports whether p, of an established flow, is a segment as nearly all
// are: ACK, perhaps with data, and nothing that could change the state.
func (e *Entry) plain(p *packet.Packet) bool {
	const deciding = packet.ACK | packet.FIN | packet.SYN | packet.RST
	return p.TCPFlags&deciding == packet.ACK && e.Mode != DirectReturn && e.Flags&(HalfOpen|HasServerISN) == HasServerISN
}

// trackPlain is trackACK for what is plain, in a few steps. Whether the segment
// fits the window or not, the flow lives on; of either kind the state stays.
func (t *Table) trackPlain(r Ref, e *Entry, d Dir, p *packet.Packet, now uint32, to *Timeouts) {
	ack := p.Ack
	if d == Reply {
		ack -= e.SeqDelta
	}
	if e.fitsWindow(d, p, ack) {
		e.moveWindow(d, p, ack)
	}
	if deadline := now + to[Established]; before(deadline, e.Expires) {
		t.setExpires(r, e, deadline)
	} else {
		e.Expires = deadline // the wheel comes by no later than before
	}
}

// trackACK: a segment with ACK, perhaps FIN, without SYN and RST.
func (t *Table) trackACK(r Ref, e *Entry, d Dir, p *packet.Packet, now uint32, to *Timeouts) Outcome {
	ack := p.Ack
	if d == Reply {
		ack -= e.SeqDelta
	}
	if d == Forward && e.takesNewServer(ack) {
		e.renew(p)
	}
	switch {
	case e.State == None:
		return Pass
	case e.Mode == DirectReturn:
		if !e.oneSided(p) {
			return Pass
		}
	case e.State == SynSent:
		if d == Reply {
			e.expectRST(ack)
		}
		return Pass
	case !e.fitsWindow(d, p, ack):
		if e.State == Established {
			t.setExpires(r, e, now+to[Established])
		}
		return Pass
	default:
		e.moveWindow(d, p, ack)
	}
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
	if e.Mode == DirectReturn && e.State == SynSent {
		next = transitions[d][ev][SynRecv] // the SYN-ACK went another way
	}
	if next == Closed || next == TimeWait && e.State == TimeWait {
		return Pass // what is still in flight does not prolong the end
	}
	t.settle(r, e, next, now, to)
	return Pass
}

// trackRST: a RST, with or without ACK. Of the exact sequence number it closes
// the connection. Elsewhere in the window the end point answers a challenge
// ACK (RFC 5961 section 3.2), or, an old one, closes: so the state stays and
// the deadline comes closer, until the challenge ACK or any other segment that
// fits shows that the connection lives. Outside the window it is dropped.
func (t *Table) trackRST(r Ref, e *Entry, d Dir, p *packet.Packet, now uint32, to *Timeouts) Outcome {
	switch e.judgeRST(d, p) {
	case rstExact:
		next := transitions[d][evRST][e.State]
		if next != e.State {
			t.settle(r, e, next, now, to)
		}
	case rstInWindow:
		if soon := now + to[Closed]; before(soon, e.Expires) {
			t.setExpires(r, e, soon)
		}
	case rstStranger:
		return DropBadRST
	}
	return Pass
}

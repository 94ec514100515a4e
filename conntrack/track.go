package conntrack

import "github.com/l4fwd/l4fwd/packet"

// Track takes note of packet p, as received, of flow r in direction d: counts
// it, moves the flow's state, windows and deadline, and says whether it may
// pass. scale is the window shift that p announces if it is a SYN, or
// packet.NoScale; pol is what the flow's service asks for. Every packet is
// counted, dropped ones included.
//
// Only what fits the connection moves its state, whatever the policy's Checks;
// they say what becomes of the rest. With a mode that is OneWay all packets are taken for
// the client's. After Reopen nothing has changed but the counters: the caller
// reads what it wants to keep from the Entry, Removes it, Inserts the flow anew
// with a fresh backend, port and SeqDelta, and Tracks the packet again.
func (t *Table) Track(r Ref, d Dir, p *packet.Packet, scale uint8, now uint32, pol *Policy) Outcome {
	e := &t.entries[r]
	if e.Proto == 0 {
		return DropNoFlow
	}
	d &= 1
	e.Packets[d]++
	e.Bytes[d] += uint64(p.End - p.L3)
	switch p.Kind {
	case packet.KindTCP:
		if e.Proto == packet.ProtoTCP {
			return t.trackTCP(r, e, d, p, scale, now, pol)
		}
	case packet.KindUDP:
		if e.Proto == packet.ProtoUDP {
			t.trackUDP(r, e, d, now, &pol.Timeouts)
		}
	}
	// ICMP errors keep nothing alive: anybody on the way can make them. Nor do
	// later fragments: the first one did, as far as its numbers fit.
	return Pass
}

// settle enters a state, counts the flow as half-open no longer once its ends
// proved to exist, and starts the deadline anew.
func (t *Table) settle(r Ref, e *Entry, s State, now uint32, to *Timeouts) {
	e.State = s
	d := to[s]
	if e.Flags&HalfOpen != 0 && t.hdr.halfLen > t.pressure {
		d = min(d, max(d/4, TicksPerSecond))
	}
	t.setExpires(r, e, now+d)
}

// proven takes a flow out of the half-open budget.
func (t *Table) proven(r Ref, e *Entry) {
	if e.Flags&HalfOpen != 0 {
		t.dropHalfOpen(r)
	}
}

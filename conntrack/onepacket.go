package conntrack

import "github.com/l4fwd/l4fwd/packet"

// Flows of one datagram each, for services where every datagram of a client is
// to have a backend of its own though address and port are the same. All of a
// client's are linked by their reply tuples. Its own tuple leads to the latest:
// that is where later fragments of the datagram belong, and ICMP errors about
// its answer.

// answeredTicks is how long such a flow stays when all is answered, for the
// answer's later fragments and for ICMP errors about it.
const answeredTicks = TicksPerSecond

// mayShare reports whether a new flow may take the forward tuple of old.
func (e *Entry) mayShare(old *Entry) bool {
	return e.State == UDPOnePacket && e.Proto == packet.ProtoUDP && old.State == UDPOnePacket
}

// linkedForward reports whether the flow is found by its client's tuple.
func (e *Entry) linkedForward() bool {
	return e.State != UDPOnePacket || e.Flags&replyOnly == 0
}

// passOn leaves the forward tuple fwd, which is that of flow r, to r alone.
func (t *Table) passOn(r Ref, fwd *packet.Tuple, dir *Directory) {
	h := t.entries[r].fwdHash
	t.unlink(h, cand(r, Forward))
	if c := t.search(h, fwd, dir); c != 0 {
		t.unlink(h, c)
		t.entries[c.Ref()].Flags |= replyOnly
	}
	if !t.link(h, cand(r, Forward)) {
		t.entries[r].Flags |= replyOnly // there was room a moment ago
	}
}

// Again makes flow r, in the state UDPOnePacket, that of another datagram of its
// client, whose tuple is fwd: two that went to one server have one reply tuple
// where the server sees the client's port (DNAT).
func (t *Table) Again(r Ref, fwd *packet.Tuple, dir *Directory) {
	e := &t.entries[r]
	if e.linkedForward() || !t.link(e.fwdHash, cand(r, Forward)) {
		return
	}
	e.Flags &^= replyOnly
	t.passOn(r, fwd, dir)
}

// trackOnePacket: each datagram begins the wait anew, and the answer to the last
// of them ends it. ServerNext, which means something to TCP only, counts those that
// are without one: Packets has later fragments in it too.
func (t *Table) trackOnePacket(r Ref, e *Entry, d Dir, now uint32, to *Timeouts) {
	if d == Forward {
		e.ServerNext++
		t.settle(r, e, UDPOnePacket, now, to)
		return
	}
	if e.ServerNext > 0 {
		e.ServerNext--
	}
	if soon := now + answeredTicks; e.ServerNext == 0 && before(soon, e.Expires) {
		t.setExpires(r, e, soon)
	}
}

package conntrack

// A TCP handshake is timed in the flow itself: while it goes on, the upper half of
// Bytes[Reply] is free. The two highest bits say who is waited for, which no count of
// bytes reaches, and the 30 below them since when, in microseconds, so that what takes
// longer than eighteen minutes seems shorter. Whoever calls Track times, from its own
// clock: conntrack's ticks are too long.

const (
	timedServer = 1 << 30 // the SYN has been sent, its SYN-ACK is waited for
	timedClient = 2 << 30 // the SYN-ACK has been sent, its ACK is waited for
	timedHeard  = 3 << 30 // as timedServer, but nobody is to complain any more, see Late
	timedSince  = 1<<30 - 1
)

// timer is the word that times the handshake, 0 if nothing does.
func (e *Entry) timer() uint32 {
	if w := uint32(e.Bytes[Reply] >> 32); w&^timedSince != 0 {
		return w
	}
	return 0
}

func (e *Entry) setTimer(w uint32) {
	e.Bytes[Reply] = uint64(w)<<32 | uint64(uint32(e.Bytes[Reply]))
}

// SYNSent begins to time the handshake of e, if it waits for its SYN-ACK and is not
// timed yet: what counts is the first SYN, and of that it is true. now is in
// microseconds.
func (e *Entry) SYNSent(now uint32) bool {
	if e.State != SynSent || e.timer() != 0 {
		return false
	}
	e.setTimer(timedServer | now&timedSince)
	return true
}

// patience is for how long, in microseconds, a server's SYN-ACK is not late: a little
// less than clients wait before they send a SYN again (RFC 6298 section 2), which may be
// on its way for less long than the first one was. Who sends two at once, to have a
// server that is about to answer complained of, finds it early.
const patience = 900_000

// Late reports whether the server of e, a flow of TCP, has left the SYN without any word
// for longer than it should, once a flow. now is in microseconds.
func (e *Entry) Late(now uint32) bool {
	w := e.timer()
	if e.State != SynSent || w&timedHeard != timedServer || (now-w)&timedSince < patience {
		return false
	}
	e.Heard()
	return true
}

// Heard takes note that the server of e has sent something, whatever becomes of that, or
// need not: it is not Late from now on.
func (e *Entry) Heard() {
	if w := e.timer(); w&timedHeard == timedServer {
		e.setTimer(w | timedHeard)
	}
}

// SYNACKSent is how long the server took for the SYN-ACK that has made the state
// SynRecv, in microseconds, and times the client from now on. It is not ok for a later
// one, or of a flow that is not timed.
func (e *Entry) SYNACKSent(now uint32) (took uint32, ok bool) {
	w := e.timer()
	if e.State != SynRecv || w&timedServer == 0 {
		return 0, false
	}
	e.setTimer(timedClient | now&timedSince)
	return (now - w) & timedSince, true
}

// HandshakeOver ends the timing of e, as whoever calls Track must when a flow of TCP is
// HalfOpen no longer: the bytes that follow need the room. It is how long the client
// took for the ACK, in microseconds, not ok of a flow that is not timed.
func (e *Entry) HandshakeOver(now uint32) (took uint32, ok bool) {
	w := e.timer()
	if w == 0 {
		return 0, false // what is there may be bytes
	}
	e.setTimer(0)
	if w&timedHeard != timedClient {
		return 0, false
	}
	return (now - w) & timedSince, true
}

// ReplyBytes is Bytes[Reply] without what times the handshake in it.
func (e *Entry) ReplyBytes() uint64 {
	if e.timer() != 0 {
		return uint64(uint32(e.Bytes[Reply]))
	}
	return e.Bytes[Reply]
}

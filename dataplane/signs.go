package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// Signs is what new flows of a backend have met with, as one worker has seen it: signs
// of its health that cost no probe. They are counted where a flow begins to be answered,
// or ends without; other packets know nothing of them. Where servers answer past l4fwd
// there are none. Like BackendCount they are carried from snapshot to snapshot.
//
// A client can have none of the first two failures counted of a server that is well: a SYN
// is as good from anybody if it is one that servers answer, see answerable, so what
// clients do or leave undone later says nothing, and neither does a flow that makes room
// for another one. Reset it can: a server may have good reasons to reset who talks
// nonsense.
type Signs struct {
	// Answered flows: of TCP by SYN-ACK, of UDP by a first datagram, with OnePacket by
	// any.
	Answered uint64
	// Unanswered flows of TCP: their SYN came again, or they were given up, and in most
	// of a second nothing had come from the server; or it was not to be reached at all,
	// having no neighbour or route.
	Unanswered uint64
	// Refused flows of TCP: a RST answered the SYN. Of UDP, each time that the server
	// itself says that its port is unreachable (RFC 1122 section 3.2.2.1, RFC 4443 section
	// 3.1).
	Refused uint64
	// Reset flows of TCP, which are Answered, too: by the server, which had sent no data.
	Reset uint64
}

// Add sums o into s.
func (s *Signs) Add(o *Signs) {
	s.Answered += o.Answered
	s.Unanswered += o.Unanswered
	s.Refused += o.Refused
	s.Reset += o.Reset
}

// leastTTL is what is left of the TTL of a SYN that comes to servers some routers away:
// clients begin with 64 at least.
const leastTTL = 16

// answerable reports whether a server that is well answers p, a client's first SYN. Who
// wants a server complained of sends what hosts drop without a word: wrong checksums,
// which nobody here looks at and which stay wrong, a TTL that ends on the way, and
// signatures that nobody has agreed on (RFC 2385, RFC 5925 section 7.3). A SYN with data
// may be too long for the way. Fragments of SYNs do not come so far.
func answerable(p *packet.Packet, frame []byte) bool {
	const ecn = packet.ECE | packet.CWR // RFC 3168 section 6.1.1
	if p.TCPFlags&^ecn != packet.SYN || p.Payload != p.End || p.TTL(frame) < leastTTL {
		return false
	}
	b := frame[:p.Payload]
	for at := int(p.L4) + packet.TCPMinLen; ; {
		kind, n := packet.OptionAt(b, at)
		if n <= 0 {
			break
		}
		if kind == packet.OptMD5 || kind == packet.OptAO {
			return false
		}
		at += n
	}
	return packet.VerifyIPv4(frame, p) && packet.VerifyL4(frame, p)
}

// Signs is this worker's part by backend id; like BackendCounts.
func (w *Worker) Signs() []Signs { return w.here.signs }

// unanswered counts flow r, which is given up, if that is for want of an answer.
func (w *Worker) unanswered(r conntrack.Ref) {
	e := w.table.Entry(r)
	if e.Proto != packet.ProtoTCP || e.Mode.OneWay() {
		return
	}
	if e.Late(w.micros()) || e.State == conntrack.None && w.hopTo(e.Backend).State != route.Resolved {
		w.here.signs[e.Backend].Unanswered++
	}
}

// rejected counts a RST of e's server, before which the state was was.
func (w *Worker) rejected(e *conntrack.Entry, was conntrack.State) {
	s := &w.here.signs[e.Backend]
	switch {
	case e.State != conntrack.Closed: // not believed
	case was == conntrack.SynSent:
		s.Refused++
	case (was == conntrack.SynRecv || was == conntrack.Established) &&
		e.Flags&conntrack.HasServerISN != 0 && e.Win[conntrack.Reply].End == e.ServerNext:
		s.Reset++
	}
}

// complained counts p, an ICMP error about a datagram of e's client, if it says that the
// port is closed, and the server itself says so.
func (w *Worker) complained(frame []byte, p *packet.Packet, e *conntrack.Entry) {
	const closed4, closed6 = 3, 4 // port unreachable
	what := [2]byte{packet.ICMPUnreachable, closed4}
	if p.V6 {
		what = [2]byte{packet.ICMPv6Unreachable, closed6}
	}
	from, _ := p.OuterAddrs(frame)
	if [2]byte(frame[p.L4:]) == what && from == w.snap.Directory.Backends[e.Backend].Addr {
		w.here.signs[e.Backend].Refused++
	}
}

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// answerTime is how long a flow that a datagram opened keeps its port against newer
// ones. An answer that comes later, and meets the port's next user, goes to a client
// that it is not for.
const answerTime = 2 * conntrack.TicksPerSecond

// fromClient is what becomes of row i, a packet from the client of flow r.
func (w *Worker) fromClient(i int, r conntrack.Ref) Verdict {
	e := w.table.Entry(r)
	if e.State == conntrack.UDPOnePacket {
		return w.openAnother(i, r)
	}
	if e.Mode == conntrack.DirectReturn {
		return w.direct(i, r)
	}
	return w.forward(i, r)
}

// openAnother opens a flow of its own for row i, a datagram of a client whose last
// one had flow r, unless the service does not want that any more.
func (w *Worker) openAnother(i int, r conntrack.Ref) Verdict {
	e := w.table.Entry(r)
	id, mode := e.Service, e.Mode
	if svc := &w.snap.Services[id]; svc.Set == nil || !svc.OnePacket {
		if mode == conntrack.DirectReturn {
			return w.direct(i, r)
		}
		return w.forward(i, r)
	}
	if mode.OneWay() {
		w.close(r, EndAnother) // it has no answer to wait for
	}
	return w.begin(i, int32(id))
}

// sharedFlow is the flow of one packet towards backend whose reply tuple rev is in
// use, made row i's as well, or 0 if the tuple is some other flow's.
func (w *Worker) sharedFlow(rev *packet.Tuple, i int, id, backend uint32) conntrack.Ref {
	r, d, _ := w.table.Lookup(rev, &w.snap.Directory)
	e := w.table.Entry(r)
	if r == 0 || d != conntrack.Reply || e.State != conntrack.UDPOnePacket || e.Service != id || e.Backend != backend {
		return 0
	}
	w.table.Again(r, &w.b.pkt[i].Tuple, &w.snap.Directory)
	return r
}

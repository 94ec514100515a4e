package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// BackendDown is what becomes of a flow whose backend is gone: its service has it no
// more, or BackendSpec.End is set. One of weight 0 is not gone but drained. Flows of a
// service that is gone itself are reset. Either takes effect with the flow's next packet.
type BackendDown uint8

// The policies.
const (
	// BackendDownReset resets both ends and forgets the flow. One of UDP is
	// forgotten.
	BackendDownReset BackendDown = iota
	// BackendDownDrop drops the flow's packets, in case the backend comes back.
	BackendDownDrop
	// BackendDownReschedule forgets the flow: the client's packet is one without a flow,
	// so that a datagram goes to another backend at once, and a TCP segment is what the
	// service makes of those. Replies go on until then.
	BackendDownReschedule
)

// serving is whether each backend, by id, is one of its service's whose flows may go
// on.
func (s *Snapshot) serving() []bool {
	out := make([]bool, len(s.Directory.Backends))
	for i := range s.Services {
		if s.Services[i].Set == nil && !s.Services[i].Draining {
			continue
		}
		for _, id := range s.Services[i].Backends {
			out[id] = true
		}
		for _, id := range s.Services[i].ended {
			out[id] = false
		}
	}
	return out
}

// orphaned is what becomes of row i, a packet of flow r in direction d, whose backend
// is gone.
func (w *Worker) orphaned(i int, r conntrack.Ref, d conntrack.Dir) Verdict {
	p, e := &w.b.pkt[i], w.table.Entry(r)
	policy := w.snap.Services[e.Service].OnBackendDown
	if d == conntrack.Forward && p.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN && (policy != BackendDownDrop || e.State == conntrack.TimeWait || e.State == conntrack.Closed) {
		return w.reopen(i, r) // a client that begins anew
	}
	switch policy {
	case BackendDownReset:
		// Its time is over: who expires it tells both ends; of one whose answers are
		// not seen only the server, and the client by what it has sent just now.
		w.table.SetExpires(r, w.tick)
		if e.Mode.OneWay() && p.Kind == packet.KindTCP {
			w.resetFor(i, &w.resets, DropBackendGone)
		}
	case BackendDownReschedule:
		id := int32(e.Service)
		w.close(r, EndBackendGone)
		if p.Kind == packet.KindFragment {
			return DropNoFlow // not a first one: it has no header to begin with
		}
		if w.snap.Services[id].Set == nil && p.Kind != packet.KindTCP {
			return DropNoService // it drains itself: there is no other backend to begin with
		}
		return w.begin(i, id)
	}
	return DropBackendGone
}

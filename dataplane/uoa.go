package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// tellUOA puts UOA into row i, a client's datagram of flow e as it is to leave by hop,
// or sends it ahead in a datagram of its own: where its service wants that, where it does
// not fit, as in one that is to leave in fragments, and where the datagram is a fragment.
// Whatever comes of it, the client's goes on.
func (w *Worker) tellUOA(i int, e *conntrack.Entry, svc *Service, hop *route.Hop) {
	if !w.frags.first {
		chunk, off := w.chunk(i)
		if off, n, ok := nat.InsertUOA(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], e, svc.UOA, int(hop.MTU)); ok {
			w.moved(i, off, n)
			w.count.UOA[nat.UOAInserted]++
			return
		}
	}
	w.count.UOA[w.sendUOA(e, svc.UOA, hop)]++
}

// sendUOA queues a datagram of our own with UOA for the server of flow e.
func (w *Worker) sendUOA(e *conntrack.Entry, form nat.UOAForm, hop *route.Hop) nat.UOAResult {
	q := w.queueOf(uint8(hop.Port))
	if q == nil || len(w.pool.free) == 0 {
		return nat.UOAFailed
	}
	at := w.pool.take(1)[0]
	off, n, ok := nat.BuildUOA(w.umem[at:at+w.frameSize], e, &w.snap.Directory, form)
	if !ok {
		w.pool.put(at)
		return nat.UOAFailed
	}
	ip := at + uint64(off) + packet.EthLen
	h := uint64(hop.HeaderLen)
	hop.Put(w.umem[ip-h:ip-h+route.VLANLen:ip-h+route.VLANLen], e.Flags&conntrack.V6Server != 0)
	if w.tap != nil {
		w.tapPiece(at, tapOwnRow)
	}
	w.enqueue(q, ip-h, h+uint64(n-packet.EthLen), own)
	return nat.UOASent
}

// unquoteUOA sees to UOA in what p, an ICMP error about flow e, is about: by how much that
// has made it longer, and whether the error goes on.
func unquoteUOA(frame []byte, p *packet.Packet, e *conntrack.Entry) (room int, ok bool) {
	if !nat.QuotesUOAProtocol(frame, p) {
		return nat.UOAQuoted(frame, p), true
	}
	room = nat.UnquoteUOA(frame, p, e)
	return room, room != 0
}

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// pieceRoom is what lies before the IP header of a fragment of our own making in
// its frame: room for any Ethernet header and a tunnel's. With it a frame has room
// for whatever another one held, since that began behind 256 bytes of headroom.
const pieceRoom = 128

var _ [pieceRoom - packet.VLANEthLen - nat.MaxOverhead]byte

// divides reports whether row i of flow e, too large for its way out, may go there
// in fragments, and sees to their identification.
func (w *Worker) divides(i int, e *conntrack.Entry, dir conntrack.Dir) bool {
	p, frame := &w.b.pkt[i], w.frame(i)
	if !nat.Divisible(frame, p, e) {
		return false
	}
	if w.frags.first || p.Kind == packet.KindFragment {
		return true // its keeper has given it one
	}
	w.b.newID[i] = w.nextID()
	if !p.V6 && (dir == conntrack.Reply || e.Mode == conntrack.FullNAT) {
		nat.RenewID(frame, p, w.b.newID[i]) // as in fragment
	}
	return true
}

// sendSplit is send for a row that is to leave in fragments; from is as for
// nat.NewSplit. Each is built in a frame of its own. The row counts as done if the
// first is sent.
func (w *Worker) sendSplit(i int, hop *route.Hop, from packet.Fragment, done Verdict) Verdict {
	return w.sendPieces(i, hop, nil, from, done)
}

// sendPieces is sendSplit with each fragment in a crate of its own, if in is not nil.
func (w *Worker) sendPieces(i int, hop *route.Hop, in *crate, from packet.Fragment, done Verdict) Verdict {
	p, frame := &w.b.pkt[i], w.frame(i)
	q := w.queueOf(uint8(hop.Port))
	if q == nil {
		return DropPortDown
	}
	mtu := int(hop.MTU)
	if p.V6 && p.IPLen()+nat.FragmentLen > mtu {
		mtu = min(mtu, nat.MaxPiece6)
	}
	v6, more := p.V6, 0
	if in != nil {
		v6, more = !in.outer.Src.Is4(), in.size
	}
	s, n := nat.NewSplit(frame, p, mtu-more, from)
	switch {
	case n == 0:
		return DropTooBig
	case n > len(w.pool.free):
		return DropNoFrame
	}
	h := uint64(hop.HeaderLen)
	for k := range n {
		// One at a time: enqueue may put frames back.
		at := w.pool.take(1)[0] + pieceRoom
		chunk := w.umem[at-pieceRoom : at-pieceRoom+w.frameSize]
		size := s.Put(chunk[pieceRoom:], frame, k) + more
		if in != nil {
			in.outer.ID = uint16(w.nextID())
			in.tunnel.Encapsulate(chunk, pieceRoom, pieceRoom+size-more, nil, &in.outer)
			at -= uint64(more)
		}
		hop.Put(w.umem[at-h:at-h+route.VLANLen:at-h+route.VLANLen], v6)
		v := own
		if k == 0 {
			v = done
		}
		if w.tap != nil {
			w.tapPiece(at, i)
		}
		w.enqueue(q, at-h, h+uint64(size), v)
	}
	w.release(w.b.desc[i].Addr)
	w.b.desc[i].Addr = gone
	w.count.Split++
	return done
}

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// What a worker sends of its own accord is limited, so that nobody can make it
// flood a third party or spend its time on answers.
const (
	errorsPerSecond = 1000
	resetsPerSecond = 10000
	refusalBurst    = 100
	// RSTs about flows that idled out come in waves, a timer's tick at a time.
	farewellsPerSecond = 100000
	farewellBurst      = 4096
)

// gone is the address of a row whose frame is on its way as something else.
const gone = ^uint64(0)

// chunk is the whole memory of row i's frame, and where in it the frame begins.
func (w *Worker) chunk(i int) (chunk []byte, off int) {
	at := w.b.desc[i].Addr
	start := at &^ (w.frameSize - 1)
	return w.umem[start : start+w.frameSize : start+w.frameSize], int(at - start)
}

// spent reports whether p may go no further: its TTL ends here. Where l4fwd is no
// hop nothing but a TTL of 0 is spent, which no host sends.
func (w *Worker) spent(p *packet.Packet, frame []byte) bool {
	ttl := p.TTL(frame)
	return ttl <= 1 && (ttl == 0 || !w.snap.KeepTTL)
}

// ttlExceeded tells row i's sender that its TTL ran out here, which makes a hop
// of traceroute unless it wants to be none; src is the address of ours it was sent
// to.
func (w *Worker) ttlExceeded(i int, src packet.Addr) Verdict {
	if !w.snap.KeepTTL && w.errors.Has(w.nanos) {
		chunk, off := w.chunk(i)
		if off, n, ok := nat.TimeExceeded(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], src); ok {
			w.answerWith(i, off, n, &w.errors, DropTTL)
		}
	}
	return DropTTL
}

// tooBig tells row i's sender how large a packet may be (RFC 1191, RFC 8201).
func (w *Worker) tooBig(i int, src packet.Addr, mtu int) Verdict {
	if w.tooBigs.Has(w.nanos) {
		chunk, off := w.chunk(i)
		if off, n, ok := nat.TooBig(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], src, mtu); ok {
			w.answerWith(i, off, n, &w.tooBigs, DropTooBig)
		}
	}
	return DropTooBig
}

// stray is what becomes of row i, a TCP segment to service svc that belongs to
// no flow and may not open one.
func (w *Worker) stray(i int, svc *Service) Verdict {
	if svc.ResetStray {
		w.resetFor(i, &w.resets, DropNoFlow)
	}
	return DropNoFlow
}

// strayReply is what becomes of row i, a packet to a local address that belongs
// to no flow. A real server's goes by what its service says of segments without
// a flow: after a restart of l4fwd it would else send again and again to nobody.
func (w *Worker) strayReply(i int) Verdict {
	p := &w.b.pkt[i]
	if p.Kind == packet.KindTCP && w.snap.resetting.find(p.Src, p.SrcPort, p.Proto) >= 0 {
		w.resetFor(i, &w.serverResets, DropNoFlow)
	}
	return DropNoFlow
}

// resetFor answers row i, a TCP segment dropped as v, by a RST while limit has one to
// give.
func (w *Worker) resetFor(i int, limit *nat.Bucket, v Verdict) {
	if limit.Has(w.nanos) {
		chunk, off := w.chunk(i)
		if off, n, ok := nat.ResetFor(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i]); ok {
			w.answerWith(i, off, n, limit, v)
		}
	}
}

// answerWith sends what row i, dropped as v, has been turned into back to its
// sender, if there is a way; the row's frame is then gone. The row still counts
// as v. A token of limit goes for the answer, and for asking for the neighbour.
func (w *Worker) answerWith(i, off, n int, limit *nat.Bucket, v Verdict) {
	w.moved(i, off, n)
	dst := w.b.pkt[i].Dst
	id := w.routes.Lookup(dst)
	hop := w.routes.Hop(id)
	switch {
	case hop.State != route.Resolved:
		if w.noHop(id, dst) == DropNeighbour { // there will be a way the next time
			limit.Take(w.nanos)
		}
	case w.send(i, hop, v) == v:
		limit.Take(w.nanos)
		w.count.Refusals++
		w.b.desc[i].Addr = gone
	}
}

// giveUp resets both ends of a TCP flow that has idled out: they hold it to be
// open, and would find out only when one of them has something to say. In a storm
// not all of them hear of it. Outside of a burst, whose rows it borrows.
func (w *Worker) giveUp(r conntrack.Ref) {
	e := w.table.Entry(r)
	if !nat.Resettable(e) {
		return
	}
	header := w.proxySize(e, &w.snap.Services[e.Service])
	for _, d := range [...]conntrack.Dir{conntrack.Forward, conntrack.Reply} {
		free := w.pool.take(1)
		if len(free) == 0 {
			return
		}
		at := free[0]
		off, n, ok := nat.BuildReset(w.umem[at:at+w.frameSize], e, d, &w.snap.Directory, header)
		w.b.desc[0].Addr, w.b.desc[0].Len = at+uint64(off), uint32(n)
		if !ok || packet.Parse(w.frame(0), &w.b.pkt[0]) != packet.ErrNone {
			w.pool.put(at)
			continue
		}
		if !w.farewells.Has(w.nanos) || w.sendFarewell(e, d) != own {
			w.pool.put(at)
			continue
		}
		w.farewells.Take(w.nanos)
		w.count.Refusals++
	}
}

// sendFarewell sends row 0, a RST of flow e's in direction d, on its way.
func (w *Worker) sendFarewell(e *conntrack.Entry, d conntrack.Dir) Verdict {
	if e.Mode == conntrack.DirectReturn {
		svc := &w.snap.Services[e.Service]
		hop, v := w.directHop(e, svc)
		if hop == nil {
			return v
		}
		return w.sendDirect(0, e, svc, hop, false, own)
	}
	hop, v := w.serverHop(e.Backend)
	if d == conntrack.Reply {
		hop, v = w.clientHop(e)
	}
	if hop == nil {
		return v
	}
	return w.send(0, hop, own)
}

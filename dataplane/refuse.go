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

// ttlExceeded tells row i's sender that its TTL ran out here, which makes a hop
// of traceroute; src is the address of ours it was sent to.
func (w *Worker) ttlExceeded(i int, src packet.Addr) Verdict {
	if w.errors.Allow(w.nanos) {
		chunk, off := w.chunk(i)
		off, n, ok := nat.TimeExceeded(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], src)
		w.answerWith(i, off, n, ok, DropTTL)
	}
	return DropTTL
}

// tooBig tells row i's sender how large a packet may be (RFC 1191, RFC 8201).
func (w *Worker) tooBig(i int, src packet.Addr, mtu int) Verdict {
	if w.tooBigs.Allow(w.nanos) {
		chunk, off := w.chunk(i)
		off, n, ok := nat.TooBig(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], src, mtu)
		w.answerWith(i, off, n, ok, DropTooBig)
	}
	return DropTooBig
}

// stray is what becomes of row i, a TCP segment to service svc that belongs to
// no flow and may not open one.
func (w *Worker) stray(i int, svc *Service) Verdict {
	if svc.ResetStray && w.resets.Allow(w.nanos) {
		chunk, off := w.chunk(i)
		off, n, ok := nat.ResetFor(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i])
		w.answerWith(i, off, n, ok, DropNoFlow)
	}
	return DropNoFlow
}

// answerWith sends what row i, dropped as v, has been turned into back to its
// sender, if it was turned into something and there is a way; the row's frame
// is then gone. The row still counts as v.
func (w *Worker) answerWith(i, off, n int, ok bool, v Verdict) {
	if !ok {
		return
	}
	w.moved(i, off, n)
	dst := w.b.pkt[i].Dst
	id := w.routes.Lookup(dst)
	hop := w.routes.Hop(id)
	switch {
	case hop.State != route.Resolved:
		w.noHop(id, dst) // so that there is a way the next time
	case w.send(i, hop, v) == v:
		w.count.Refusals++
		w.b.desc[i].Addr = gone
	}
}

// giveUp resets both ends of a TCP flow that has idled out: they hold it to be
// open, and would find out only when one of them has something to say. In a storm
// not all of them hear of it. Outside of a burst, whose rows it borrows.
func (w *Worker) giveUp(r conntrack.Ref) {
	e := w.table.Entry(r)
	for _, d := range [...]conntrack.Dir{conntrack.Forward, conntrack.Reply} {
		free := w.pool.take(1)
		if len(free) == 0 {
			return
		}
		at := free[0]
		off, n, ok := nat.BuildReset(w.umem[at:at+w.frameSize], e, d, &w.snap.Directory)
		w.b.desc[0].Addr, w.b.desc[0].Len = at+uint64(off), uint32(n)
		if !ok || packet.Parse(w.frame(0), &w.b.pkt[0]) != packet.ErrNone {
			w.pool.put(at)
			continue
		}
		hop, _ := w.serverHop(e.Backend)
		if d == conntrack.Reply {
			hop, _ = w.clientHop(e)
		}
		if hop == nil || !w.farewells.Allow(w.nanos) || w.send(0, hop, own) != own {
			w.pool.put(at)
			continue
		}
		w.count.Refusals++
	}
}

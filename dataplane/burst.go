package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// run takes rows [0,n) of the burst through the stages. handed is set for
// packets from another worker: they are at their owner's and go no further, save
// fragments that come to the keeper of their datagram first.
func (w *Worker) run(n int, handed bool) {
	flows := w.parse(n, handed)
	w.mark(StageParse)
	w.find(flows)
	w.mark(StageLookup)
	w.act(flows, handed)
	w.mark(StageForward)
	if len(w.frags.waited) > 0 {
		w.resume()
	}
	w.publishHanded()
}

// prefetchStep is how many buckets are asked for at a time, while packets are
// parsed: by the time all are, the first have come. A power of two.
const prefetchStep = 8

// parse reads the headers of n rows and finishes those that belong to no flow
// by their kind, and those that are easily seen to be another worker's. It returns
// how many are left, in b.look, and asks the processor for their buckets.
func (w *Worker) parse(n int, handed bool) (flows int) {
	b := &w.b
	sort := !handed && w.owners.byPort()
	for i := range min(n, BurstSize) {
		d, p := &b.desc[i], &b.pkt[i]
		packet.Parse(w.umem[d.Addr:d.Addr+uint64(d.Len)], p) // what it returns is p.Err
		if (p.Kind < packet.KindTCP || p.Kind > packet.KindUDP) && !w.special(i, handed) {
			continue
		}
		if sort && w.passOn(i) {
			continue
		}
		b.look.Packet[flows] = uint8(i)
		b.look.Hash[flows] = w.table.Hash(&p.Tuple)
		if flows++; flows%prefetchStep == 0 {
			w.table.PrefetchBuckets(b.look.Hash[flows-prefetchStep : flows])
		}
	}
	w.table.PrefetchBuckets(b.look.Hash[flows&^(prefetchStep-1) : flows])
	return flows
}

// special does for row i, which is not simply TCP or UDP, what parse does, and
// reports whether it belongs to a flow.
func (w *Worker) special(i int, handed bool) bool {
	p := &w.b.pkt[i]
	if p.Err != packet.ErrNone {
		w.finish(i, malformed(p.Err))
		return false
	}
	switch p.Kind {
	case packet.KindICMPError:
		return true
	case packet.KindFragment:
		return w.place(i, handed)
	}
	w.finish(i, w.answer(i))
	return false
}

// find looks up the flows of the first n of b.look.
func (w *Worker) find(n int) {
	b := &w.b
	w.table.FindAll(&b.look, n, &b.pkt, &w.snap.Directory)
	b.changed = false
	if w.crowded() {
		w.fetchRefused(n)
	}
}

// act does with the first n of b.look what their flows ask for.
func (w *Worker) act(n int, handed bool) {
	b := &w.b
	for k := range n {
		i := int(b.look.Packet[k])
		p := &b.pkt[i]
		if b.changed {
			// A flow opened earlier in this very burst must be found too.
			b.look.Found[k] = w.table.Find(b.look.Found[k], b.look.Hash[k], &p.Tuple, &w.snap.Directory)
		}
		c := b.look.Found[k]
		r, dir := c.Ref(), c.Dir()
		if r != 0 && p.Kind <= packet.KindUDP {
			switch v := w.plain(i, r, dir); v {
			case Forwarded, Replied:
				w.count.Verdicts[v]++
				continue
			case undecided:
			default:
				w.finish(i, v)
				continue
			}
		}
		switch {
		case p.Kind > packet.KindUDP:
			w.finish(i, w.aside(i, r, dir, handed))
		case r == 0:
			w.finish(i, w.miss(i, handed))
		case dir == conntrack.Forward:
			w.finish(i, w.fromClient(i, r))
		default:
			w.finish(i, w.reply(i, r))
		}
	}
}

// finish counts a row's verdict; a dropped packet's frame goes home.
func (w *Worker) finish(i int, v Verdict) {
	w.count.Verdicts[v]++
	if v.IsDrop() && w.b.desc[i].Addr != gone {
		w.release(w.b.desc[i].Addr)
	}
}

// frame is row i's bytes, from its Ethernet header to the end of the buffer
// the NIC filled.
func (w *Worker) frame(i int) []byte {
	d := &w.b.desc[i]
	return w.umem[d.Addr : d.Addr+uint64(d.Len)]
}

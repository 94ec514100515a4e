package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// run takes rows [0,n) of the burst through the stages. handed is set for
// packets from another worker: they are at their owner's and go no further.
func (w *Worker) run(n int, handed bool) {
	b := &w.b
	flows := 0
	for i := range n {
		d, p := &b.desc[i], &b.pkt[i]
		if err := packet.Parse(w.umem[d.Addr:d.Addr+uint64(d.Len)], p); err != packet.ErrNone {
			w.finish(i, malformed(err))
			continue
		}
		switch p.Kind {
		case packet.KindTCP, packet.KindUDP, packet.KindICMPError:
			b.flow[flows] = uint8(i)
			b.hash[flows] = w.table.Hash(&p.Tuple)
			flows++
		default:
			w.finish(i, w.answer(i))
		}
	}
	w.table.PrefetchBuckets(b.hash[:flows])
	w.table.Candidates(b.hash[:flows], b.cand[:flows])
	for k := range flows {
		i := int(b.flow[k])
		p := &b.pkt[i]
		// A flow opened earlier in this very burst is found too: without a
		// candidate Find looks again.
		r, dir, ok := w.table.Find(b.cand[k], b.hash[k], &p.Tuple, &w.snap.Directory)
		switch {
		case !ok:
			w.finish(i, w.miss(i, handed))
		case p.Kind == packet.KindICMPError:
			w.finish(i, w.relayError(i, r, dir))
		case dir == conntrack.Forward:
			w.finish(i, w.forward(i, r))
		default:
			w.finish(i, w.reply(i, r))
		}
	}
}

// finish counts a row's verdict; a dropped packet's frame goes home.
func (w *Worker) finish(i int, v Verdict) {
	w.count.Verdicts[v]++
	if v.IsDrop() {
		w.release(w.b.desc[i].Addr)
	}
}

// frame is row i's bytes, from its Ethernet header to the end of the buffer
// the NIC filled.
func (w *Worker) frame(i int) []byte {
	d := &w.b.desc[i]
	return w.umem[d.Addr : d.Addr+uint64(d.Len)]
}

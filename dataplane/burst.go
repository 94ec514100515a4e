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
}

// parse reads the headers of n rows and finishes those that belong to no flow
// by their kind. It returns how many are left, in b.flow and b.hash.
func (w *Worker) parse(n int, handed bool) (flows int) {
	b := &w.b
	for i := range n {
		d, p := &b.desc[i], &b.pkt[i]
		if err := packet.Parse(w.umem[d.Addr:d.Addr+uint64(d.Len)], p); err != packet.ErrNone {
			w.finish(i, malformed(err))
			continue
		}
		switch p.Kind {
		case packet.KindTCP, packet.KindUDP, packet.KindICMPError:
		case packet.KindFragment:
			if !w.place(i, handed) {
				continue
			}
		default:
			w.finish(i, w.answer(i))
			continue
		}
		b.flow[flows] = uint8(i)
		b.hash[flows] = w.table.Hash(&p.Tuple)
		flows++
	}
	return flows
}

// find looks up the flows of the first n of b.flow.
func (w *Worker) find(n int) {
	b := &w.b
	w.table.PrefetchBuckets(b.hash[:n])
	w.table.Candidates(b.hash[:n], b.cand[:n])
	for k := range n {
		b.ref[k], b.dir[k], _ = w.table.Find(b.cand[k], b.hash[k], &b.pkt[b.flow[k]].Tuple, &w.snap.Directory)
	}
	b.changed = false
	if w.crowded() {
		w.fetchRefused(n)
	}
}

// act does with the first n of b.flow what their flows ask for.
func (w *Worker) act(n int, handed bool) {
	b := &w.b
	for k := range n {
		i := int(b.flow[k])
		p := &b.pkt[i]
		if b.changed {
			// A flow opened earlier in this very burst must be found too.
			b.ref[k], b.dir[k], _ = w.table.Find(b.cand[k], b.hash[k], &p.Tuple, &w.snap.Directory)
		}
		r := b.ref[k]
		if r != 0 && p.Kind <= packet.KindUDP {
			if v := w.plain(i, r, b.dir[k]); v != undecided {
				w.finish(i, v)
				continue
			}
		}
		switch {
		case p.Kind > packet.KindUDP:
			w.finish(i, w.aside(i, r, b.dir[k], handed))
		case r == 0:
			w.finish(i, w.miss(i, handed))
		case b.dir[k] == conntrack.Forward:
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

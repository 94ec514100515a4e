package dataplane

import "math/bits"

// Workers hand over packets, and frames that go home, by rings, see mesh. What a
// burst has for another worker is put into its ring one by one and published once,
// with one store, when the burst is done.

// maxWorkers is what a packed descriptor, a frame's home and the set below are
// made for.
const maxWorkers = 256

// workerSet is a set of workers, by number.
type workerSet [maxWorkers / 64]uint64

func (s *workerSet) add(id int) { s[uint8(id)/64] |= 1 << (uint(id) % 64) }

// handOver gives row i's frame to its flow's owner.
func (w *Worker) handOver(i, owner int) Verdict {
	if !w.outbox[owner].put(packDesc(&w.b.desc[i], w.b.nic[i])) {
		return DropHandoffFull
	}
	w.handed.add(owner)
	return HandedOver
}

// publishHanded lets other workers see the packets that handOver has put, and wakes
// those that sleep.
func (w *Worker) publishHanded() {
	for k, set := range w.handed {
		if set == 0 {
			continue
		}
		w.handed[k] = 0
		for ; set != 0; set &= set - 1 {
			id := 64*k + bits.TrailingZeros64(set)
			w.outbox[id].publish()
			w.wake(id)
		}
	}
}

// publishStrays lets other workers see the frames that release has sent home.
func (w *Worker) publishStrays() {
	for k, set := range w.astray {
		if set == 0 {
			continue
		}
		w.astray[k] = 0
		for ; set != 0; set &= set - 1 {
			w.homeward[64*k+bits.TrailingZeros64(set)].publish()
		}
	}
}

// prefetchHanded asks for the headers of the packets that wait in r, which another
// core has in its cache: they are on their way while this worker's own are served.
func (w *Worker) prefetchHanded(r *spsc) {
	first, rest := r.look(BurstSize)
	prefetchFrames(w.umem, first)
	prefetchFrames(w.umem, rest)
}

// adopt puts packets that other workers have handed over into free rows and returns
// which. It goes on with the worker after the one that took the last row, or one that
// hands over more than can be served would leave the others nothing.
func (w *Worker) adopt(free rowSet) (handed rowSet) {
	all := free
	for range w.inbox {
		if free == 0 {
			break
		}
		r := w.inbox[w.turn]
		if w.turn++; w.turn >= len(w.inbox) {
			w.turn = 0
		}
		n := r.pop(w.strays[:bits.OnesCount64(uint64(free))])
		for _, v := range w.strays[:n] {
			i := free.first()
			w.b.desc[i], w.b.nic[i] = unpackDesc(v)
			if w.b.nic[i]&asks != 0 {
				v := w.advise(i)
				if w.tap != nil && v != HandedOver {
					w.tapAlone(i, v)
				}
				w.finish(i, v)
				continue
			}
			free &= free - 1
		}
		w.count.Adopted += uint64(n)
	}
	return all &^ free
}

// receiveHanded takes through the stages what other workers have handed over and
// found no room in this round's bursts: if there were none, now, else what has waited
// for two rounds.
func (w *Worker) receiveHanded(bursts bool) {
	for _, r := range w.inbox {
		if late := r.overdue(); r.waits() && (late || !bursts) {
			w.run(0)
		}
	}
}

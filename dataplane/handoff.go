package dataplane

import (
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// Workers hand over packets by rings, see mesh. What a burst has for another worker is
// put into its ring one by one and published once, with one store, when the burst is done.

// maxWorkers is what the set below is made for, and leaving.
const maxWorkers = 256

// workerSet is a set of workers, by number.
type workerSet [maxWorkers / 64]uint64

func (s *workerSet) add(id int) { s[uint8(id)/64] |= 1 << (uint(id) % 64) }

// handOver gives row i's frame to its flow's owner.
func (w *Worker) handOver(i, owner int) Verdict { return w.handGlanced(i, owner, 0, 0) }

// handGlanced is handOver with what a glance has found, so that the owner does not have
// to wait for the frame to look its flow up.
func (w *Worker) handGlanced(i, owner int, hash uint32, ip uint64) Verdict {
	row := uint(i) % BurstSize
	d := &w.b.desc[row]
	v := packDesc(d, w.b.nic[row])
	switch ip {
	case d.Addr + packet.EthLen:
	case d.Addr + packet.EthLen | isV6:
		v |= glancedV6
	default: // behind a tag, or not glanced at
		hash = 0
	}
	if !w.outbox[owner].put(v, hash) {
		return DropHandoffFull
	}
	w.handed.add(owner)
	return HandedOver
}

// handClient hands the packet at place k of b.look, which has had a glance, to the owner of its
// flow, which is not here, if it is a client's; where owners follow from the client's address.
// It does what miss would, without all of the packet being read for that. undecided means
// that it has changed nothing.
func (w *Worker) handClient(k int) Verdict {
	b := &w.b
	at := uint(k) % BurstSize
	i, ip := int(b.look.Packet[at]%BurstSize), b.ip[at]
	if b.look.Found[at] != 0 || !w.owners.byPort() || b.handed.has(i) {
		return undecided
	}
	h, six := headersIn(w.umem, ip&^isV6), ip >= isV6
	to, toPort := h.destination(six)
	if w.snap.names.find(to, toPort, h.proto(six)) < 0 {
		return undecided
	}
	owner := w.owners.client(h.source(six))
	if owner == w.id {
		return undecided
	}
	return w.handGlanced(i, owner, b.look.Hash[at], ip)
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
			w.owed[id] -= w.outbox[id].publish()
			w.wake(id)
		}
	}
}

// prefetchHanded asks for the headers of the packets that wait in r, which another
// core has in its cache: they are on their way while this worker's own are served.
func (w *Worker) prefetchHanded(r *packetRing) {
	first, rest := r.look(BurstSize)
	prefetchFrames(w.umem, first)
	prefetchFrames(w.umem, rest)
}

// adopt puts packets that other workers have handed over into free rows and returns
// which, and the rows into the places of look from flows on, with what others have found
// by a glance, or with no ip, for parseHanded. It goes on with the worker after the one
// that took the last row, or one that hands over more than can be served would leave the
// others nothing.
func (w *Worker) adopt(free rowSet, flows int) (handed rowSet) {
	b, all := &w.b, free
	for range w.inbox {
		if free == 0 {
			break
		}
		r, from := w.inbox[w.turn], w.peer(w.turn)
		if w.turn++; w.turn >= len(w.inbox) {
			w.turn = 0
		}
		n := r.popHashed(w.strays[:free.len()], w.hashes[:])
		for at, v := range w.strays[:n] {
			i := free.first()
			d, nic := unpackDesc(v)
			b.desc[i], b.nic[i] = d, nic
			if nic&asks != 0 {
				v := w.advise(i)
				if w.tap != nil && v != HandedOver {
					w.tapAlone(i, v)
				}
				w.finish(i, v)
				continue
			}
			hash, k := w.hashes[uint(at)%BurstSize], uint(flows)%BurstSize
			b.look.Packet[k], b.look.Hash[k], b.ip[k] = uint8(i), hash, 0
			if hash != 0 {
				b.ip[k] = d.Addr + packet.EthLen | v&glancedV6<<8
			}
			flows++
			free &= free - 1
		}
		w.owed[from] += n
		w.count.Adopted += uint64(n)
	}
	return all &^ free
}

// parseHanded is parse for the places [from, to) of look, which adopt has filled.
func (w *Worker) parseHanded(from, to int) (flows int) {
	b := &w.b
	flows = from
	for k := from; k < to; k++ {
		has, place := uint(k)%BurstSize, uint(flows)%BurstSize
		if b.ip[has] == 0 {
			flows += w.parseOne(int(b.look.Packet[has]), flows, true)
			continue
		}
		b.look.Packet[place], b.look.Hash[place], b.ip[place] = b.look.Packet[has], b.look.Hash[has], b.ip[has]
		flows++
	}
	w.table.PrefetchBuckets(b.look.Hash[from:flows])
	return flows
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

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// In a flood of SYNs from invented addresses the oldest half-open flow makes
// room for the newest, be it in the table or for its port. That is right while
// the oldest had time for its handshake. Were it younger, the flood would turn
// out every client before its ACK is here, and since that one has had its
// SYN-ACK it never tries again. So then the new SYN is refused, and remembered:
// a client sends it again after a second, invented addresses mostly do not, and
// the one that comes again gets the place of the oldest that did not.

// handshakeTime is how long a half-open flow keeps its place, and its port,
// against newer ones, at least a quarter of a second: most handshakes are over
// by then.
const handshakeTime = conntrack.TicksPerSecond/4 + 1

// maxPostponed bounds how many flows that came again one packet looks past.
const maxPostponed = 8

// refusedBuckets of eight make 2 MiB a worker, of which nothing is touched
// without a flood. They forget the eldest first: of a million SYNs a second four
// in five are still known after half a second, and one in two after a whole.
const refusedBuckets = 1 << 17

// refused remembers SYNs that found no room, by a tag of 15 bits. Somebody
// else's tag is taken for one's own once in four thousand times.
type refused []refusedBucket

// refusedBucket holds eight tags, the youngest in the lowest bits of newer.
type refusedBucket struct{ newer, older uint64 }

// tagOf is where a SYN with this tuple is remembered, and its tag.
func (w *Worker) tagOf(tu *packet.Tuple) (*refusedBucket, uint64) {
	h := uint64(w.table.Hash(tu)) * 0x9e3779b97f4a7c15
	return &w.refused[h>>47%refusedBuckets], h>>24&0xffff | 1
}

// cameBefore reports whether a SYN with this tuple has been refused.
func (w *Worker) cameBefore(tu *packet.Tuple) bool {
	b, tag := w.tagOf(tu)
	for _, v := range [...]uint64{b.newer, b.older} {
		for ; v != 0; v >>= 16 {
			if v&0xffff == tag {
				return true
			}
		}
	}
	return false
}

// remember notes p as refused, if it is a SYN.
func (w *Worker) remember(p *packet.Packet) {
	if p.Kind == packet.KindTCP && !w.cameBefore(&p.Tuple) {
		b, tag := w.tagOf(&p.Tuple)
		b.older = b.older<<16 | b.newer>>48
		b.newer = b.newer<<16 | tag
	}
}

// makeWay reports whether p, which would open a flow, may have the place of the
// oldest half-open flow. For a SYN that comes again this is the oldest but for
// those that did so too and are in the middle of their handshake.
func (w *Worker) makeWay(p *packet.Packet) bool {
	r := w.table.OldestHalfOpen()
	if w.old(r) {
		return r != 0
	}
	if p.Kind != packet.KindTCP || !w.cameBefore(&p.Tuple) {
		return false
	}
	for range maxPostponed {
		e := w.table.Entry(r)
		vip := &w.snap.Directory.Services[e.Service]
		tu := packet.Tuple{Src: e.Client, SrcPort: e.ClientPort, Dst: vip.Addr, DstPort: vip.Port, Proto: e.Proto}
		if w.old(r) || !w.cameBefore(&tu) {
			return true
		}
		w.table.Postpone(r)
		r = w.table.OldestHalfOpen()
	}
	return false
}

// old reports whether flow r has had time for its handshake.
func (w *Worker) old(r conntrack.Ref) bool {
	return w.tick-w.table.Entry(r).Created >= handshakeTime
}

// crowdedOut reports whether p, which would open a flow, has to wait since all
// of the half-open flows there may be are in the middle of their handshakes.
// Datagrams do not wait: their flows leave the list with the server's answer.
func (w *Worker) crowdedOut(p *packet.Packet) bool {
	return w.table.HalfOpenLen() >= w.table.HalfOpenCap() && p.Kind == packet.KindTCP && !w.makeWay(p)
}

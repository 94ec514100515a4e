package dataplane

import (
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// answer handles row i, which belongs to no flow by its kind: ARP, neighbour
// solicitation and ping for our addresses are answered from the frame itself
// and leave by the queue they came from.
func (w *Worker) answer(i int) Verdict {
	p := &w.b.pkt[i]
	if !w.snap.names.owns(p.Dst) {
		if p.Kind == packet.KindOther || p.Kind == packet.KindEcho {
			return w.pass(i)
		}
		return DropNotOurs
	}
	q := w.queueOf(w.b.nic[i])
	if q == nil {
		return DropPortDown
	}
	frame := w.frame(i)
	switch p.Kind {
	case packet.KindARP:
		if !nat.AnswerARP(frame, p, q.mac) {
			return DropNotOurs // a reply, or a request that asks nothing of us
		}
	case packet.KindNS:
		// The answer's checksum is made anew: damage must not be made good by
		// it (RFC 4861 section 7.1.1).
		if !packet.VerifyL4(frame, p) {
			return malformed(packet.ErrND)
		}
		n := nat.AnswerNS(frame, p, q.mac)
		if n == 0 {
			return DropNotOurs
		}
		w.b.desc[i].Len = uint32(n)
	case packet.KindEcho:
		if !nat.AnswerEcho(frame, p) {
			return DropUnsupported
		}
	default:
		return DropUnsupported
	}
	return w.enqueue(q, w.b.desc[i].Addr, uint64(w.b.desc[i].Len), Answered)
}

// queueOf is the queue this worker sends by on a NIC, nil if it has none now.
func (w *Worker) queueOf(nic uint8) *queue {
	qi := w.egress[nic&(MaxNICs-1)]
	if qi < 0 || w.queues[qi].down {
		return nil
	}
	return &w.queues[qi]
}

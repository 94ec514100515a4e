package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// tcpBareHeader is a TCP header without options.
const tcpBareHeader = 20

// forward rewrites row i, a packet of flow r from the client, and queues it
// for the backend.
func (w *Worker) forward(i int, r conntrack.Ref) Verdict {
	p := &w.b.pkt[i]
	e := w.table.Entry(r)
	svc := &w.snap.Services[e.Service]
	frame := w.frame(i)
	if p.TTL(frame) <= 1 {
		return DropTTL
	}
	hop, v := w.serverHop(e.Backend)
	if hop == nil {
		return v
	}
	ipLen := uint64(p.End - p.L3)
	if p.Kind == packet.KindTCP && p.Payload-p.L4 > tcpBareHeader {
		// Only l4fwd may say who the client is, to whatever backend.
		nat.StripOption(frame, p, svc.TOAKind)
		if svc.StripTS {
			nat.StripTimestamps(frame, p)
		}
	}
	if out := w.table.Track(r, conntrack.Forward, p, frame, w.tick, &svc.Timeouts); out != conntrack.Pass {
		if out == conntrack.Reopen {
			return w.reopen(i, r)
		}
		return untracked[out]
	}
	if svc.TOA && nat.TOANeeded(e, p) {
		if v := w.insertTOA(i, e, svc, hop); v != Forwarded {
			return v
		}
		frame = w.frame(i)
	}
	if p.End-p.L3 > hop.MTU {
		return DropTooBig
	}
	if !nat.Forward(frame, p, e, &w.snap.Directory) {
		return DropInternal
	}
	c := &w.here.Backends[e.Backend]
	c.Packets[conntrack.Forward]++
	c.Bytes[conntrack.Forward] += ipLen
	return w.send(i, hop, Forwarded)
}

// reply rewrites row i, a packet of flow r from the backend, and queues it for
// the client.
func (w *Worker) reply(i int, r conntrack.Ref) Verdict {
	p := &w.b.pkt[i]
	e := w.table.Entry(r)
	svc := &w.snap.Services[e.Service]
	frame := w.frame(i)
	if p.TTL(frame) <= 1 {
		return DropTTL
	}
	hop, v := w.clientHop(e)
	if hop == nil {
		return v
	}
	if p.End-p.L3 > hop.MTU {
		return DropTooBig
	}
	if out := w.table.Track(r, conntrack.Reply, p, frame, w.tick, &svc.Timeouts); out != conntrack.Pass {
		return untracked[out]
	}
	// The client must leave room for the option we shall add.
	if svc.TOA && p.Kind == packet.KindTCP && p.TCPFlags&packet.SYN != 0 {
		nat.LowerMSS(frame, p, nat.TOALen(e))
	}
	if !nat.Reply(frame, p, e, &w.snap.Directory) {
		return DropInternal
	}
	c := &w.here.Backends[e.Backend]
	c.Packets[conntrack.Reply]++
	c.Bytes[conntrack.Reply] += uint64(p.End - p.L3)
	return w.send(i, hop, Replied)
}

// untracked names the drop for what conntrack will not have.
var untracked = [conntrack.NumOutcomes]Verdict{
	conntrack.DropBadRST:   DropBadRST,
	conntrack.DropBadSYN:   DropBadSYN,
	conntrack.DropBadFlags: DropBadFlags,
	conntrack.DropNoFlow:   DropNoFlow,
}

// insertTOA grows the packet at its front. A packet that is full up goes on
// without the option, as in DPVS: a later one of the same handshake carries it
// again. Either outcome is counted.
func (w *Worker) insertTOA(i int, e *conntrack.Entry, svc *Service, hop *route.Hop) Verdict {
	d, p := &w.b.desc[i], &w.b.pkt[i]
	start := d.Addr &^ (w.frameSize - 1)
	off, n, res := nat.InsertTOA(w.umem[start:start+w.frameSize:start+w.frameSize],
		int(d.Addr-start), int(d.Len), p, e, svc.TOAKind, int(hop.MTU))
	d.Addr, d.Len = start+uint64(off), uint32(n)
	w.count.TOA[res]++
	return Forwarded
}

// relayError translates an ICMP error about flow r and sends it the way it was
// going.
func (w *Worker) relayError(i int, r conntrack.Ref, dir conntrack.Dir) Verdict {
	p := &w.b.pkt[i]
	e := w.table.Entry(r)
	frame := w.frame(i)
	if p.TTL(frame) <= 1 {
		return DropTTL
	}
	var hop *route.Hop
	var v Verdict
	done := Forwarded
	if dir == conntrack.Forward {
		hop, v = w.serverHop(e.Backend)
	} else {
		hop, v = w.clientHop(e)
		done = Replied
	}
	if hop == nil {
		return v
	}
	if p.End-p.L3 > hop.MTU {
		return DropTooBig
	}
	if !nat.TranslateError(frame, p, e, dir, &w.snap.Directory) {
		return DropICMPTruncated
	}
	return w.send(i, hop, done)
}

// send puts the next hop's Ethernet header before row i's IP header and queues
// the frame on the hop's NIC.
func (w *Worker) send(i int, hop *route.Hop, done Verdict) Verdict {
	d, p := &w.b.desc[i], &w.b.pkt[i]
	qi := w.egress[hop.Port&(MaxNICs-1)]
	if qi < 0 {
		return DropPortDown
	}
	q := &w.queues[qi]
	if q.down {
		return DropPortDown
	}
	// The header may be longer than the one that came (a VLAN tag): the UMEM's
	// headroom is there for it.
	h := uint64(hop.HeaderLen)
	ip := d.Addr + uint64(p.L3)
	at := ip - h
	hop.Put(w.umem[at:at+route.VLANLen:at+route.VLANLen], p.V6)
	return w.enqueue(q, at, h+uint64(p.End-p.L3), done)
}

// enqueue queues a frame of n bytes that begins at at.
func (w *Worker) enqueue(q *queue, at, n uint64, done Verdict) Verdict {
	if q.n == len(q.out) {
		w.transmit(q)
	}
	for n < minFrame {
		w.umem[at+n] = 0
		n++
	}
	q.out[q.n].Addr, q.out[q.n].Len, q.out[q.n].Options = at, uint32(n), 0
	q.done[q.n] = done
	q.n++
	return done
}

// minFrame is Ethernet's shortest frame without its checksum. Not every driver
// pads what it is given on an AF_XDP ring.
const minFrame = 60

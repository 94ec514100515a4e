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
	if w.spent(p, frame) {
		return w.ttlExceeded(i, p.Dst)
	}
	if p.TCPFlags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN && w.deserted(e, svc) {
		return w.reopen(i, r)
	}
	if w.ways[e.Backend].marks&(left|cids) != 0 {
		if v := w.elsewhere(i, r); v != undecided {
			return v
		}
	}
	hop, v := w.serverHop(e.Backend)
	if hop == nil {
		return v
	}
	mtu, ipLen := int(hop.MTU), p.IPLen()
	if translated(e) {
		mtu -= nat.Growth64(p)
	}
	split := ipLen > mtu
	if split && !w.divides(i, e, conntrack.Forward) {
		return w.tooBig(i, p.Dst, mtu-w.growth(e, svc))
	}
	syn := scanSYN(frame, p)
	if p.Payload-p.L4 > tcpBareHeader || p.TCPFlags&packet.SYN != 0 || !p.V6 && p.L4-p.L3 > packet.IPv4MinLen {
		w.editOptions(i, e, svc, syn)
		frame = w.frame(i)
		split = split && p.IPLen() > mtu // a SYN may have lost its data
	}
	if svc.Proxy != nat.NoProxy {
		var goOn bool
		if v, split, goOn = w.forwardProxy(i, r, e, svc, syn.Scale, mtu, split); !goOn {
			return v
		}
		frame = w.frame(i)
	} else if out := w.trackClient(r, e, p, frame, syn.Scale, svc); out != conntrack.Pass {
		if out == conntrack.Reopen {
			return w.reopen(i, r)
		}
		return untracked[out]
	}
	if svc.TOA && nat.TOANeeded(e, p) {
		if v := w.insertTOA(i, e, svc, mtu); v != Forwarded {
			return v
		}
		frame = w.frame(i)
	}
	if v := w.sendAsPlain(i, e, conntrack.Forward, hop, ipLen); v != undecided {
		return v
	}
	if svc.Timestamps == nat.TSTranslate {
		nat.ShiftTimestamps(frame, p, conntrack.Forward, w.table.Clock(r))
	}
	if translated(e) {
		if !w.forward64(i, e) {
			return DropInternal
		}
	} else if !nat.Forward(frame, p, e, &w.snap.Directory) {
		return DropInternal
	}
	if w.snap.KeepTTL {
		nat.KeepTTL(w.frame(i), p)
	}
	w.here.Backends[e.Backend].sent(conntrack.Forward, ipLen)
	if svc.UOA != nat.NoUOA && nat.UOADue(e, svc.UOADatagrams) {
		w.tellUOA(i, e, svc, hop)
	}
	if split {
		return w.sendSplit(i, hop, packet.Fragment{}, Forwarded)
	}
	return w.send(i, hop, Forwarded)
}

// reply rewrites row i, a packet of flow r from the backend, and queues it for
// the client.
func (w *Worker) reply(i int, r conntrack.Ref) Verdict {
	p := &w.b.pkt[i]
	e := w.table.Entry(r)
	svc := &w.snap.Services[e.Service]
	frame := w.frame(i)
	if w.spent(p, frame) {
		return w.ttlExceeded(i, w.serverPeer(p, e))
	}
	if w.ways[e.Backend].marks&left != 0 && svc.OnBackendDown != BackendDownReschedule {
		return w.orphaned(i, r, conntrack.Reply)
	}
	was, half := e.State, e.Flags&conntrack.HalfOpen
	if half != 0 && was == conntrack.SynSent {
		e.Heard() // even if the client is not to be reached
	}
	hop, v := w.clientHop(e)
	if hop == nil {
		return v
	}
	mtu, ipLen := int(hop.MTU), p.IPLen()
	split := false
	if translated(e) {
		if !packet.VerifyIPv4(frame, p) {
			return DropIPChecksum
		}
		mtu -= nat.Growth64(p)
		split = w.frags.first // it still needs a fragment header
	}
	if ipLen > mtu {
		if split = w.divides(i, e, conntrack.Reply); !split {
			return w.tooBig(i, w.serverPeer(p, e), mtu)
		}
	}
	syn := scanSYN(frame, p)
	if svc.Proxy != nat.NoProxy && p.Kind == packet.KindTCP {
		if v := w.replyProxy(i, r, e, svc, syn.Scale); v != Replied {
			return v
		}
	} else if out := w.table.Track(r, conntrack.Reply, p, syn.Scale, w.tick, &svc.Policy); out != conntrack.Pass {
		return untracked[out]
	}
	switch {
	case p.Kind == packet.KindTCP && p.TCPFlags&packet.SYN != 0:
		w.timeServer(e)
		w.leaveRoom(frame, p, e, svc)
	case p.Kind == packet.KindTCP && p.TCPFlags&packet.RST != 0:
		w.rejected(e, was)
	case p.Kind == packet.KindUDP && half != 0:
		w.here.signs[e.Backend].Answered++
	}
	if p.Kind == packet.KindTCP && (p.TCPFlags&packet.SYN != 0 && !syn.May(packet.OptSACK) || nat.PlainOptions(frame, p)) {
		if v := w.sendAsPlain(i, e, conntrack.Reply, hop, ipLen); v != undecided {
			return v
		}
	}
	if svc.Timestamps == nat.TSTranslate {
		nat.ShiftTimestamps(frame, p, conntrack.Reply, w.table.Clock(r))
	}
	if translated(e) {
		if !w.reply64(i, e) {
			return DropInternal
		}
	} else if !nat.Reply(frame, p, e, &w.snap.Directory) {
		return DropInternal
	}
	if w.snap.KeepTTL {
		nat.KeepTTL(w.frame(i), p)
	}
	w.here.Backends[e.Backend].sent(conntrack.Reply, ipLen)
	if split {
		return w.sendSplit(i, hop, packet.Fragment{ID: w.b.newID[i], More: w.frags.first}, Replied)
	}
	return w.send(i, hop, Replied)
}

// serverPeer is who p's server thinks it talks to, if that is us: in Full-NAT
// the local address; in DNAT nobody is but the VIP.
func (w *Worker) serverPeer(p *packet.Packet, e *conntrack.Entry) packet.Addr {
	if e.Mode == conntrack.FullNAT {
		return p.Dst
	}
	return w.snap.Directory.Services[e.Service].Addr
}

// untracked names the drop for what conntrack will not have.
var untracked = [conntrack.NumOutcomes]Verdict{
	conntrack.DropBadRST:   DropBadRST,
	conntrack.DropBadSeq:   DropBadSeq,
	conntrack.DropBadSYN:   DropBadSYN,
	conntrack.DropBadFlags: DropBadFlags,
	conntrack.DropNoFlow:   DropNoFlow,
}

// relayError translates row i, an ICMP error about flow e, and sends it the way it
// was going.
func (w *Worker) relayError(i int, e *conntrack.Entry, dir conntrack.Dir) Verdict {
	p := &w.b.pkt[i]
	frame := w.frame(i)
	if w.spent(p, frame) {
		return DropTTL // no error about an error
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
	if translated(e) && !packet.VerifyIPv4(frame, p) {
		return DropIPChecksum
	}
	if p.End-p.L3 > hop.MTU && !translated(e) { // those are cut to size
		return DropTooBig
	}
	svc := &w.snap.Services[e.Service]
	if dir == conntrack.Reply && e.Proto == packet.ProtoUDP {
		w.complained(frame, p, e)
	}
	room, ok := unquoteUOA(frame, p, e)
	switch {
	case !ok:
		return DropUnsupported
	case svc.TOA:
		room = nat.TOARoom(e)
	case svc.Proxy != nat.NoProxy && e.Proto == packet.ProtoTCP && dir == conntrack.Reply:
		nat.ProxyError(frame, p, e, w.proxySize(e, svc))
	}
	if translated(e) {
		if !w.relayError64(i, e, dir, room) {
			return DropICMPTruncated
		}
	} else if !nat.TranslateError(frame, p, e, dir, &w.snap.Directory, room) {
		return DropICMPTruncated
	}
	if w.snap.KeepTTL {
		nat.KeepTTL(w.frame(i), p)
	}
	return w.send(i, hop, done)
}

// send puts the next hop's Ethernet header before row i's IP header and queues
// the frame on the hop's NIC.
func (w *Worker) send(i int, hop *route.Hop, done Verdict) Verdict {
	q := w.queueOf(uint8(hop.Port))
	if q == nil {
		return DropPortDown
	}
	return w.put(i, q, hop, done)
}

// put is send by the hop's queue.
func (w *Worker) put(i int, q *queue, hop *route.Hop, done Verdict) Verdict {
	// The header may be longer than the one that came (a VLAN tag): the UMEM's
	// headroom is there for it.
	d, p := &w.b.desc[i], &w.b.pkt[i]
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

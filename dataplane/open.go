package dataplane

import (
	"slices"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// miss decides about row i, which belongs to no flow of this worker: it is
// somebody else's, or it opens one, or it does not belong here.
func (w *Worker) miss(i int, handed bool) Verdict {
	p := &w.b.pkt[i]
	svc := w.snap.names.find(p.Dst, p.DstPort, p.Proto)
	owned := ownedVIP
	if svc < 0 {
		owned = w.snap.names.owner(p.Dst)
	}
	var from *answerer
	if svc < 0 && owned == notOwned {
		from = w.snap.answererOf(p)
	}
	if w.owners.workers > 1 && (from == nil || from.tracked) {
		switch owner := w.ownerOf(p, svc, owned, handed); {
		case owner == w.id:
		case handed && !w.onward(p, svc):
			// Two workers disagree while they take over a snapshot. A flow that
			// began here would not be found where its packets will look for it.
			return DropNoFlow
		default:
			return w.handOver(i, owner)
		}
	}
	if svc >= 0 && w.snap.Services[svc].Set == nil {
		// Out of the configuration: its name only led to its flows' owner.
		svc, owned = notOwned, w.snap.names.owner(p.Dst)
	}
	if owned == onceLocal {
		owned = ownedVIP
	}
	switch {
	case from != nil:
		return w.answerFor(i, from)
	case svc < 0 && (owned == notOwned || owned == formerLocal):
		return w.pass(i)
	case svc < 0 && owned != ownedVIP:
		return w.strayReply(i)
	case p.Kind > packet.KindUDP:
		return w.missAside(i, svc)
	}
	return w.begin(i, svc)
}

// begin decides about row i, addressed to a VIP, that belongs to no flow and is
// here where its flow would be: whether it opens one. id is its service,
// negative without one.
func (w *Worker) begin(i int, id int32) Verdict {
	p := &w.b.pkt[i]
	switch {
	case w.snap.names.owns(p.Src):
		// Answered, it would let two services talk to each other for ever.
		return malformed(packet.ErrMartianSource)
	case w.spent(p, w.frame(i)):
		// Here and not only in forward: it must not cost a flow and a port.
		return w.ttlExceeded(i, p.Dst)
	case id < 0:
		return DropNoService
	case p.Kind == packet.KindTCP && p.TCPFlags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN:
		return w.stray(i, &w.snap.Services[id])
	}
	return w.open(i, uint32(id), nil)
}

// ownerOf is the worker that has p's flow if there is one, or, of a VIP whose flows are
// keptByEither, that is to look next. svc is the service p is addressed to, or negative;
// owned is what p's destination is then.
func (w *Worker) ownerOf(p *packet.Packet, svc, owned int32, handed bool) int {
	switch {
	case svc >= 0:
		kept := w.snap.Services[svc].kept
		if kept == keptByTuple || kept == keptByEither && !handed {
			if owner := w.owners.forward(&p.Tuple); kept == keptByTuple || owner != w.id {
				return owner
			}
		}
		return w.owners.client(p.Src, p.SrcPort)
	case owned == ownedLocal, owned == formerLocal, owned == onceLocal:
		return w.owners.reply(&p.Tuple)
	case owned == notOwned: // a DNAT backend's reply: the client is the destination
		return w.owners.client(p.Dst, p.DstPort)
	}
	return w.id // a VIP without such a service: nobody has
}

// onward reports whether p, which another worker has handed over to this one for its
// tuple and which belongs to no flow here, may be handed over to the client's.
func (w *Worker) onward(p *packet.Packet, svc int32) bool {
	return svc >= 0 && w.snap.Services[svc].kept == keptByEither && w.owners.forward(&p.Tuple) == w.id
}

// conflictTries bounds how many backends open asks for when a DNAT tuple is
// taken already, or no local port is left towards one.
const conflictTries = 4

// open makes a flow for row i, the first packet of a client to service id, and
// forwards it. was is the flow it takes the place of, nil without one: its
// backend is kept while it serves.
func (w *Worker) open(i int, id uint32, was *conntrack.Entry) Verdict {
	v := w.openTo(i, id, was)
	switch v {
	case DropPortsExhausted:
		w.here.Services[id].PortsExhausted++
		w.remember(&w.b.pkt[i])
	case DropHalfOpenFull:
		w.remember(&w.b.pkt[i])
	}
	return v
}

// openTo is open towards the first backend that will do.
func (w *Worker) openTo(i int, id uint32, was *conntrack.Entry) Verdict {
	p := &w.b.pkt[i]
	svc := &w.snap.Services[id]
	// What has data may be too big for its way, which insert finds out first. All
	// else is refused, in a flood, before anything has been spent on it.
	if p.End == p.Payload && svc.Set.Len() > 0 && w.crowdedOut(p) {
		return DropHalfOpenFull
	}
	if svc.quic != nil {
		if backend := w.quicServer(i, svc, id); backend != nobody {
			return w.openNamed(i, svc, id, backend)
		}
	}
	if svc.looks {
		svc.Set.Look(&w.here.Schedulers[id], w.tick)
	}
	verdict, choice := DropNoBackend, 0
	keep := nobody
	if was != nil && svc.Set.Contains(was.Backend) {
		keep = was.Backend
	} else if svc.stick.timeout != 0 {
		var v Verdict
		if keep, v = w.persist(i, svc, id); v != Forwarded {
			return v
		}
	}
	for try := range conflictTries {
		backend := keep
		if backend != nobody && try == 0 {
			if svc.limited && !w.hold(backend) {
				continue
			}
		} else {
			var ok bool
			if backend, ok = w.choose(svc, id, p, choice); !ok {
				if choice == 0 && svc.Set.Len() > 0 {
					return DropBackendsFull
				}
				return verdict
			}
			if choice++; backend == keep {
				continue // would not do before
			}
		}
		if w.snap.dnat && try == 0 {
			w.foresee()
		}
		r, v := w.insert(i, svc, id, backend)
		if v == Forwarded {
			return w.begun(i, r)
		}
		if verdict = v; v != DropTupleConflict && v != DropPortsExhausted {
			break
		}
	}
	return verdict
}

// foresee has the processor read, if the packet after this one is a SYN to a DNAT
// service, what tells whether the tuple of its reply is in use: insert would wait for
// it as long as for all else together. Should it go to another backend than foreseen
// it is another line that is read.
func (w *Worker) foresee() {
	if w.b.next < 0 {
		return
	}
	p := w.parsed(w.b.next)
	if p.Kind != packet.KindTCP || p.TCPFlags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN {
		return
	}
	id := w.snap.names.find(p.Dst, p.DstPort, p.Proto)
	if id < 0 {
		return
	}
	svc := &w.snap.Services[id]
	if svc.Mode != conntrack.DNAT || svc.Set == nil || svc.looks || svc.stick.timeout != 0 {
		return // the choices that depend on more than the turn are not foreseen
	}
	set, turn := svc.Set, w.here.Schedulers[id] // a copy: the turn is not over
	if backend, ok := set.PickFor(&turn, p.Src, p.SrcPort, 0); ok {
		w.prefetchReply(p, backend)
	}
}

// prefetchReply has the processor read what tells whether the tuple of backend's reply to p
// is in use, in DNAT. In Full-NAT Pick does, which chooses the tuple.
func (w *Worker) prefetchReply(p *packet.Packet, backend uint32) {
	rs := &w.snap.Directory.Backends[backend]
	w.table.Prefetch(&packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Dst: p.Src, DstPort: p.SrcPort, Proto: p.Proto})
}

// begun forwards row i, which has opened flow r.
func (w *Worker) begun(i int, r conntrack.Ref) Verdict {
	if w.table.Entry(r).Mode == conntrack.DirectReturn {
		return w.direct(i, r)
	}
	// Should the way back be unresolved, the kernel is asked now and not only when the
	// answer stands waiting.
	if hop, v := w.clientHop(w.table.Entry(r)); hop == nil && v == DropNeighbour {
		w.learn(i, w.table.Entry(r))
	}
	return w.forward(i, r)
}

// insert fills an entry for row i towards backend.
func (w *Worker) insert(i int, svc *Service, id, backend uint32) (conntrack.Ref, Verdict) {
	p := &w.b.pkt[i]
	dir := &w.snap.Directory
	e := conntrack.Entry{
		Client: p.Src, ClientPort: p.SrcPort, Service: id, Backend: backend,
		Proto: p.Proto, Mode: svc.Mode,
	}
	if svc.OnePacket {
		e.State = conntrack.UDPOnePacket
	}
	if svc.Mode == conntrack.DNAT {
		w.prefetchReply(p, backend)
	}
	if v := w.fits(i, svc, &e); v != Forwarded {
		return 0, v
	}
	if p.End > p.Payload && w.crowdedOut(p) { // else openTo has asked
		return 0, DropHalfOpenFull
	}
	var replies uint32 // the hash of their tuple
	if svc.Mode == conntrack.FullNAT {
		var ok bool
		if e.Local, e.LocalPort, replies, ok = w.ports.Pick(w.table, dir, svc.Locals, backend, w.tick); !ok {
			if replies, ok = w.takePort(p, &e, svc); !ok {
				return 0, DropPortsExhausted
			}
		}
		if p.Kind == packet.KindTCP {
			e.SeqDelta = w.seqDelta(&e, svc, p.Seq)
		}
	}
	if !nat.Prepare(&e, dir) {
		return 0, DropInternal
	}
	return w.enter(i, svc, &e, replies)
}

// enter takes flow e, which row i opens, into the table. replies is the hash of the
// tuple of its replies in Full-NAT.
func (w *Worker) enter(i int, svc *Service, e *conntrack.Entry, replies uint32) (r conntrack.Ref, v Verdict) {
	dir := &w.snap.Directory
	var rev packet.Tuple
	var status conntrack.Status
	var evicted bool
	if svc.Mode == conntrack.FullNAT && !svc.OnePacket && replies != w.b.hash {
		// That no flow has either tuple is known: by the lookup that has led here, and by Pick.
		// Were the two tuples one, both hashes would be.
		r, status, evicted = w.table.InsertFree(e, w.b.hash, replies, w.tick, &w.evicted)
	} else {
		var back *packet.Tuple // nil: never seen
		if !svc.Mode.OneWay() {
			_, rev = e.Tuples(dir)
			back = &rev
		}
		r, status, evicted = w.table.Insert(e, &w.b.pkt[i].Tuple, back, dir, w.tick, &w.evicted)
	}
	if evicted {
		if w.log != nil {
			w.logEnd(&w.evicted, EndEvicted)
		}
		w.ended(w.evicted.Backend)
		w.count.Evicted++
	}
	switch status {
	case conntrack.Inserted:
		if svc.Timestamps == nat.TSTranslate {
			w.table.SetClock(r, w.clockDelta(i, e))
		}
		c := &w.here.Backends[e.Backend]
		c.Flows++
		c.Active++
		if w.ways[e.Backend].marks&told != 0 {
			w.tell(e.Backend)
		}
		w.count.Opened++
		return r, Forwarded
	case conntrack.Full:
		return 0, DropTableFull
	case conntrack.BucketFull:
		return 0, DropBucketFull
	case conntrack.DuplicateReply:
		if svc.OnePacket {
			if r = w.sharedFlow(&rev, i, e.Service, e.Backend); r != 0 {
				return r, Forwarded
			}
		}
		return 0, DropTupleConflict
	}
	return 0, DropInternal
}

// seqDelta is by how much the numbers of a client whose SYN has number seq are
// moved in Full-NAT flow e.
func (w *Worker) seqDelta(e *conntrack.Entry, svc *Service, seq uint32) uint32 {
	dir := &w.snap.Directory
	rs := &dir.Backends[e.Backend]
	isn := w.isn.Next(dir.Locals[e.Local], e.LocalPort, rs.Addr, rs.Port, w.nanos)
	if svc.Proxy != nat.NoProxy {
		return nat.ProxyDelta(isn, seq)
	}
	return isn - seq
}

// fits tells row i's sender when the packet is too big for the way to the server
// of the flow e that it would open, before that has cost anybody a flow or a
// port. Without a way forward has to say so, once the flow knows its server.
func (w *Worker) fits(i int, svc *Service, e *conntrack.Entry) Verdict {
	p := &w.b.pkt[i]
	hop := w.hopTo(e.Backend)
	if hop.State != route.Resolved {
		return Forwarded
	}
	e.Flags = nat.Families(e, &w.snap.Directory)
	mtu := int(hop.MTU) - w.overhead(e, svc)
	if translated(e) {
		mtu -= nat.Growth64(p)
	}
	if p.IPLen() > mtu && !nat.Divisible(w.frame(i), p, e) {
		return w.tooBig(i, p.Dst, mtu-w.growth(e, svc))
	}
	return Forwarded
}

// takePort gives e a local port of a half-open flow of its service and backend,
// which goes: that of the oldest of all half-open flows, or, if that one has none
// e can use, the port e has, which Pick found in use last. Else a flood of SYNs from
// invented addresses, six thousand a second for one local address and backend,
// would keep everybody out, or one datagram that nobody answers together with it.
// hash is that of the tuple of e's replies then.
func (w *Worker) takePort(p *packet.Packet, e *conntrack.Entry, svc *Service) (hash uint32, ok bool) {
	dir := &w.snap.Directory
	r := w.table.OldestHalfOpen()
	if w.hasPortFor(r, e, svc) {
		if !w.makeWay(p) {
			return 0, false
		}
	} else {
		_, rev := e.Tuples(dir)
		r, _, _ = w.table.Lookup(&rev, dir)
		if o := w.table.Entry(r); o.Flags&conntrack.HalfOpen == 0 || w.tick-o.Created < handshakeTime || !w.hasPortFor(r, e, svc) {
			return 0, false
		}
	}
	o := w.table.Entry(r)
	e.Local, e.LocalPort = o.Local, o.LocalPort
	w.close(r, EndEvicted)
	w.count.Evicted++
	_, rev := e.Tuples(dir)
	return w.table.Hash(&rev), true
}

// hasPortFor reports whether the local port of flow r, which is half-open or none,
// is one that the new flow e may have instead.
func (w *Worker) hasPortFor(r conntrack.Ref, e *conntrack.Entry, svc *Service) bool {
	o := w.table.Entry(r)
	return r != 0 && o.Mode == e.Mode && o.Service == e.Service && o.Backend == e.Backend && slices.Contains(svc.Locals, o.Local) &&
		(o.Proto != packet.ProtoUDP || w.tick-o.Created >= answerTime)
}

// desertion is how long, in ticks, a flow whose backend takes no new flows must
// have been silent before a SYN gets another one: a client that begins anew does
// not do so while its old connection talks, and a forged SYN must not end a flow
// that drains.
const desertion = 60 * conntrack.TicksPerSecond

// parted is desertion after a client's FIN where that says that the connection is over: in
// LastAck the server's FIN was before it, and with direct return, where no end is seen,
// most are over then. Who forges a SYN can so end a half-closed connection with direct
// return whose server takes no new flows, and takes more than a second to answer.
const parted = conntrack.TicksPerSecond

// deserted reports whether a client's SYN on flow e is better served by another
// backend: e's takes no new flows, and either it has not answered yet or nothing
// has come by for a while. Else a client would be sent to a server that is gone
// for as long as its flow lives, which may be hours; with direct return the end of a
// connection is not seen, and many clients behind one address soon use its port again.
// How long that was is told from the timeout, so one that a reload has just changed
// misleads it.
func (w *Worker) deserted(e *conntrack.Entry, svc *Service) bool {
	if e.State == conntrack.None || svc.Set == nil || svc.Set.Len() == 0 || svc.Set.Contains(e.Backend) {
		return false // None: this SYN has just opened it
	}
	since := e.Expires - svc.Policy.Timeouts[e.State]
	silent := int32(w.tick - since)
	switch {
	case e.State == conntrack.SynSent:
		return true
	case e.State == conntrack.LastAck, e.State == conntrack.FinWait && e.Mode.OneWay():
		return silent >= parted
	}
	return silent >= desertion
}

// reopen starts flow r afresh for row i, a SYN on a connection that is over:
// another choice of sequence numbers and local port, the same backend while it
// serves.
func (w *Worker) reopen(i int, r conntrack.Ref) Verdict {
	w.former = *w.table.Entry(r)
	w.unanswered(r)
	w.close(r, EndReopened)
	w.count.Reopened++
	id := int32(w.former.Service)
	if w.snap.Services[id].Set == nil { // or under another id now
		vip := &w.snap.Directory.Services[id]
		if id = w.snap.names.find(vip.Addr, vip.Port, vip.Proto); id < 0 || w.snap.Services[id].Set == nil {
			return DropNoService
		}
	}
	return w.open(i, uint32(id), &w.former)
}

// pass sends row i on by the kernel's routes, untouched but for the TTL: XDP
// took it for a DNAT backend's reply, AF_XDP cannot give it back, and it
// belongs to no flow, so it is some other connection of that server.
func (w *Worker) pass(i int) Verdict {
	p := &w.b.pkt[i]
	frame := w.frame(i)
	if p.TTL(frame) <= 1 {
		return DropTTL
	}
	dst := p.Dst
	if p.Kind == packet.KindICMPError {
		// The tuple is of the packet within, which anybody can make up. What is
		// addressed to us must not go back to the router that brought it.
		if _, dst = p.OuterAddrs(frame); w.snap.names.owns(dst) {
			return DropNoFlow
		}
	}
	id := w.routes.Lookup(dst)
	hop := w.routes.Hop(id)
	if hop.State != route.Resolved {
		return w.noHop(id, dst)
	}
	split := p.End-p.L3 > hop.MTU
	if split && p.DontFragment(frame) {
		return DropTooBig
	}
	nat.DecTTL(frame, p)
	if split {
		return w.sendSplit(i, hop, packet.Fragment{}, Passed)
	}
	return w.send(i, hop, Passed)
}

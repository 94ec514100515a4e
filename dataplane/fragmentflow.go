package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// aside does with row i, which is neither TCP nor UDP, what its flow r asks for,
// 0 if it has none.
func (w *Worker) aside(i int, r conntrack.Ref, dir conntrack.Dir, handed bool) Verdict {
	switch {
	case w.b.pkt[i].Kind == packet.KindFragment:
		return w.fragment(i, r, dir, handed)
	case r == 0:
		return w.miss(i, handed)
	}
	if e := w.table.Entry(r); e.Mode != conntrack.DirectReturn {
		return w.relayError(i, e, dir)
	}
	if nat.QuotesUOAProtocol(w.frame(i), &w.b.pkt[i]) {
		return DropUnsupported // nobody has sent that here
	}
	return w.direct(i, r)
}

// fragment is aside for a fragment whose ports are known.
func (w *Worker) fragment(i int, r conntrack.Ref, dir conntrack.Dir, handed bool) Verdict {
	if r == 0 {
		// Still marked it came from a NIC, or to this worker as the datagram's
		// keeper; the mark gone, its keeper has sent it to where its flow is.
		return w.miss(i, handed && w.b.nic[i]&known == 0)
	}
	p, e, frame := &w.b.pkt[i], w.table.Entry(r), w.frame(i)
	if dir == conntrack.Forward && w.snap.Services[e.Service].Proxy != nat.NoProxy && (e.Proto == packet.ProtoTCP || nat.ProxyDue(e)) {
		return DropFragmentProxy
	}
	if dir == conntrack.Reply || e.Mode == conntrack.FullNAT {
		// From here on several hosts' datagrams bear one address.
		nat.RenewID(frame, p, w.b.newID[i])
	}
	if p.Fragment(frame).Offset != 0 {
		if e.Mode == conntrack.DirectReturn {
			return w.direct(i, r)
		}
		return w.follow(i, r, dir)
	}
	if err := p.FirstFragment(frame); err != packet.ErrNone {
		return malformed(err)
	}
	if dir == conntrack.Forward && p.TCPFlags&packet.SYN != 0 {
		return DropFragmentSYN
	}
	w.frags.first = true
	var v Verdict
	switch {
	case dir == conntrack.Forward:
		v = w.fromClient(i, r)
	case translated(e) && unsummed(frame, p):
		v = DropFragmentNoChecksum
	default:
		v = w.reply(i, r)
	}
	w.frags.first = false
	return v
}

// unsummed reports whether p is a UDP packet without checksum.
func unsummed(frame []byte, p *packet.Packet) bool {
	return p.Kind == packet.KindUDP && frame[p.L4+packet.UDPChecksum]|frame[p.L4+packet.UDPChecksum+1] == 0
}

// follow rewrites row i, a fragment without ports of its own, and queues it.
func (w *Worker) follow(i int, r conntrack.Ref, dir conntrack.Dir) Verdict {
	p, e, frame := &w.b.pkt[i], w.table.Entry(r), w.frame(i)
	if w.spent(p, frame) {
		return DropTTL // no error about anything but a first fragment
	}
	var hop *route.Hop
	var v Verdict
	if dir == conntrack.Forward {
		hop, v = w.serverHop(e.Backend)
	} else {
		hop, v = w.clientHop(e)
	}
	if hop == nil {
		return v
	}
	from, n, grow := p.Fragment(frame), p.IPLen(), 0
	if translated(e) {
		if !packet.VerifyIPv4(frame, p) {
			return DropIPChecksum
		}
		grow = nat.Growth64(p)
	}
	split := n+grow > int(hop.MTU)
	if split && !w.divides(i, e, dir) {
		return DropTooBig
	}
	if dir == conntrack.Forward && !p.V6 && p.L4-p.L3 > packet.IPv4MinLen {
		nat.StripUOA(frame, p) // as forward does, though servers read the first one's
	}
	if out := w.table.Track(r, dir, p, packet.NoScale, w.tick, &w.snap.Services[e.Service].Policy); out != conntrack.Pass {
		return untracked[out]
	}
	if translated(e) {
		if !w.readdress64(i, e, dir) {
			return DropInternal
		}
		split = split || dir == conntrack.Reply // which still needs a fragment header
	} else if !nat.Readdress(frame, p, e, dir, &w.snap.Directory) {
		return DropInternal
	}
	if w.snap.KeepTTL {
		nat.KeepTTL(w.frame(i), p)
	}
	w.here.Backends[e.Backend].sent(dir, n)
	if split {
		from.ID = w.b.newID[i]
		return w.sendSplit(i, hop, from, v)
	}
	return w.send(i, hop, v)
}

// missAside is miss for what is addressed to a VIP and neither TCP nor UDP: an
// ICMP error, or a fragment, of which the first may open a flow of UDP.
func (w *Worker) missAside(i int, id int32) Verdict {
	p, frame := &w.b.pkt[i], w.frame(i)
	if p.Kind != packet.KindFragment || p.Fragment(frame).Offset != 0 {
		return DropNoFlow
	}
	if id >= 0 {
		switch svc := &w.snap.Services[id]; {
		case svc.Proxy != nat.NoProxy:
			return DropFragmentProxy
		case svc.Mode == conntrack.FullNAT:
			nat.RenewID(frame, p, w.b.newID[i])
		}
	}
	if err := p.FirstFragment(frame); err != packet.ErrNone {
		return malformed(err)
	}
	if p.TCPFlags&packet.SYN != 0 {
		// No stack sends one. Its data, of unknown length, and what Fast Open may
		// put there would slip past what is done about SYNs.
		return DropFragmentSYN
	}
	w.frags.first = true
	v := w.begin(i, id)
	w.frags.first = false
	return v
}

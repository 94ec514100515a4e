package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// With direct return the real server has the VIP, too, and answers the client
// itself. Of a flow only the client's packets come by, and ICMP errors that routers
// send to the VIP about the server's: all of them go to the server as they are, with
// another Ethernet header.

// direct sends row i, a packet of flow r or an ICMP error about one, to the flow's
// real server. On the link, l4fwd is a switch: addresses, ports and TTL stay.
func (w *Worker) direct(i int, r conntrack.Ref) Verdict {
	p, e := &w.b.pkt[i], w.table.Entry(r)
	svc := &w.snap.Services[e.Service]
	if p.TTL(w.frame(i)) == 0 {
		return DropTTL
	}
	if p.TCPFlags&packet.SYN != 0 && w.deserted(e, svc) {
		return w.reopen(i, r)
	}
	hop, v := w.directHop(e)
	switch {
	case hop == nil:
		return v
	case w.cameFrom(i, hop):
		return DropLoop
	}
	n := p.IPLen()
	split := n > int(hop.MTU)
	if split && !w.divides(i, e, conntrack.Forward) {
		return w.tooBig(i, p.Dst, int(hop.MTU))
	}
	if p.Kind != packet.KindICMPError {
		if v := w.trackDirect(i, r, e, svc); v != undecided {
			return v
		}
		w.here.Backends[e.Backend].sent(conntrack.Forward, n)
	}
	if split {
		return w.sendSplit(i, hop, packet.Fragment{}, Forwarded)
	}
	return w.send(i, hop, Forwarded)
}

// trackDirect takes out of row i, a client's packet of flow r, what must not reach a
// server, and takes note of it. Unless it is to go on, which undecided means, the
// verdict is what has become of it.
func (w *Worker) trackDirect(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service) Verdict {
	p := &w.b.pkt[i]
	if p.Payload-p.L4 > tcpBareHeader || p.TCPFlags&packet.SYN != 0 || !p.V6 && p.L4-p.L3 > packet.IPv4MinLen {
		w.editOptions(i, e, svc)
	}
	switch out := w.table.Track(r, conntrack.Forward, p, w.frame(i), w.tick, &svc.Policy); out {
	case conntrack.Pass:
		return undecided
	case conntrack.Reopen:
		return w.reopen(i, r)
	default:
		return untracked[out]
	}
}

// directHop is the next hop to flow e's real server, which has to be a neighbour: a
// router would send what is addressed to the VIP back here. Or it is nil, with the
// drop that says why.
func (w *Worker) directHop(e *conntrack.Entry) (*route.Hop, Verdict) {
	hop, v := w.serverHop(e.Backend)
	if hop != nil && !w.routes.OnLink(w.here.ways[e.Backend].id, w.snap.Directory.Backends[e.Backend].Addr) {
		return nil, DropOffLink
	}
	return hop, v
}

// cameFrom reports whether row i's frame was sent by the very neighbour that hop
// leads to: a real server without the VIP, which routes what it gets, and would get
// it again.
func (w *Worker) cameFrom(i int, hop *route.Hop) bool {
	src := w.umem[w.b.desc[i].Addr+packet.EthSrc:]
	return [6]byte(src) == [6]byte(hop.Header[packet.EthDst:])
}

// switches reports whether row i, which belongs to no flow, is for a service, id or
// negative, where l4fwd is no hop whatever else it is, so that its TTL may end here.
func (w *Worker) switches(i int, id int32) bool {
	return id >= 0 && w.snap.Services[id].Mode == conntrack.DirectReturn && w.b.pkt[i].TTL(w.frame(i)) > 0
}

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// With direct return the real server has the VIP, too, and answers the client
// itself. Of a flow only the client's packets come by, and ICMP errors that routers
// send to the VIP about the server's: all of them go to the server as they are but for
// the TTL, with another Ethernet header, or in a tunnel. The TTL ends what would else go
// round for ever, where balancers have each other for servers.

// direct sends row i, a packet of flow r or an ICMP error about one, to the flow's
// real server.
func (w *Worker) direct(i int, r conntrack.Ref) Verdict {
	p, e := &w.b.pkt[i], w.table.Entry(r)
	svc := &w.snap.Services[e.Service]
	if w.spent(p, w.frame(i)) {
		return w.ttlExceeded(i, p.Dst)
	}
	if p.TCPFlags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN && w.deserted(e, svc) {
		return w.reopen(i, r)
	}
	if p.Kind != packet.KindICMPError && w.ways[e.Backend].marks&(left|cids) != 0 {
		if v := w.elsewhere(i, r); v != undecided {
			return v
		}
	}
	hop, v := w.directHop(e, svc)
	switch {
	case hop == nil:
		return v
	case svc.Tunnel.Kind == nat.NoTunnel && w.cameFrom(i, hop):
		return DropLoop
	}
	n, mtu := p.IPLen(), int(hop.MTU)-w.overhead(e, svc)
	split := n > mtu
	if split && !w.divides(i, e, conntrack.Forward) {
		return w.tooBig(i, p.Dst, mtu)
	}
	if p.Kind != packet.KindICMPError {
		if v := w.trackDirect(i, r, e, svc); v != undecided {
			return v
		}
		w.here.Backends[e.Backend].sent(conntrack.Forward, n)
		w.fillHead(e.Backend, svc, hop, p.V6)
	}
	if !w.snap.KeepTTL {
		nat.DecTTL(w.frame(i), p)
	}
	return w.sendDirect(i, e, svc, hop, split, Forwarded)
}

// trackDirect takes out of row i, a client's packet of flow r, what must not reach a
// server, and takes note of it. Unless it is to go on, which undecided means, the
// verdict is what has become of it.
func (w *Worker) trackDirect(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service) Verdict {
	p := &w.b.pkt[i]
	if p.Payload-p.L4 > tcpBareHeader || p.TCPFlags&packet.SYN != 0 || !p.V6 && p.L4-p.L3 > packet.IPv4MinLen {
		w.editOptions(i, e, svc, scanSYN(w.frame(i), p))
	}
	switch out := w.table.Track(r, conntrack.Forward, p, packet.NoScale, w.tick, &svc.Policy); out {
	case conntrack.Pass:
		return undecided
	case conntrack.Reopen:
		return w.reopen(i, r)
	default:
		return untracked[out]
	}
}

// directHop is the next hop to flow e's real server, or nil and the drop that says
// why not. Without a tunnel it has to be a neighbour: a router would send what is
// addressed to the VIP back here.
func (w *Worker) directHop(e *conntrack.Entry, svc *Service) (*route.Hop, Verdict) {
	hop, v := w.serverHop(e.Backend)
	if hop != nil && svc.Tunnel.Kind == nat.NoTunnel && !w.routes.OnLink(w.here.ways[e.Backend].id, w.snap.Directory.Backends[e.Backend].Addr) {
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

// overhead is by how much packets of flow e grow on their way by a tunnel.
func (w *Worker) overhead(e *conntrack.Entry, svc *Service) int {
	return svc.Tunnel.Overhead(w.snap.Directory.Backends[e.Backend].Addr.Is4())
}

// sendDirect is send, or, if split is set, sendSplit, for row i of flow e.
func (w *Worker) sendDirect(i int, e *conntrack.Entry, svc *Service, hop *route.Hop, split bool, done Verdict) Verdict {
	if svc.Tunnel.Kind == nat.NoTunnel {
		if split {
			return w.sendSplit(i, hop, packet.Fragment{}, done)
		}
		return w.send(i, hop, done)
	}
	var x crate
	switch {
	case !w.pack(&x, e, svc, hop):
		return DropNoSource
	case split:
		return w.sendPieces(i, hop, &x, packet.Fragment{}, done)
	}
	p, whole := &w.b.pkt[i], &w.b.pkt[i]
	if w.frags.first || p.Kind > packet.KindUDP || p.Kind < packet.KindTCP {
		whole = nil
	}
	if !p.V6 && !p.DontFragment(w.frame(i)) {
		x.outer.ID = uint16(w.nextID())
	}
	chunk, off := w.chunk(i)
	end := off + int(p.End)
	start, ok := x.tunnel.Encapsulate(chunk, off+int(p.L3), end, whole, &x.outer)
	if !ok || start < packet.VLANEthLen {
		return DropInternal
	}
	off = start - packet.EthLen
	w.moved(i, off, end-off)
	p.L3, p.End, p.V6 = packet.EthLen, uint16(end-off), !x.outer.Src.Is4()
	return w.send(i, hop, done)
}

// crate is what a packet of a flow is sent in.
type crate struct {
	tunnel *nat.Tunnel
	outer  nat.Outer
	size   int // bytes of its headers
}

// pack fills x, all zero, for flow e towards hop; false if there is no source address
// for it. Field by field: a struct that is returned is read back in other pieces than
// it was written in, which takes longer than to fill it.
func (w *Worker) pack(x *crate, e *conntrack.Entry, svc *Service, hop *route.Hop) bool {
	x.tunnel = &svc.Tunnel
	x.outer.Dst = w.snap.Directory.Backends[e.Backend].Addr
	v4 := x.outer.Dst.Is4()
	x.size = svc.Tunnel.Overhead(v4)
	x.outer.Hash = e.Hash()
	if svc.Tunnel.Kind == nat.VXLAN {
		x.outer.MAC = [6]byte(hop.Header[packet.EthSrc:])
	}
	x.outer.Src = svc.Tunnel.SourceFor(x.outer.Hash)
	if x.outer.Src.IsZero() {
		x.outer.Src = w.routes.Source(w.here.ways[e.Backend].id, v4)
	}
	return !x.outer.Src.IsZero()
}

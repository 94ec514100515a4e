package dataplane

import (
	"math"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// proxySize is how long the PROXY header of flow e is while it is on its way, 0
// once the server has it, or if there is none.
func (w *Worker) proxySize(e *conntrack.Entry, svc *Service) int {
	if udp := e.Proto == packet.ProtoUDP; udp && !nat.ProxyDue(e) || !udp && nat.ProxyDone(e) {
		return 0
	}
	return nat.ProxyLen(e, &w.snap.Directory, svc.Proxy)
}

// growth is by how much more than it is now a client's packet like row i's may
// have to grow on its way, for what the client is told of an MTU.
func (w *Worker) growth(e *conntrack.Entry, svc *Service) int {
	switch {
	case svc.Proxy != nat.NoProxy:
		return w.proxySize(e, svc)
	case svc.TOA:
		return nat.TOARoom(e)
	}
	return 0
}

// forwardProxy takes row i, a client's packet of a flow with PROXY, through
// Track, with its scale, and puts the header in. Unless it is to go on, the verdict
// is what has become of it: reopened, it has been sent already, and e is nobody's.
// split is whether it goes on in fragments, as far as that is known, and then.
func (w *Worker) forwardProxy(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service, scale uint8, mtu int, split bool) (v Verdict, now, goOn bool) {
	if e.Proto == packet.ProtoUDP {
		v, split = w.forwardProxyUDP(i, r, e, svc, mtu, split)
		return v, split, v == Forwarded
	}
	v, goOn = w.forwardProxyTCP(i, r, e, svc, scale, mtu)
	return v, split, goOn
}

func (w *Worker) forwardProxyTCP(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service, scale uint8, mtu int) (v Verdict, goOn bool) {
	p := &w.b.pkt[i]
	w.b.desc[i].Len = uint32(nat.CutSYN(w.frame(i), p))
	mark := nat.MarkProxy(e)
	out := w.trackClient(r, e, p, w.frame(i), scale, svc)
	if out == conntrack.Reopen {
		return w.reopen(i, r), false
	}
	if out != conntrack.Pass {
		return untracked[out], false
	}
	mark.Tracked(e)
	chunk, off := w.chunk(i)
	off, n, res := nat.InsertProxy(chunk, off, int(w.b.desc[i].Len), p, e, &w.snap.Directory, svc.Proxy, mtu)
	switch {
	case res == nat.ProxyTooBig:
		return w.tooBig(i, p.Dst, mtu-nat.ProxyLen(e, &w.snap.Directory, svc.Proxy)), false
	case res.Drop():
		return DropProxy, false
	}
	w.moved(i, off, n)
	return Forwarded, true
}

// forwardProxyUDP is forwardProxy for a datagram. Where the header, if it is due, makes
// it larger than the next hop's MTU it goes on in fragments, if it may.
func (w *Worker) forwardProxyUDP(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service, mtu int, split bool) (Verdict, bool) {
	p := &w.b.pkt[i]
	due, size := nat.ProxyDue(e), nat.ProxyLen(e, &w.snap.Directory, svc.Proxy)
	if due && p.IPLen()+size > mtu {
		if !w.divides(i, e, conntrack.Forward) {
			return w.tooBig(i, p.Dst, mtu-size), false
		}
		mtu, split = math.MaxInt, true
	}
	if out := w.table.Track(r, conntrack.Forward, p, packet.NoScale, w.tick, &svc.Policy); out != conntrack.Pass {
		return untracked[out], false
	}
	if !due {
		return Forwarded, split
	}
	chunk, off := w.chunk(i)
	off, n, res := nat.InsertProxyUDP(chunk, off, int(w.b.desc[i].Len), p, e, &w.snap.Directory, mtu)
	if res.Drop() {
		return DropProxy, false
	}
	w.moved(i, off, n)
	return Forwarded, split
}

// replyProxy takes row i, a server's packet of a flow with PROXY, through Track, with its
// scale.
func (w *Worker) replyProxy(i int, r conntrack.Ref, e *conntrack.Entry, svc *Service, scale uint8) Verdict {
	p, frame := &w.b.pkt[i], w.frame(i)
	if !nat.ProxyReply(frame, p, e, w.proxySize(e, svc)) {
		return DropProxy
	}
	mark := nat.MarkProxy(e)
	out := w.table.Track(r, conntrack.Reply, p, scale, w.tick, &svc.Policy)
	if out != conntrack.Pass {
		return untracked[out]
	}
	mark.Tracked(e)
	return Replied
}

package dataplane

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// serverHop is the next hop to a backend, or nil and the drop that says why
// not.
func (w *Worker) serverHop(backend uint32) (*route.Hop, Verdict) {
	h := w.hopTo(backend)
	if h.State == route.Resolved {
		return h, Forwarded
	}
	return nil, w.noHop(w.here.ways[backend].id, w.snap.Directory.Backends[backend].Addr)
}

// hopTo is the next hop to a backend in whatever state.
func (w *Worker) hopTo(backend uint32) *route.Hop {
	c := &w.here.ways[backend]
	if c.gen != w.routes.Gen {
		c.gen, c.id = w.routes.Gen, w.routes.Lookup(w.snap.Directory.Backends[backend].Addr)
	}
	return w.routes.Hop(c.id)
}

// clientHop is the next hop to a flow's client, remembered in the entry.
func (w *Worker) clientHop(e *conntrack.Entry) (*route.Hop, Verdict) {
	if e.HopGen != w.routes.Gen {
		e.HopGen, e.HopID = w.routes.Gen, uint16(w.routes.Lookup(e.Client))
	}
	h := w.routes.Hop(route.HopID(e.HopID))
	if h.State == route.Resolved {
		return h, Replied
	}
	v := w.noHop(route.HopID(e.HopID), e.Client)
	if l := w.learned.slot(e.Client); v == DropNeighbour && l.addr == e.Client && l.leads(h) {
		return &l.hop, Replied
	}
	return nil, v
}

// learned remembers, for clients whose next hop the kernel has yet to resolve,
// where their own packets came from: without it the answer to a new neighbour's
// first packet is lost and its connection begins a retransmission late. It is
// asked only while the kernel does not know, so it cannot go stale for long,
// and believes no more than ARP itself does: a frame's word for its sender. A
// direct-mapped table: a collision forgets, which costs that retransmission.
type learned [256]learnedHop

type learnedHop struct {
	addr packet.Addr
	hop  route.Hop
}

// leads reports whether what was learned is still the way of the route, whose
// hop is h: by the same NIC, its MAC, and VLAN.
func (l *learnedHop) leads(h *route.Hop) bool {
	return l.hop.Port == h.Port && l.hop.HeaderLen == h.HeaderLen &&
		string(l.hop.Header[packet.EthSrc:]) == string(h.Header[packet.EthSrc:])
}

func (l *learned) slot(a packet.Addr) *learnedHop {
	return &l[uint8(a.Lo)^uint8(a.Lo>>8)]
}

// learn notes the sender of row i, which opens flow e, if the way back leads
// out by the NIC and VLAN it came in by and only the neighbour is missing.
func (w *Worker) learn(i int, e *conntrack.Entry) {
	h := w.routes.Hop(route.HopID(e.HopID))
	p, frame := &w.b.pkt[i], w.frame(i)
	if h.State != route.Unresolved || h.Port != uint16(w.b.nic[i]&(MaxNICs-1)) || uint16(h.HeaderLen) != p.L3 ||
		frame[packet.EthSrc]&1 != 0 {
		return
	}
	if tci, tagged := p.VLAN(frame); tagged && tci&0xfff != binary.BigEndian.Uint16(h.Header[packet.VLANTCI:])&0xfff {
		return
	}
	l := w.learned.slot(e.Client)
	*l = learnedHop{addr: e.Client, hop: *h}
	l.hop.State = route.Resolved
	copy(l.hop.Header[packet.EthDst:], frame[packet.EthSrc:packet.EthSrc+6])
}

// noHop names the reason, and asks the control plane to resolve what can be.
func (w *Worker) noHop(id route.HopID, dst packet.Addr) Verdict {
	switch w.routes.Hop(id).State {
	case route.Unresolved:
		w.events.push(Event{Kind: EventResolve, Addr: dst})
		return DropNeighbour
	case route.Blackhole, route.Unreachable, route.Prohibited:
		return DropBlackhole
	case route.NotOurs:
		return DropForeignRoute
	case route.Local:
		return DropLocalRoute
	}
	return DropNoRoute
}

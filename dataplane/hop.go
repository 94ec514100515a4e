package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// cachedHop remembers which hop leads to a backend, as long as the routes are
// of that generation.
type cachedHop struct {
	gen uint32
	id  route.HopID
}

// serverHop is the next hop to a backend, or nil and the drop that says why
// not.
func (w *Worker) serverHop(backend uint32) (*route.Hop, Verdict) {
	c := &w.here.hops[backend]
	if c.gen != w.routes.Gen {
		c.gen, c.id = w.routes.Gen, w.routes.Lookup(w.snap.Directory.Backends[backend].Addr)
	}
	if h := w.routes.Hop(c.id); h.State == route.Resolved {
		return h, Forwarded
	}
	return nil, w.noHop(c.id, w.snap.Directory.Backends[backend].Addr)
}

// clientHop is the next hop to a flow's client, remembered in the entry.
func (w *Worker) clientHop(e *conntrack.Entry) (*route.Hop, Verdict) {
	if e.HopGen != w.routes.Gen {
		e.HopGen, e.HopID = w.routes.Gen, uint16(w.routes.Lookup(e.Client))
	}
	if h := w.routes.Hop(route.HopID(e.HopID)); h.State == route.Resolved {
		return h, Replied
	}
	return nil, w.noHop(route.HopID(e.HopID), e.Client)
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

package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
)

// translated reports whether the flow changes family: an IPv6 client, an IPv4
// server.
func translated(e *conntrack.Entry) bool {
	return e.Flags&(conntrack.V6Client|conntrack.V6Server) == conntrack.V6Client
}

// forward64 is nat.Forward for such a flow.
func (w *Worker) forward64(i int, e *conntrack.Entry) bool {
	chunk, off := w.chunk(i)
	id := w.b.newID[i]
	if !w.frags.first {
		id = w.nextID()
	}
	off, n, ok := nat.Forward64(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], e, &w.snap.Directory, uint16(id))
	w.moved(i, off, n)
	return ok
}

// reply64 is nat.Reply for such a flow.
func (w *Worker) reply64(i int, e *conntrack.Entry) bool {
	chunk, off := w.chunk(i)
	off, n, ok := nat.Reply64(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], e, &w.snap.Directory)
	w.moved(i, off, n)
	return ok
}

// readdress64 is nat.Readdress for a fragment of such a flow.
func (w *Worker) readdress64(i int, e *conntrack.Entry, dir conntrack.Dir) bool {
	chunk, off := w.chunk(i)
	off, n, ok := nat.Readdress64(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], e, dir, &w.snap.Directory, uint16(w.b.newID[i]))
	w.moved(i, off, n)
	return ok
}

// relayError64 is nat.TranslateError for such a flow.
func (w *Worker) relayError64(i int, e *conntrack.Entry, dir conntrack.Dir, room int) bool {
	path := 0
	in, out := w.routes.Hop(w.routes.Lookup(e.Client)), w.routes.Hop(w.routes.Lookup(w.snap.Directory.Backends[e.Backend].Addr))
	if in.State == route.Resolved && out.State == route.Resolved {
		path = nat.PathMTU64(int(in.MTU), int(out.MTU))
	}
	chunk, off := w.chunk(i)
	off, n, res := nat.TranslateError64(chunk, off, int(w.b.desc[i].Len), &w.b.pkt[i], e, dir, &w.snap.Directory, uint16(w.nextID()), path, room)
	w.moved(i, off, n)
	return res == nat.Error64Translated
}

// moved notes that row i's frame now begins at off in its chunk and has n bytes.
func (w *Worker) moved(i, off, n int) {
	d := &w.b.desc[i]
	d.Addr, d.Len = d.Addr&^(w.frameSize-1)+uint64(off), uint32(n)
}

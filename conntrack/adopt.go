package conntrack

import "github.com/l4fwd/l4fwd/packet"

// Adopt takes in a flow of another table as it is there, but for its place among the
// half-open ones: it is the youngest. clock is its Clock. It returns 0 if there is no
// room, or the flow's ids mean nothing in dir. For a table in which something is tried
// out, whose secret is the other's.
func (t *Table) Adopt(e *Entry, clock uint32, dir *Directory, now uint32) Ref {
	if !e.means(dir) {
		return 0
	}
	fwd, rev := e.Tuples(dir)
	to := &rev
	if e.Mode.OneWay() {
		to = nil
	}
	var evicted Entry
	r, status, _ := t.Insert(e, &fwd, to, dir, now, &evicted)
	if status != Inserted {
		return 0
	}
	n := &t.entries[r]
	if n.Flags&HalfOpen != 0 && e.Flags&HalfOpen == 0 {
		t.dropHalfOpen(r)
	}
	if e.State == UDPOnePacket && e.Flags&replyOnly != 0 {
		t.unlink(n.fwdHash, cand(r, Forward))
	}
	n.State, n.Flags, n.ServerNext = e.State, e.Flags, e.ServerNext
	n.Win, n.WScale, n.Packets, n.Bytes, n.Created = e.Win, e.WScale, e.Packets, e.Bytes, e.Created
	t.setExpires(r, n, e.Expires)
	t.clocks[r] = clock
	return r
}

// means reports whether all of the flow's ids mean something in dir.
func (e *Entry) means(dir *Directory) bool {
	return int(e.Service) < len(dir.Services) && int(e.Backend) < len(dir.Backends) && (e.Mode != FullNAT || int(e.Local) < len(dir.Locals))
}

// Tuples are those of the client's packets and of the server's, which come by unless the
// mode is OneWay. The flow's ids must mean something in dir.
func (e *Entry) Tuples(dir *Directory) (fwd, rev packet.Tuple) {
	vip, rs := &dir.Services[e.Service], &dir.Backends[e.Backend]
	fwd = packet.Tuple{Src: e.Client, SrcPort: e.ClientPort, Dst: vip.Addr, DstPort: vip.Port, Proto: e.Proto}
	rev = packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Dst: e.Client, DstPort: e.ClientPort, Proto: e.Proto}
	if e.Mode == FullNAT {
		rev.Dst, rev.DstPort = dir.Locals[e.Local], e.LocalPort
	}
	return fwd, rev
}

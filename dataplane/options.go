package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// editOptions takes out of row i, a client's packet of flow e, the options by which
// it could name a client, for only l4fwd may say who that is, to whatever backend;
// and out of a SYN what its service does not want negotiated. syn is what scanSYN says of it.
func (w *Worker) editOptions(i int, e *conntrack.Entry, svc *Service, syn packet.SYNOptions) {
	p, frame := &w.b.pkt[i], w.frame(i)
	nat.StripUOA(frame, p)
	if p.Kind != packet.KindTCP {
		return
	}
	if p.TCPFlags&packet.SYN == 0 {
		nat.StripOption(frame, p, svc.TOAKind)
		return
	}
	var timestamps, fastOpen uint8
	if svc.Timestamps == nat.TSStrip {
		timestamps = packet.OptTimestamps
	}
	if svc.TOA {
		// With Fast Open the server would have the connection from its SYN, which
		// bears no TOA: a client could hide who it is.
		fastOpen = packet.OptFastOpen
	}
	if syn.May(svc.TOAKind) || syn.May(timestamps) || syn.May(fastOpen) {
		nat.StripOptions(frame, p, svc.TOAKind, timestamps, fastOpen)
	}
	if svc.TOA && p.End > p.Payload {
		w.b.desc[i].Len = uint32(nat.CutSYN(frame, p)) // its data
	}
	if svc.MSSClamp != 0 {
		nat.ClampMSS(w.frame(i), p, w.mssLimit(e, svc, 0))
	}
}

// scanSYN is packet.ScanSYN of p, or of what is no SYN as if it had no options.
func scanSYN(frame []byte, p *packet.Packet) packet.SYNOptions {
	if p.TCPFlags&packet.SYN == 0 {
		return packet.SYNOptions{Scale: packet.NoScale}
	}
	return packet.ScanSYN(frame, p)
}

// clockDelta is what the timestamps of flow e, which row i's SYN opens, are moved by
// for as long as it lives.
func (w *Worker) clockDelta(i int, e *conntrack.Entry) uint32 {
	dir := &w.snap.Directory
	first := packet.ScanOptions(w.frame(i), &w.b.pkt[i]).TSVal
	return w.isn.Timestamp(dir.Locals[e.Local], dir.Backends[e.Backend].Addr, w.nanos) - first
}

// leaveRoom lowers the MSS in a SYN-ACK by what the client's segments will grow
// by on their way, and to the service's limit.
func (w *Worker) leaveRoom(frame []byte, p *packet.Packet, e *conntrack.Entry, svc *Service) {
	more := w.growth(e, svc)
	cut := uint16(more)
	if translated(e) {
		cut = nat.MSSCut64(cut)
	}
	if cut > 0 {
		nat.LowerMSS(frame, p, cut)
	}
	if svc.MSSClamp != 0 {
		nat.ClampMSS(frame, p, w.mssLimit(e, svc, more))
	}
}

// mssLimit is the longest segment that may be announced to one end of flow e, if
// what the other end then sends grows by more bytes on its way to the server.
func (w *Worker) mssLimit(e *conntrack.Entry, svc *Service, more int) uint16 {
	limit := int(svc.MSSClamp) - more
	if svc.MSSClamp == ClampToMTU {
		server := w.segmentTo(w.snap.Directory.Backends[e.Backend].Addr, e.Flags&conntrack.V6Server == 0)
		limit = min(w.segmentTo(e.Client, e.Client.Is4()), server-more-w.overhead(e, svc))
	}
	return uint16(max(limit, 0))
}

// segmentTo is the longest TCP segment, without its bare header, that fits the MTU
// of the next hop to an address in a packet of either family; without a way it is the
// longest there can be.
func (w *Worker) segmentTo(a packet.Addr, v4 bool) int {
	mtu := int(w.routes.Hop(w.routes.Lookup(a)).MTU)
	if mtu == 0 {
		mtu = 0xffff
	}
	if v4 {
		return mtu - packet.IPv4MinLen - packet.TCPMinLen
	}
	return mtu - packet.IPv6Len - packet.TCPMinLen
}

// insertTOA grows the packet at its front, to mtu at most. One that is full up
// goes on without the option, as in DPVS (a later one of the same handshake
// carries it again), or goes no further: as the service has it. Every outcome is
// counted.
func (w *Worker) insertTOA(i int, e *conntrack.Entry, svc *Service, mtu int) Verdict {
	p := &w.b.pkt[i]
	res := nat.TOANoRoom // as for a first fragment, which must keep its length
	if !w.frags.first {
		chunk, off := w.chunk(i)
		var n int
		off, n, res = nat.InsertTOA(chunk, off, int(w.b.desc[i].Len), p, e, svc.TOAKind, mtu)
		w.moved(i, off, n)
	}
	w.count.TOA[res]++
	switch {
	case res == nat.TOAInserted, !svc.TOAOnly:
		return Forwarded
	case res == nat.TOATooBig:
		return w.tooBig(i, p.Dst, mtu-int(nat.TOALen(e)))
	}
	return DropTOA
}

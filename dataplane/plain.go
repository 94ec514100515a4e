package dataplane

import (
	"unsafe"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// way is all that a worker needs to know of a backend to send plain packets to it
// and from it, in one cache line. It says what the snapshot says, but for the hop,
// which is remembered as long as the routes are of that generation.
type way struct {
	nat.Fixed
	gen     uint32
	id      route.HopID
	plain   bool   // the service is one that plain knows
	toa     bool   // tell the client's address by TOA
	strict  bool   // the service's checks are conntrack.ChecksStrict
	timeout uint32 // of Established or UDPTwoWay, in ticks
	oneWay  uint32 // of UDPOneWay
}

var _ [64 - unsafe.Sizeof(way{})]byte

// wayTo is the way to a backend of service id.
func (s *Snapshot) wayTo(backend, id uint32) way {
	svc, vip, server := &s.Services[id], &s.Directory.Services[id], &s.Directory.Backends[backend]
	w := way{
		Fixed:   nat.Fixed{Addr: [2]packet.Addr{server.Addr, vip.Addr}, Port: [2]uint16{server.Port, vip.Port}},
		plain:   !s.KeepTTL && svc.Proxy == nat.NoProxy && svc.Timestamps != nat.TSTranslate && svc.TOAKind != packet.OptTimestamps,
		toa:     svc.TOA,
		strict:  svc.Policy.Checks == conntrack.ChecksStrict,
		timeout: svc.Policy.Timeouts[conntrack.UDPTwoWay],
		oneWay:  svc.Policy.Timeouts[conntrack.UDPOneWay],
	}
	if server.Proto == packet.ProtoTCP {
		w.timeout = svc.Policy.Timeouts[conntrack.Established]
	}
	return w
}

// undecided is plain's word for packets that it does not know.
const undecided = own + 1

// plain forwards row i, of flow r in direction d, if it is what nearly all packets
// are: TCP without flags that could change the state, without options that could
// have to change, or a datagram, to be sent as it is by a way that is known. It does
// what forward and reply do, in far fewer steps, and they do it for all others:
// undecided means that it has changed nothing.
func (w *Worker) plain(i int, r conntrack.Ref, d conntrack.Dir) Verdict {
	p, e := &w.b.pkt[i], w.table.Entry(r)
	d &= 1
	if uint64(e.Backend) >= uint64(len(w.ways)) || int(e.Local) >= len(w.locals) {
		return undecided
	}
	to := &w.ways[e.Backend]
	id := to.id ^ (to.id^route.HopID(e.HopID))&-route.HopID(d)
	gen := to.gen ^ (to.gen^e.HopGen)&-uint32(d)
	if gen != w.routes.Gen || int(id) >= len(w.hops) {
		return undecided
	}
	hop := &w.hops[id]
	q := w.out[hop.Port&(MaxNICs-1)]
	n := p.IPLen()
	if q == nil || hop.State != route.Resolved || n > int(hop.MTU) || !to.plain {
		return undecided
	}
	h := w.headers(i, p)
	if !w.untouched(i, p, e, h) || !w.table.TrackPlain(r, d, p, w.tick, to.timeout, to.oneWay, to.strict) {
		return undecided
	}
	if (e.Flags&conntrack.ServerAcked == 0 || p.Ack == e.ServerNext) && to.toa && d == conntrack.Forward && nat.TOANeeded(e, p) {
		if v := w.insertTOA(i, e, &w.snap.Services[e.Service], int(hop.MTU)); v != Forwarded {
			return v
		}
		h = w.headers(i, p)
	}
	w.here.Backends[e.Backend].sent(d, n)
	own, ports := nat.PlainEnds(e, d, &to.Fixed, &w.locals[e.Local])
	if p.V6 {
		nat.PlainIPv6(h, d, own, to.Addr[d])
		h = h[packet.IPv6Len:]
	} else {
		nat.PlainIPv4(h, e, d, own, to.Addr[d])
		h = h[packet.IPv4MinLen:]
	}
	if p.Kind == packet.KindTCP {
		nat.PlainTCP(h, e, d, ports, p.Seq^(p.Seq^p.Ack)&-uint32(d))
	} else {
		nat.PlainUDP(h, e, d, ports)
	}
	return w.put(i, q, hop, Forwarded+Verdict(d))
}

// headers is row i's bytes from its IP header on, as many as the longest headers of
// plain packets have.
func (w *Worker) headers(i int, p *packet.Packet) []byte {
	const most = packet.IPv6Len + packet.TCPMinLen
	ip := w.b.desc[i].Addr + uint64(p.L3)
	return w.umem[ip : ip+most : ip+most]
}

// untouched reports whether p, a packet of flow e whose headers are h, has nothing
// that anybody would want to change or answer: no options, a TTL left, one family.
func (w *Worker) untouched(i int, p *packet.Packet, e *conntrack.Entry, h []byte) bool {
	families := e.Flags & (conntrack.V6Client | conntrack.V6Server)
	if p.V6 {
		if families != conntrack.V6Client|conntrack.V6Server || p.L4-p.L3 != packet.IPv6Len || h[packet.IPv6HopLimit] <= 1 {
			return false
		}
	} else if families != 0 || p.L4-p.L3 != packet.IPv4MinLen || h[packet.IPv4TTL] <= 1 {
		return false
	}
	return p.Kind == packet.KindUDP || nat.PlainOptions(w.frame(i), p)
}

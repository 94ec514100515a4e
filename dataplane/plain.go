package dataplane

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// way is all that a worker needs to know of a backend to send plain packets to it
// and from it, in one cache line. It says what the snapshot says, but for the hop,
// which is remembered as long as the routes are of that generation.
type way struct {
	// By direction, what a client's packet is sent to, which is the real server, and
	// what a reply comes from, which is the VIP.
	addr    [2]packet.Addr
	port    [2]uint16
	gen     uint32
	timeout uint32 // of Established or UDPTwoWay, in ticks
	oneWay  uint32 // of UDPOneWay
	id      route.HopID
	plain   bool // the service is one that plain knows
	toa     bool // tell the client's address by TOA
	strict  bool // the service's checks are conntrack.ChecksStrict
	count   *BackendCount
}

var _ [64 - unsafe.Sizeof(way{})]byte

// wayTo is the way to a backend of service id.
func (s *Snapshot) wayTo(backend, id uint32) way {
	svc, vip, server := &s.Services[id], &s.Directory.Services[id], &s.Directory.Backends[backend]
	w := way{
		addr:    [2]packet.Addr{server.Addr, vip.Addr},
		port:    [2]uint16{server.Port, vip.Port},
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
	if q == nil || hop.State != route.Resolved || p.IPLen() > int(hop.MTU) || !to.plain {
		return undecided
	}
	h := w.headers(i, p)
	families, length, ttl := conntrack.Flags(0), uint16(packet.IPv4MinLen), h[route.VLANLen+packet.IPv4TTL]
	if p.V6 {
		families, length, ttl = conntrack.V6Client|conntrack.V6Server, packet.IPv6Len, h[route.VLANLen+packet.IPv6HopLimit]
	}
	if ttl <= 1 || p.L4-p.L3 != length || e.Flags&(conntrack.V6Client|conntrack.V6Server) != families {
		return undecided
	}
	timeout := to.timeout
	if p.Kind == packet.KindUDP {
		if !e.Answered() {
			if !w.table.Unanswered(e, d) {
				return undecided
			}
			timeout = to.oneWay
		}
	} else {
		if !e.Plain(p) || p.Payload-p.L4 != packet.TCPMinLen && !nat.PlainOptions(w.frame(i), p) {
			return undecided
		}
		me, peer := &e.Win[d], &e.Win[d^1]
		ack := p.Ack - e.SeqDelta&-uint32(d) // only a server's is of moved numbers
		end := p.Seq + uint32(p.End-p.Payload)
		switch {
		case me.Follows(peer, p.Seq, ack):
			me.End, peer.Acked = end, ack
			me.MaxWin = max(me.MaxWin, e.Window(d, p))
		case me.Admits(peer, p.Seq, end) && peer.Covers(me, ack):
			me.Send(end, e.Window(d, p))
			peer.Acknowledge(ack)
		case to.strict:
			return undecided
		default:
			ack = e.ServerNext // believe nothing
		}
		if e.Flags&conntrack.ServerAcked == 0 && d == conntrack.Forward {
			e.NoteServerAcked(ack)
		}
	}
	w.table.PutOff(r, e, w.tick+timeout)
	n := p.IPLen() // as received, without TOA
	e.Packets[d]++
	e.Bytes[d] += uint64(n)
	if to.toa && d == conntrack.Forward && (e.Flags&conntrack.ServerAcked == 0 || p.Ack == e.ServerNext) && nat.TOANeeded(e, p) {
		if v := w.insertTOA(i, e, &w.snap.Services[e.Service], int(hop.MTU)); v != Forwarded {
			return v
		}
		h = w.headers(i, p)
	}
	to.count.sent(d, n)
	return w.sendPlain(i, p, e, d, to, hop, q, h)
}

// sendPlain rewrites row i, which is plain and whose headers are at h, and queues it
// on q.
func (w *Worker) sendPlain(i int, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir, to *way, hop *route.Hop, q *queue, h *plainHeaders) Verdict {
	d &= 1
	rest := (*[packet.IPv6Len + packet.TCPMinLen]byte)(h[route.VLANLen:])
	own, ports := nat.PlainEnds(e, d, &w.locals[e.Local], to.port[d])
	etherType := uint16(route.EtherIPv4)
	t := (*[packet.TCPMinLen]byte)(rest[packet.IPv4MinLen:])
	if p.V6 {
		etherType = route.EtherIPv6
		nat.PlainIPv6((*[packet.IPv6Len]byte)(rest[:]), d, own, to.addr[d])
		t = (*[packet.TCPMinLen]byte)(rest[packet.IPv6Len:])
	} else {
		nat.PlainIPv4((*[packet.IPv4MinLen]byte)(rest[:]), e, d, own, to.addr[d])
	}
	if diff := e.PortSum ^ -uint16(d); p.Kind == packet.KindTCP {
		was := p.Seq ^ (p.Seq^p.Ack)&-uint32(d)
		nat.PlainTCP(t, d, ports, was, nat.PlainNumber(e, d, was), diff)
	} else {
		nat.PlainUDP((*[packet.UDPLen]byte)(t[:]), ports, diff)
	}
	hop.PutBefore((*[route.VLANLen]byte)(h[:]), etherType)
	at := w.b.desc[i].Addr + uint64(p.L3) - uint64(hop.HeaderLen)
	size := uint64(hop.HeaderLen) + uint64(p.End-p.L3)
	k, done := q.n, Forwarded+Verdict(d)
	if size < minFrame || uint(k) >= uint(len(q.out)) {
		return w.enqueue(q, at, size, done)
	}
	q.out[k] = unix.XDPDesc{Addr: at, Len: uint32(size)}
	q.done[k] = done
	q.n = k + 1
	return done
}

// plainHeaders is room for the next hop's Ethernet header, and the longest headers
// behind it that a plain packet has.
type plainHeaders [route.VLANLen + packet.IPv6Len + packet.TCPMinLen]byte

// headers is row i's frame around the beginning of its IP header.
func (w *Worker) headers(i int, p *packet.Packet) *plainHeaders {
	return (*plainHeaders)(w.umem[w.b.desc[i].Addr+uint64(p.L3)-route.VLANLen:])
}

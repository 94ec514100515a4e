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
	header  uint8 // length of an IP header without options, 0 if the service is none that plain knows itself
	ttlAt   uint8 // where the TTL is in it, or the hop limit
	toa     bool  // tell the client's address by TOA
	kind    uint8 // of TOA; with UOA, how many datagrams of a flow bear it
	strict  bool  // the service's checks are conntrack.ChecksStrict
	marks   marks
	count   *BackendCount
}

var _ [64 - unsafe.Sizeof(way{})]byte

// marks are what is special about a backend.
type marks uint8

const (
	told        marks = 1 << iota // how many flows it has is told to others, see Worker.tell
	left                          // its service has it no more, or is gone, see Worker.orphaned
	cids                          // its service routes by connection ID, see Worker.misrouted
	names                         // its service tells clients' addresses by UOA
	clientsOnly                   // only clients' packets come by, and plainOneWay knows them
	direct                        // the server answers past us, and
	tunnelled                     // is reached by a tunnel
)

// wayTo is the way to a backend of service id, which it serves or used to.
func (s *Snapshot) wayTo(backend, id uint32, serves bool) way {
	svc, vip, server := &s.Services[id], &s.Directory.Services[id], &s.Directory.Backends[backend]
	w := way{
		addr:    [2]packet.Addr{server.Addr, vip.Addr},
		port:    [2]uint16{server.Port, vip.Port},
		toa:     svc.TOA,
		kind:    svc.TOAKind,
		strict:  svc.Policy.Checks == conntrack.ChecksStrict,
		timeout: svc.Policy.Timeouts[conntrack.UDPTwoWay],
		oneWay:  svc.Policy.Timeouts[conntrack.UDPOneWay],
	}
	if svc.looks {
		w.marks |= told
	}
	if !serves {
		w.marks |= left
	}
	if svc.Set != nil && svc.quic != nil {
		w.marks |= cids
	}
	if svc.UOA != nat.NoUOA {
		w.marks |= names
		w.kind = svc.UOADatagrams
	}
	if server.Proto == packet.ProtoTCP {
		w.timeout = svc.Policy.Timeouts[conntrack.Established]
	}
	v4 := vip.Addr.Is4()
	same := v4 == server.Addr.Is4() && !s.KeepTTL && svc.Proxy == nat.NoProxy && svc.Timestamps != nat.TSTranslate
	switch {
	case svc.TOAKind == packet.OptTimestamps || w.marks&left != 0:
	case svc.Mode.OneWay():
		w.marks |= s.plainOneWay(svc, same)
	case !same:
	case v4:
		w.header = packet.IPv4MinLen
	default:
		w.header = packet.IPv6Len
	}
	if w.ttlAt = packet.IPv4TTL; !v4 {
		w.ttlAt = packet.IPv6HopLimit
	}
	return w
}

// noWay and noHop are those of ids that mean nothing: they lead nowhere.
var (
	noWay way
	noHop route.Hop
)

// undecided is plain's word for packets that it does not know.
const undecided = own + 1

// plain forwards row i, p, of flow e in direction d, if it is what nearly all packets
// are: TCP without flags that could change the state, without options that could
// have to change, or a datagram, to be sent as it is by a way that is known. It does
// what forward and reply do, in far fewer steps, and they do it for all others:
// undecided means that it has changed nothing.
//
// Whatever calls a function is the end of it: what had to be kept over a call would be
// stored by every packet, and be loaded again.
func (w *Worker) plain(i int, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir) Verdict {
	to, hop := &noWay, &noHop
	if uint64(e.Backend) < uint64(len(w.ways)) {
		to = &w.ways[e.Backend]
	}
	id, gen, clientGen := to.id^(to.id^route.HopID(e.HopID))&-route.HopID(d), to.gen, e.HopGen
	if d != conntrack.Forward {
		gen = clientGen
	}
	if int(id) < len(w.hops) {
		hop = &w.hops[id]
	}
	q, n := w.out[hop.Port&(MaxNICs-1)], p.IPLen() // as received, without TOA
	if d > conntrack.Reply || int(e.Local) >= len(w.locals) || gen != w.routes.Gen || q == nil ||
		hop.State != route.Resolved || n > int(hop.MTU) {
		return undecided
	}
	if p.L4-p.L3 != uint16(to.header) {
		return w.plainOneWay(i, p, e, to, hop, q)
	}
	at := w.headersAt(i, p)
	h := w.headers(at)
	if h[route.VLANLen+to.ttlAt&15] <= 1 {
		return undecided
	}
	timeout := to.timeout
	if p.Kind == packet.KindUDP {
		if to.marks&(cids|names) != 0 && d == conntrack.Forward {
			return w.plainDatagram(i, p, e, to, hop, q)
		}
		if !e.Answered() {
			if !w.table.Unanswered(e, d) {
				return undecided
			}
			timeout = to.oneWay
		}
	}
	deadline := w.tick + timeout
	if !e.CanPutOff(deadline) {
		return undecided
	}
	if p.Kind != packet.KindUDP {
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
	e.Expires = deadline
	e.Packets[d]++
	e.Bytes[d] += uint64(n)
	if to.toa && d == conntrack.Forward && (e.Flags&conntrack.ServerAcked == 0 || p.Ack == e.ServerNext) && nat.TOANeeded(e, p) {
		return w.plainTOA(i, p, e, to, hop, q)
	}
	to.count.sent(d, n)
	return w.sendPlain(at, p, e, d, to, hop, q, h)
}

// plainTOA is the end of plain for row i, a client's packet that bears TOA.
func (w *Worker) plainTOA(i int, p *packet.Packet, e *conntrack.Entry, to *way, hop *route.Hop, q *queue) Verdict {
	at, n := w.headersAt(i, p), p.IPLen()
	// No more options than nat.PlainOptions knows always leave room in the TCP header.
	if p.V6 || n > int(hop.MTU)-nat.PlainTOALen || at&(w.frameSize-1) < nat.PlainTOALen {
		if v := w.insertTOA(i, e, &w.snap.Services[e.Service], int(hop.MTU)); v != Forwarded {
			return v
		}
		at = w.headersAt(i, p)
		to.count.sent(conntrack.Forward, n)
		return w.sendPlain(at, p, e, conntrack.Forward, to, hop, q, w.headers(at))
	}
	// The row stays as it is: nobody looks at it again.
	at -= nat.PlainTOALen
	h := w.headers(at)
	nat.PlainTOA((*[nat.PlainTOALen + packet.IPv4MinLen + packet.TCPMinLen]byte)(h[route.VLANLen:]), e, to.kind)
	p.End += nat.PlainTOALen
	w.count.TOA[nat.TOAInserted]++
	to.count.sent(conntrack.Forward, n)
	return w.sendPlain(at, p, e, conntrack.Forward, to, hop, q, h)
}

// plainDatagram is the rest of plain for row i, a client's datagram to a service that
// routes by connection ID or tells clients' addresses by UOA.
func (w *Worker) plainDatagram(i int, p *packet.Packet, e *conntrack.Entry, to *way, hop *route.Hop, q *queue) Verdict {
	if to.marks&names != 0 && e.Packets[conntrack.Forward] < uint32(to.kind) {
		return undecided // it bears UOA
	}
	if to.marks&cids != 0 && w.misrouted(i, e) {
		return undecided
	}
	timeout := to.timeout
	if !e.Answered() {
		if !w.table.Unanswered(e, conntrack.Forward) {
			return undecided
		}
		timeout = to.oneWay
	}
	deadline := w.tick + timeout
	if !e.CanPutOff(deadline) {
		return undecided
	}
	at, n := w.headersAt(i, p), p.IPLen()
	e.Expires = deadline
	e.Packets[conntrack.Forward]++
	e.Bytes[conntrack.Forward] += uint64(n)
	to.count.sent(conntrack.Forward, n)
	return w.sendPlain(at, p, e, conntrack.Forward, to, hop, q, w.headers(at))
}

// sendAsPlain is the end of forward and reply for row i, TCP, if it is to be rewritten as
// plain packets are; undecided means that it is not. ipLen is as received.
func (w *Worker) sendAsPlain(i int, e *conntrack.Entry, d conntrack.Dir, hop *route.Hop, ipLen int) Verdict {
	p, to, q := &w.b.pkt[i], &w.ways[e.Backend], w.out[hop.Port&(MaxNICs-1)]
	switch {
	case p.Kind != packet.KindTCP || p.L4-p.L3 != uint16(to.header) || q == nil || p.IPLen() > int(hop.MTU) || w.frags.first,
		// A server's segment may acknowledge nothing, or in blocks.
		d != conntrack.Forward && (p.TCPFlags&packet.ACK == 0 || !nat.PlainOptions(w.frame(i), p)):
		return undecided
	}
	to.count.sent(d, ipLen)
	at := w.headersAt(i, p)
	return w.sendPlain(at, p, e, d, to, hop, q, w.headers(at))
}

// sendPlain rewrites p, which is plain and whose headers h are at at in the UMEM, and
// queues it on q.
func (w *Worker) sendPlain(at uint64, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir, to *way, hop *route.Hop, q *queue, h *plainHeaders) Verdict {
	if d > conntrack.Reply {
		return undecided
	}
	rest := (*[packet.IPv6Len + packet.TCPMinLen]byte)(h[route.VLANLen:])
	local, etherType := &w.locals[e.Local], uint16(route.EtherIPv4)
	lo, port, client, clientPort := local.Lo, e.LocalPort, e.Client.Lo, e.ClientPort
	if uint8(d)|uint8(e.Mode) != 0 {
		lo, port = client, clientPort
	}
	t := (*[packet.TCPMinLen]byte)(rest[packet.IPv4MinLen:])
	if p.V6 {
		etherType = route.EtherIPv6
		hi, client := local.Hi, e.Client.Hi
		if uint8(d)|uint8(e.Mode) != 0 {
			hi = client
		}
		nat.PlainIPv6((*[packet.IPv6Len]byte)(rest[:]), d, packet.Addr{Hi: hi, Lo: lo}, to.addr[d])
		t = (*[packet.TCPMinLen]byte)(rest[packet.IPv6Len:])
	} else {
		nat.PlainIPv4((*[packet.IPv4MinLen]byte)(rest[:]), e, d, lo, to.addr[d].Lo)
	}
	ports := nat.PlainPorts(d, port, to.port[d])
	if diff := e.PortSum ^ -uint16(d); p.Kind == packet.KindTCP {
		was, ack := p.Seq, p.Ack
		if d != conntrack.Forward {
			was = ack
		}
		nat.PlainTCP(t, d, ports, was, nat.PlainNumber(e, d, was), diff)
	} else {
		nat.PlainUDP((*[packet.UDPLen]byte)(t[:]), ports, diff)
	}
	hop.PutBefore((*[route.VLANLen]byte)(h[:]), etherType)
	at += route.VLANLen - uint64(hop.HeaderLen)
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

// headersAt is where in the UMEM row i's plainHeaders are, around the beginning of its
// IP header.
func (w *Worker) headersAt(i int, p *packet.Packet) uint64 {
	return w.b.desc[i].Addr + uint64(p.L3) - route.VLANLen
}

func (w *Worker) headers(at uint64) *plainHeaders {
	end := at + uint64(len(plainHeaders{}))
	return (*plainHeaders)(w.umem[at:end:end])
}

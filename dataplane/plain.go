package dataplane

import (
	"encoding/binary"
	"math/bits"
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
	return w
}

// undecided is the word of rarely and its like for packets that they do not know.
const undecided = own + 1

// client and server are the two who send, v4 and v6 the families: for each pair of them
// the compiler makes a plain of its own, in which what depends on them is settled, by no
// branch that a processor had to foretell.
type (
	client [conntrack.Forward]struct{}
	server [conntrack.Reply]struct{}
	sender interface{ client | server }
	v4     [packet.IPv4MinLen]struct{}
	v6     [packet.IPv6Len]struct{}
	family interface{ v4 | v6 }
)

// plain forwards the packets at the places rows[at:] of b.look, which S may have sent by
// F, as far as they are what nearly all packets are: TCP without flags that could change
// the state, without options that could have to change, or a datagram, of the flow that
// was found, to be sent as it is by a way that is known. It does what forward and reply
// do, in far fewer steps, and they do it for all others: at the first one that it does not
// know it stops, having changed nothing of it, and returns where that is. If toa is set
// that one has been tracked, too, and is plainTOA's: it bears TOA.
//
// It is one loop, as long as it is, because what has to be kept over a call that every
// packet makes is stored by every packet, and loaded again. Only TOA is called.
func plain[S sender, F family](w *Worker, rows []uint8, at int) (next int, toa bool) {
	d, ipLen := conntrack.Dir(len(*new(S))), len(*new(F))
	b, t := &w.b, w.table
	for ; at < len(rows); at++ {
		k := rows[at] % BurstSize
		ip, e := b.ip[k], t.Entry(b.look.Found[k].Ref())
		if ipLen == packet.IPv6Len {
			ip ^= isV6
		}
		if int64(ip) <= 0 || uint64(e.Backend) >= uint64(len(w.ways)) {
			break
		}
		to := &w.ways[e.Backend]
		id, gen := to.id, to.gen
		if d != conntrack.Forward {
			id, gen = route.HopID(e.HopID), e.HopGen
		}
		if int(id) >= len(w.hops) || int(e.Local) >= len(w.locals) || gen != w.routes.Gen || int(to.header) != ipLen {
			break
		}
		hop, local, h := &w.hops[id], &w.locals[e.Local], headersIn(w.umem, ip)
		src, dst, srcPort, dstPort := &e.Client, &to.addr[conntrack.Reply], e.ClientPort, to.port[conntrack.Reply]
		own, ownPort := &e.Client, e.ClientPort
		if d == conntrack.Forward {
			if e.Mode == conntrack.FullNAT {
				own, ownPort = local, e.LocalPort
			}
		} else {
			src, srcPort, dst, dstPort = &to.addr[conntrack.Forward], to.port[conntrack.Forward], &e.Client, e.ClientPort
			if e.Mode == conntrack.FullNAT {
				dst, dstPort = local, e.LocalPort
			}
		}
		var n, ttl int
		var same bool
		if ipLen == packet.IPv4MinLen {
			p := (*[packet.IPv4MinLen + 4]byte)(h[route.VLANLen:])
			same = binary.BigEndian.Uint64(p[packet.IPv4Src:]) == src.Lo<<32|dst.Lo&0xffffffff &&
				binary.BigEndian.Uint32(p[packet.IPv4MinLen:]) == uint32(srcPort)<<16|uint32(dstPort) && p[packet.IPv4Proto] == e.Proto
			n, ttl = int(binary.BigEndian.Uint16(p[packet.IPv4TotalLen:])), int(p[packet.IPv4TTL])
		} else {
			p := (*[packet.IPv6Len + 4]byte)(h[route.VLANLen:])
			same = binary.BigEndian.Uint64(p[packet.IPv6Src:]) == src.Hi && binary.BigEndian.Uint64(p[packet.IPv6Src+8:]) == src.Lo &&
				binary.BigEndian.Uint64(p[packet.IPv6Dst:]) == dst.Hi && binary.BigEndian.Uint64(p[packet.IPv6Dst+8:]) == dst.Lo &&
				binary.BigEndian.Uint32(p[packet.IPv6Len:]) == uint32(srcPort)<<16|uint32(dstPort) && p[packet.IPv6NextHeader] == e.Proto
			n, ttl = packet.IPv6Len+int(binary.BigEndian.Uint16(p[packet.IPv6PayloadLen:])), int(p[packet.IPv6HopLimit])
		}
		q := w.out[hop.Port&(MaxNICs-1)]
		if !same || e.Mode > conntrack.DNAT || n > int(hop.MTU) || ttl <= 1 || q == nil || hop.State != route.Resolved || uint(q.n) >= uint(len(q.out)) {
			break
		}
		l4 := (*[packet.TCPMinLen + 4]byte)(h[route.VLANLen+ipLen:])
		ports := bits.RotateLeft32(uint32(ownPort)<<16|uint32(to.port[d]), int(d)*16)
		deadline, grown := w.tick+to.timeout, 0
		if e.Proto == packet.ProtoTCP {
			end, ok := plainSegment(l4, n-ipLen)
			if !ok || !e.Steady() || !e.CanPutOff(deadline) {
				break
			}
			me, peer := &e.Win[d], &e.Win[d^1]
			seq, ack := binary.BigEndian.Uint32(l4[packet.TCPSeq:]), binary.BigEndian.Uint32(l4[packet.TCPAck:])
			was, is := seq, seq+e.SeqDelta
			if d != conntrack.Forward {
				was, ack = ack, ack-e.SeqDelta // a server's is of moved numbers
				is = ack
			}
			acked := ack
			win := e.Scaled(d, binary.BigEndian.Uint16(l4[packet.TCPWindow:]))
			end += seq
			switch {
			case me.Follows(peer, seq, ack):
				me.End, peer.Acked = end, ack
				me.MaxWin = max(me.MaxWin, win)
			case me.Admits(peer, seq, end) && peer.Covers(me, ack):
				me.Send(end, win)
				peer.Acknowledge(ack)
			case to.strict:
				return at, false
			default:
				acked = e.ServerNext // believe nothing
			}
			if d == conntrack.Forward {
				if e.Flags&conntrack.ServerAcked == 0 {
					e.NoteServerAcked(acked)
				}
				toa = to.toa && nat.TOADue(e, ack)
			}
			// No more options than plain knows always leave room in the TCP header.
			if toa && ipLen == packet.IPv4MinLen && n+nat.PlainTOALen <= int(hop.MTU) && (ip-route.VLANLen)&(w.frameSize-1) >= nat.PlainTOALen {
				toa, grown = false, nat.PlainTOALen
				ip -= nat.PlainTOALen
				h = headersIn(w.umem, ip)
				l4 = (*[packet.TCPMinLen + 4]byte)(h[route.VLANLen+ipLen:])
				nat.PlainTOA((*[nat.PlainTOALen + packet.IPv4MinLen + packet.TCPMinLen]byte)(h[route.VLANLen:]), e, to.kind)
				w.count.TOA[nat.TOAInserted]++
			}
			if !toa {
				nat.PlainTCP((*[packet.TCPMinLen]byte)(l4[:]), d, ports, was, is, e.PortSum^-uint16(d))
			}
		} else {
			if d == conntrack.Forward && to.marks&(cids|names) != 0 || !h.wholeUDP(n, ipLen) {
				break
			}
			if !e.Answered() {
				if !t.Unanswered(e, d) {
					break
				}
				deadline = w.tick + to.oneWay
			}
			if !e.CanPutOff(deadline) {
				break
			}
			nat.PlainUDP((*[packet.UDPLen]byte)(l4[:]), ports, e.PortSum^-uint16(d))
		}
		e.Expires = deadline
		e.Packets[d]++
		e.Bytes[d] += uint64(n)
		if toa {
			break
		}
		to.count.sent(d, n)
		if ipLen == packet.IPv4MinLen {
			nat.PlainIPv4((*[packet.IPv4MinLen]byte)(h[route.VLANLen:]), e, d, own.Lo, to.addr[d].Lo)
			hop.PutBefore((*[route.VLANLen]byte)(h[:]), route.EtherIPv4)
		} else {
			nat.PlainIPv6((*[packet.IPv6Len]byte)(h[route.VLANLen:]), d, *own, to.addr[d])
			hop.PutBefore((*[route.VLANLen]byte)(h[:]), route.EtherIPv6)
		}
		size := uint64(n+grown) + uint64(hop.HeaderLen)
		ip -= uint64(hop.HeaderLen)
		if size < minFrame {
			size = w.pad(ip, size)
		}
		if j := uint(q.n); j < uint(len(q.out)) {
			q.out[j] = unix.XDPDesc{Addr: ip, Len: uint32(size)}
			q.done[j] = Forwarded + Verdict(d)
			q.n = int(j) + 1
		}
	}
	return at, toa
}

// pad makes a frame of n bytes at at as long as the shortest that Ethernet has. Whatever
// lies behind it in its chunk is of no use any more.
func (w *Worker) pad(at, n uint64) uint64 {
	const most = 18 // of the shortest datagram, 42 bytes
	b := w.umem[at+n : at+n+most]
	*(*[most]byte)(b) = [most]byte{}
	return minFrame
}

// rarely is plain for the packet at place k of b.look, which has had a glance, and which plain
// does not know. It does know those of which only a client's come by, and those that name
// their connection. undecided means that it has changed nothing.
func (w *Worker) rarely(k int) Verdict {
	c := w.b.look.Found[k%BurstSize]
	e := w.table.Entry(c.Ref())
	ip := w.b.ip[k%BurstSize] &^ isV6
	if c.Dir() != conntrack.Forward || uint64(e.Backend) >= uint64(len(w.ways)) {
		return undecided
	}
	to := &w.ways[e.Backend]
	datagram := e.Proto == packet.ProtoUDP && to.marks&(cids|names) != 0
	if to.header != 0 && !datagram || int(to.id) >= len(w.hops) || to.gen != w.routes.Gen {
		return undecided
	}
	hop := &w.hops[to.id]
	q := w.out[hop.Port&(MaxNICs-1)]
	switch {
	case q == nil || hop.State != route.Resolved:
		return undecided
	case to.header == 0:
		return w.plainOneWay(k, ip, e, to, hop, q)
	}
	return w.plainDatagram(k, ip, e, to, hop, q)
}

// plainTOA is the end of plain for the packet at place k of b.look, which bears TOA that
// plain has no room for, or of IPv6.
func (w *Worker) plainTOA(k int) Verdict {
	p, i := w.parsed(k), int(w.b.look.Packet[k%BurstSize]%BurstSize)
	e, n := w.table.Entry(w.b.look.Found[k%BurstSize].Ref()), p.IPLen()
	to := &w.ways[e.Backend]
	hop := &w.hops[to.id]
	if v := w.insertTOA(i, e, &w.snap.Services[e.Service], int(hop.MTU)); v != Forwarded {
		return v
	}
	to.count.sent(conntrack.Forward, n)
	ip := w.b.desc[i].Addr + uint64(p.L3)
	return sendPlain[client](w, ip, uint64(p.IPLen()), e, to, hop, w.out[hop.Port&(MaxNICs-1)], headersIn(w.umem, ip))
}

// plainDatagram is plain for the packet at place k of b.look, at ip, that may be of e, if it
// is a client's datagram to a service that routes by connection ID or tells clients'
// addresses by UOA.
func (w *Worker) plainDatagram(k int, ip uint64, e *conntrack.Entry, to *way, hop *route.Hop, q *queue) Verdict {
	if to.marks&names != 0 && e.Packets[conntrack.Forward] < uint32(to.kind) {
		return undecided // it bears UOA
	}
	h := headersIn(w.umem, ip)
	n, l4, ttl := h.whole()
	if l4 != int(to.header) || !h.fromClient(e, to, l4) || !h.wholeUDP(n, l4) || n > int(hop.MTU) || ttl <= 1 || e.Mode > conntrack.DNAT {
		return undecided
	}
	if to.marks&cids != 0 {
		w.parsed(k)
		if w.misrouted(int(w.b.look.Packet[k%BurstSize]%BurstSize), e) {
			return undecided
		}
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
	e.Expires = deadline
	e.Packets[conntrack.Forward]++
	e.Bytes[conntrack.Forward] += uint64(n)
	to.count.sent(conntrack.Forward, n)
	return sendPlain[client](w, ip, uint64(n), e, to, hop, q, h)
}

// sendAsPlain is the end of forward and reply for row i, TCP, if it is to be rewritten as
// plain packets are; undecided means that it is not. ipLen is as received. A server's
// packet has no options that are to be rewritten.
func (w *Worker) sendAsPlain(i int, e *conntrack.Entry, d conntrack.Dir, hop *route.Hop, ipLen int) Verdict {
	p, to, q := &w.b.pkt[i], &w.ways[e.Backend], w.out[hop.Port&(MaxNICs-1)]
	switch {
	case p.Kind != packet.KindTCP || p.L4-p.L3 != uint16(to.header) || q == nil || p.IPLen() > int(hop.MTU) || w.frags.first,
		d != conntrack.Forward && p.TCPFlags&packet.ACK == 0: // it acknowledges nothing
		return undecided
	}
	to.count.sent(d, ipLen)
	ip := w.b.desc[i].Addr + uint64(p.L3)
	if d == conntrack.Forward {
		return sendPlain[client](w, ip, uint64(p.IPLen()), e, to, hop, q, headersIn(w.umem, ip))
	}
	return sendPlain[server](w, ip, uint64(p.IPLen()), e, to, hop, q, headersIn(w.umem, ip))
}

// sendPlain rewrites the packet of n bytes at ip in the UMEM, which is plain and whose
// headers are h, and queues it on q.
func sendPlain[S sender](w *Worker, ip, n uint64, e *conntrack.Entry, to *way, hop *route.Hop, q *queue, h *plainHeaders) Verdict {
	d := conntrack.Dir(len(*new(S)))
	rest := (*[packet.IPv6Len + packet.TCPMinLen]byte)(h[route.VLANLen:])
	own, port := &e.Client, e.ClientPort
	if d == conntrack.Forward && e.Mode == conntrack.FullNAT {
		own, port = &w.locals[e.Local], e.LocalPort
	}
	etherType := uint16(route.EtherIPv4)
	t := (*[packet.TCPMinLen]byte)(rest[packet.IPv4MinLen:])
	if rest[0]>>4 == 6 {
		etherType = route.EtherIPv6
		nat.PlainIPv6((*[packet.IPv6Len]byte)(rest[:]), d, *own, to.addr[d])
		t = (*[packet.TCPMinLen]byte)(rest[packet.IPv6Len:])
	} else {
		nat.PlainIPv4((*[packet.IPv4MinLen]byte)(rest[:]), e, d, own.Lo, to.addr[d].Lo)
	}
	ports := nat.PlainPorts(d, port, to.port[d])
	if diff := e.PortSum ^ -uint16(d); e.Proto == packet.ProtoTCP {
		was := binary.BigEndian.Uint32(t[packet.TCPSeq+int(d)*4:])
		nat.PlainTCP(t, d, ports, was, nat.PlainNumber(e, d, was), diff)
	} else {
		nat.PlainUDP((*[packet.UDPLen]byte)(t[:]), ports, diff)
	}
	hop.PutBefore((*[route.VLANLen]byte)(h[:]), etherType)
	ip -= uint64(hop.HeaderLen)
	n += uint64(hop.HeaderLen)
	k, done := q.n, Forwarded+Verdict(d)
	if n < minFrame || uint(k) >= uint(len(q.out)) {
		return w.enqueue(q, ip, n, done)
	}
	q.out[k] = unix.XDPDesc{Addr: ip, Len: uint32(n)}
	q.done[k] = done
	q.n = k + 1
	return done
}

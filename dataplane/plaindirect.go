package dataplane

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// directHead is what a way does not say of a backend with direct return, as the first
// packet found it that direct sent there by these routes.
type directHead struct {
	routes uint32 // w.routesSeen then; 0 is never
	// Of a tunnel's packets, what lies between the Ethernet header and the client's.
	tunnel nat.TunnelHead
}

var _ [128 - unsafe.Sizeof(directHead{})]byte

// noHead is that of ids that mean nothing.
var noHead directHead

// plainOneWay is what a way to a backend of svc is marked by if plainOneWay knows its
// packets. same says that what else rewrites addresses need know no more of them.
func (s *Snapshot) plainOneWay(svc *Service, same bool) marks {
	switch {
	case svc.Mode == conntrack.DNATOneWay:
		if same && !svc.TOA {
			return clientsOnly
		}
	case s.KeepTTL:
	case svc.Tunnel.Kind == nat.NoTunnel:
		return clientsOnly | direct
	default:
		return clientsOnly | direct | tunnelled
	}
	return 0
}

// fillHead fills in the directHead of backend, to which direct sends packets by hop.
func (w *Worker) fillHead(backend uint32, svc *Service, hop *route.Hop, v6 bool) {
	if uint64(backend) >= uint64(len(w.heads)) || w.heads[backend].routes == w.routesSeen {
		return
	}
	h := &w.heads[backend]
	if svc.Tunnel.Kind != nat.NoTunnel {
		o := nat.Outer{Src: svc.Tunnel.Source, Dst: w.snap.Directory.Backends[backend].Addr, MAC: [6]byte(hop.Header[packet.EthSrc:])}
		if o.Src.IsZero() {
			o.Src = w.routes.Source(w.ways[backend].id, o.Dst.Is4())
		}
		var ok bool
		if h.tunnel, ok = svc.Tunnel.Head(&o, v6); !ok {
			return
		}
	}
	h.routes = w.routesSeen
}

// plainOneWay is plain for the packet at place k of b.look, at ip, that may be of e, if only
// a client's packets of it come by: it does what direct does, or forward, for what nearly
// all packets are.
func (w *Worker) plainOneWay(k int, ip uint64, e *conntrack.Entry, to *way, hop *route.Hop, q *queue) Verdict {
	if to.marks&(clientsOnly|left|cids|names) != clientsOnly {
		return undecided
	}
	h := headersIn(w.umem, ip)
	n, l4, ttl := h.whole()
	if !h.fromClient(e, to, l4) || n > int(hop.MTU) || ttl <= 1 {
		return undecided
	}
	head := &noHead
	if uint64(e.Backend) < uint64(len(w.heads)) {
		head = &w.heads[e.Backend]
	}
	switch to.marks & (direct | tunnelled) {
	case direct:
		if head.routes != w.routesSeen || w.cameFrom(int(w.b.look.Packet[k%BurstSize]%BurstSize), hop) {
			return undecided
		}
	case direct | tunnelled:
		if head.routes != w.routesSeen || n+head.tunnel.Len() > int(hop.MTU) ||
			ip&(w.frameSize-1) < route.VLANLen+nat.TunnelHeadLen {
			return undecided
		}
	}
	t := (*[packet.TCPMinLen + 4]byte)(h[route.VLANLen+l4&63:])
	timeout, end := to.timeout, uint32(0)
	if e.Proto == packet.ProtoUDP {
		if !h.wholeUDP(n, l4) || !w.table.Unanswered(e, conntrack.Forward) {
			return undecided
		}
		timeout = to.oneWay
	} else {
		var ok bool
		if end, ok = plainSegment(t, n-l4); !ok || !e.PlainOneWay(binary.BigEndian.Uint32(t[packet.TCPSeq:])) {
			return undecided
		}
		end += binary.BigEndian.Uint32(t[packet.TCPSeq:])
	}
	deadline := w.tick + timeout
	if !e.CanPutOff(deadline) {
		return undecided
	}
	if e.Proto != packet.ProtoUDP {
		e.Win[conntrack.Forward].Extend(end)
	}
	e.Expires = deadline
	e.Packets[conntrack.Forward]++
	e.Bytes[conntrack.Forward] += uint64(n)
	to.count.sent(conntrack.Forward, n)
	switch {
	case to.marks&direct == 0:
		return sendPlain[client](w, ip, uint64(n), e, to, hop, q, h)
	case to.marks&tunnelled != 0:
		return w.sendTunnelled(k, ip, uint64(n), l4, e, to, head, hop, q)
	}
	nat.PlainTTL((*[packet.IPv4MinLen]byte)(h[route.VLANLen:]), l4 == packet.IPv6Len)
	hop.PutBefore((*[route.VLANLen]byte)(h[:]), etherTypeOf(l4 == packet.IPv4MinLen))
	return w.sendFrom(ip, uint64(n), hop, q)
}

// fromClient reports whether the packet is one of e's client's, of a backend that to leads
// to, and of protocol and family as e. l4 is how long its IP header is.
func (h *plainHeaders) fromClient(e *conntrack.Entry, to *way, l4 int) bool {
	vip, b := &to.addr[conntrack.Reply], h[route.VLANLen:]
	ports := uint32(e.ClientPort)<<16 | uint32(to.port[conntrack.Reply])
	if l4 == packet.IPv4MinLen {
		return binary.BigEndian.Uint32(b[packet.IPv4Src:]) == e.Client.V4() && binary.BigEndian.Uint32(b[packet.IPv4Dst:]) == vip.V4() &&
			binary.BigEndian.Uint32(b[l4:]) == ports && b[packet.IPv4Proto] == e.Proto && e.Client.Is4() && vip.Is4()
	}
	// An address of IPv4, mapped, is none of IPv6.
	return packet.Addr16(b[packet.IPv6Src:]) == e.Client && packet.Addr16(b[packet.IPv6Dst:]) == *vip && !vip.Is4() &&
		binary.BigEndian.Uint32(b[packet.IPv6Len:]) == ports && b[packet.IPv6NextHeader] == e.Proto
}

// sendTunnelled is sendPlain for a packet that travels by a tunnel.
func (w *Worker) sendTunnelled(k int, ip, n uint64, l4 int, e *conntrack.Entry, to *way, head *directHead, hop *route.Hop, q *queue) Verdict {
	t := &head.tunnel
	p := &w.b.pkt[w.b.look.Packet[k%BurstSize]%BurstSize]
	if p.V6 = l4 == packet.IPv6Len; !t.V4() { // else Put looks at no more
		p.Src, p.Dst, p.Proto, p.Kind = e.Client, to.addr[conntrack.Reply], e.Proto, packet.KindTCP
		if e.Proto == packet.ProtoUDP {
			p.Kind = packet.KindUDP
		}
		p.L3, p.L4, p.End = 0, uint16(l4), uint16(n)
	}
	b := w.umem[ip-nat.TunnelHeadLen : ip+n]
	var id uint16
	if !p.V6 && binary.BigEndian.Uint16(b[nat.TunnelHeadLen+packet.IPv4Frag:])&packet.IPv4DontFragment == 0 {
		id = uint16(w.nextID())
	}
	size := t.Put(b, p, e.Hash(), id)
	ip -= uint64(t.Len())
	hop.PutBefore((*[route.VLANLen]byte)(w.umem[ip-route.VLANLen:]), etherTypeOf(t.V4()))
	return w.sendFrom(ip, uint64(size), hop, q)
}

func etherTypeOf(v4 bool) uint16 {
	if v4 {
		return route.EtherIPv4
	}
	return route.EtherIPv6
}

// sendFrom queues the IP packet of n bytes at ip on q, with hop's Ethernet header, which
// is before it.
func (w *Worker) sendFrom(ip, n uint64, hop *route.Hop, q *queue) Verdict {
	k, size := uint(q.n), uint64(hop.HeaderLen)+n
	if size < minFrame || k >= uint(len(q.out)) {
		return w.enqueue(q, ip-uint64(hop.HeaderLen), size, Forwarded)
	}
	q.out[k] = unix.XDPDesc{Addr: ip - uint64(hop.HeaderLen), Len: uint32(size)}
	q.done[k] = Forwarded
	q.n++
	return Forwarded
}

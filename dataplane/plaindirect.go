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

// plainOneWay is the rest of plain for row i, p, of flow e, if only a client's packets of
// it come by: it does what direct does, or forward, for what nearly all packets are.
func (w *Worker) plainOneWay(i int, p *packet.Packet, e *conntrack.Entry, to *way, hop *route.Hop, q *queue) Verdict {
	headerLen := uint16(packet.IPv4MinLen)
	if p.V6 {
		headerLen = packet.IPv6Len
	}
	if to.marks&(clientsOnly|left|cids|names) != clientsOnly || p.L4-p.L3 != headerLen {
		return undecided
	}
	head := &noHead
	if uint64(e.Backend) < uint64(len(w.heads)) {
		head = &w.heads[e.Backend]
	}
	at := w.headersAt(i, p)
	h, n := w.headers(at), p.IPLen()
	if h[route.VLANLen+to.ttlAt&15] <= 1 {
		return undecided
	}
	switch to.marks & (direct | tunnelled) {
	case direct:
		if head.routes != w.routesSeen || w.cameFrom(i, hop) {
			return undecided
		}
	case direct | tunnelled:
		if head.routes != w.routesSeen || n+head.tunnel.Len() > int(hop.MTU) ||
			(at+route.VLANLen)&(w.frameSize-1) < route.VLANLen+nat.TunnelHeadLen {
			return undecided
		}
	}
	timeout := to.timeout
	if p.Kind == packet.KindUDP {
		if !w.table.Unanswered(e, conntrack.Forward) {
			return undecided
		}
		timeout = to.oneWay
	}
	deadline := w.tick + timeout
	if !e.CanPutOff(deadline) {
		return undecided
	}
	if p.Kind != packet.KindUDP {
		if !e.PlainOneWay(p) || p.Payload-p.L4 != packet.TCPMinLen && !nat.PlainOptions(w.frame(i), p) {
			return undecided
		}
		e.Win[conntrack.Forward].Extend(p.Seq + uint32(p.End-p.Payload))
	}
	e.Expires = deadline
	e.Packets[conntrack.Forward]++
	e.Bytes[conntrack.Forward] += uint64(n)
	to.count.sent(conntrack.Forward, n)
	if to.marks&direct == 0 {
		return w.sendPlain(at, p, e, conntrack.Forward, to, hop, q, h)
	}
	if to.marks&tunnelled != 0 {
		return w.sendTunnelled(i, p, e, head, hop, q)
	}
	nat.DecTTL(w.frame(i), p)
	hop.PutBefore((*[route.VLANLen]byte)(h[:]), etherTypeOf(!p.V6))
	return w.sendFrom(at+route.VLANLen, uint64(n), hop, q)
}

// sendTunnelled is sendPlain for a packet that travels by a tunnel.
func (w *Worker) sendTunnelled(i int, p *packet.Packet, e *conntrack.Entry, head *directHead, hop *route.Hop, q *queue) Verdict {
	t := &head.tunnel
	ip := w.b.desc[i].Addr + uint64(p.L3)
	b := w.umem[ip-nat.TunnelHeadLen : ip+uint64(p.End-p.L3)]
	var id uint16
	if !p.V6 && binary.BigEndian.Uint16(b[nat.TunnelHeadLen+packet.IPv4Frag:])&packet.IPv4DontFragment == 0 {
		id = uint16(w.nextID())
	}
	n := t.Put(b, p, e.Hash(), id)
	ip -= uint64(t.Len())
	hop.PutBefore((*[route.VLANLen]byte)(w.umem[ip-route.VLANLen:]), etherTypeOf(t.V4()))
	return w.sendFrom(ip, uint64(n), hop, q)
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

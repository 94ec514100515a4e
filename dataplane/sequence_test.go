package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// sequence plays what a fuzzer wrote: four bytes for each thing that happens,
// of which the first chooses what (see step): clients of few addresses and all
// services speak, whoever got a packet answers it, routers complain about one,
// datagrams come in fragments, packets come twice and by any queue, time passes,
// and the configuration and the routes change.
type sequence struct {
	*rig
	registry *Registry
	gen      uint32
	seen     []sentFrame // sent of late, the newest last
	fed      uint64
	whole    int // frames there are
}

const eventBytes = 4

// step is one event.
func (q *sequence) step(b []byte) {
	arg := b[1:eventBytes]
	switch b[0] & 15 {
	case 0, 1, 2, 3:
		q.clientSpeaks(b[0]>>4, arg)
	case 4, 5, 6, 7, 8, 9:
		q.answer(b[0]>>4, arg)
	case 10:
		q.complain(b[0]>>4, arg)
	case 11:
		q.fragments(b[0]>>4, arg)
	case 12, 13:
		q.now += int64(time.Millisecond) << (arg[0] & 31) >> 4 // 37 hours at most
		q.settle()
	case 14:
		q.reconfigure(arg)
	case 15:
		q.reroute(arg)
	}
	q.check()
}

// settle polls until nothing moves and keeps what was sent.
func (q *sequence) settle() {
	q.sent = nil
	q.rig.step()
	for _, f := range q.sent {
		q.judge(f.bytes)
	}
	q.seen = append(q.seen, q.sent...)
	q.seen = q.seen[max(0, len(q.seen)-64):]
}

// feed lets a frame arrive.
func (q *sequence) feed(where byte, nic int, frame []byte) {
	q.fed++
	q.port[int(where)%len(q.port)][nic].Feed([][]byte{frame}, 1)
	q.settle()
}

// judge has gopacket compute the checksums of what was sent; of a fragment only
// the header's can be.
func (q *sequence) judge(frame []byte) {
	var p packet.Packet
	if err := packet.Parse(frame, &p); err != packet.ErrNone {
		q.t.Fatalf("sent what does not parse: %v: %x", err, frame)
	}
	if !packet.VerifyIPv4(frame, &p) {
		q.t.Fatalf("checksum: %x", frame)
	}
	if p.Kind != packet.KindFragment {
		verify(q.t, frame[:p.End])
	}
	if p.IPLen() > 1500 {
		q.t.Fatalf("%d bytes: %x", p.IPLen(), frame)
	}
}

// clientSpeaks sends a segment or datagram of a client that knows nothing of
// what was said before.
func (q *sequence) clientSpeaks(where byte, arg []byte) {
	services := testSpec().Services
	vip := services[int(arg[0])%len(services)].VIP
	w := wire{dst: vip.Addr, dport: vip.Port, udp: vip.Proto == packet.ProtoUDP, flags: packet.SYN,
		src: addr("198.51.100.1"), sport: 4000 + uint16(arg[1]&3), seq: 1000 * uint32(arg[1]>>4&3), payload: int(arg[2]>>4) * 100}
	if !vip.Addr.Is4() {
		w.src = addr("2001:db8:c::1")
	}
	w.src.Lo += uint64(arg[1] >> 2 & 3)
	switch arg[1] >> 6 {
	case 3:
		w.flags, w.ack = arg[2]&0x3f, 9001
		w.seq++
	case 2:
		w.payload, w.opts = 0, []byte{2, 4, arg[2], arg[2], 1, 1, 8, 10, 0, 0, 0, arg[2], 0, 0, 0, 0}
	default:
		w.payload /= 2 * int(arg[1]>>6+1)
	}
	if arg[2]&15 == 15 {
		w.ttl = 1
	}
	q.feed(where, 0, w.append(nil))
}

// remembered is a packet sent of late.
func (q *sequence) remembered(back byte) (f sentFrame, p packet.Packet, ok bool) {
	if len(q.seen) == 0 {
		return f, p, false
	}
	f = q.seen[len(q.seen)-1-int(back)%len(q.seen)]
	return f, p, packet.Parse(f.bytes, &p) == packet.ErrNone
}

// answer is what the host that got a packet says to it, more or less.
func (q *sequence) answer(where byte, arg []byte) {
	f, p, ok := q.remembered(arg[0])
	if !ok || p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return
	}
	w := wire{src: p.Dst, dst: p.Src, sport: p.DstPort, dport: p.SrcPort, udp: p.Kind == packet.KindUDP,
		flags: packet.ACK, seq: p.Ack, ack: p.Seq + uint32(p.End-p.Payload), payload: int(arg[2]) * 6}
	if p.TCPFlags&packet.FIN != 0 {
		w.ack++
	}
	if p.TCPFlags&packet.SYN != 0 {
		w.ack++
		w.payload = 0
		if p.TCPFlags&packet.ACK == 0 {
			w.flags, w.seq, w.opts = packet.SYN|packet.ACK, 9000, []byte{2, 4, 5, 180}
		}
	}
	switch arg[1] & 15 {
	case 0:
		w.flags |= packet.FIN
	case 1:
		w.flags |= packet.RST
	case 2:
		w.ack -= uint32(arg[1] >> 4)
	case 3:
		w.seq -= uint32(arg[1]>>4) * 7
	case 4:
		w.flags, w.seq = packet.RST, w.seq+uint32(arg[2])
		w.payload = 0
	case 5:
		w.seq += uint32(arg[1]>>4) * 5000
	case 6:
		w.opts, w.payload = []byte{1, 1, 5, 10, 0, 0, arg[2], 0, 0, 0, arg[2], 9}, 0 // SACK
	}
	q.feed(where, f.nic, w.append(nil))
	if arg[1]>>6 == 3 { // and again, elsewhere
		q.feed(where+1, f.nic, w.append(nil))
	}
}

// complain is an ICMP error about a packet sent, by a router on its way.
func (q *sequence) complain(where byte, arg []byte) {
	f, p, ok := q.remembered(arg[0])
	if !ok || p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return
	}
	inner := f.bytes[p.L3:min(int(p.End), int(p.L4)+8+int(arg[2]&63))]
	b := (&wire{src: addr("10.0.1.1"), dst: p.Src, udp: true, payload: len(inner)}).append(nil)
	kind, proto, at, v6 := [][2]byte{{3, 4}, {3, 1}, {11, 0}, {3, 3}}, byte(packet.ProtoICMP), 34, p.V6
	if v6 {
		b = (&wire{src: addr("2001:db8:1::1"), dst: p.Src, udp: true, payload: len(inner)}).append(nil)
		kind, proto, at = [][2]byte{{2, 0}, {1, 0}, {3, 0}, {1, 4}}, packet.ProtoICMPv6, 54
		b[20] = proto
	} else {
		b[23] = proto
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], packet.Checksum(b[14:34], 0))
	}
	k := kind[arg[1]&3]
	copy(b[at:], []byte{k[0], k[1], 0, 0, 0, 0, 5, arg[1]})
	copy(b[at+8:], inner)
	sum := uint64(0)
	if v6 {
		sum = packet.PseudoSum(addr("2001:db8:1::1"), p.Src, proto, len(b)-at)
	}
	binary.BigEndian.PutUint16(b[at+2:], packet.Checksum(b[at:], sum))
	q.feed(where, f.nic, b)
}

// fragments cuts a client's datagram in two; one part, or both, in either
// order, arrive.
func (q *sequence) fragments(where byte, arg []byte) {
	services := testSpec().Services
	vip := services[int(arg[0])%len(services)].VIP
	w := wire{src: addr("198.51.100.1"), sport: 4000 + uint16(arg[1]&3), dst: vip.Addr, dport: vip.Port,
		udp: vip.Proto == packet.ProtoUDP, flags: packet.ACK, seq: 1001, ack: 9001, payload: 64 + int(arg[2])}
	if !vip.Addr.Is4() {
		w.src = addr("2001:db8:c::1")
	}
	parts := split(w.append(nil), 8*(1+int(arg[1]>>3&7)), arg[2])
	if arg[1]>>6&1 != 0 {
		parts[0], parts[1] = parts[1], parts[0]
	}
	for i := range 1 + int(arg[1]>>7) {
		q.feed(where+byte(i), 0, parts[i])
	}
}

// split makes two fragments of a frame, the first with n bytes behind the IP
// header.
func split(b []byte, n int, id byte) [2][]byte {
	if b[12] == 0x86 { // IPv6: a fragment header behind the first
		part := func(body []byte, off uint16) []byte {
			f := append([]byte(nil), b[:54]...)
			binary.BigEndian.PutUint16(f[18:], uint16(8+len(body)))
			f = append(f, f[20], 0, byte(off>>8), byte(off), 0, 0, 0, id)
			f[20] = 44
			return append(f, body...)
		}
		return [2][]byte{part(b[54:54+n], 1), part(b[54+n:], uint16(n))}
	}
	part := func(body []byte, off uint16) []byte {
		f := append([]byte(nil), b[:34]...)
		binary.BigEndian.PutUint16(f[16:], uint16(20+len(body)))
		f[19] = id
		binary.BigEndian.PutUint16(f[20:], off)
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], packet.Checksum(f[14:34], 0))
		return append(f, body...)
	}
	return [2][]byte{part(b[34:34+n], 0x2000), part(b[34+n:], uint16(n/8))}
}

// reconfigure publishes a snapshot without some of the services, or with others'
// weights, or local addresses less.
func (q *sequence) reconfigure(arg []byte) {
	spec := testSpec()
	for i := len(spec.Services) - 1; i >= 0; i-- {
		s := &spec.Services[i]
		s.ResetStray = arg[2]&1 != 0
		for k := range s.Backends {
			s.Backends[k].Weight = uint32(arg[2]>>(k+1)&1 ^ 1)
		}
		if arg[0]>>(i%8)&1 != 0 && i >= int(arg[1]&7) {
			spec.Services = append(spec.Services[:i], spec.Services[i+1:]...)
		}
	}
	if arg[1]&8 != 0 {
		spec.Locals = spec.Locals[1:]
	}
	snap, err := q.registry.Build(spec)
	if err != nil {
		q.t.Fatal(err)
	}
	q.dp.Publish(snap)
	q.settle()
}

// reroute publishes routes with a tag, a smaller MTU, or a hop unresolved.
func (q *sequence) reroute(arg []byte) {
	q.gen++
	hops := []route.Hop{{},
		route.NewHop(0, clientMAC, nicMAC[0], uint32(arg[0]&1)*0x81000005, 1500),
		route.NewHop(1, serverMAC, nicMAC[1], 0, 1500-int(arg[0]&2)*110)}
	if i := int(arg[1] & 7); i == 1 || i == 2 {
		hops[i].State = route.Unresolved
	}
	p := func(s string, id route.HopID) route.Prefix {
		return route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: id}
	}
	q.dp.PublishRoutes(route.New(q.gen, hops, []route.Prefix{p("198.51.100.0/24", 1), p("2001:db8:c::/64", 1),
		p("10.0.1.0/24", 2), p("2001:db8:1::/64", 2)}))
	q.settle()
}

// check adds up frames, verdicts and flows.
func (q *sequence) check() {
	c := q.counts()
	var verdicts uint64
	for _, n := range c.Verdicts {
		verdicts += n
	}
	waiting := 0 // fragments, which have no verdict yet
	for _, w := range q.dp.Workers {
		waiting += w.FragmentsWaiting()
	}
	if c.Received != q.fed || verdicts+uint64(waiting) != c.Received+c.Adopted || c.Adopted != c.Verdicts[HandedOver] || c.Verdicts[DropInternal] != 0 {
		q.t.Fatalf("%d frames came; %d received, %d handed over, %d adopted, %d verdicts, %d of them internal, %d wait",
			q.fed, c.Received, c.Verdicts[HandedOver], c.Adopted, verdicts, c.Verdicts[DropInternal], waiting)
	}
	frames, flows := waiting, 0
	for _, w := range q.dp.Workers {
		frames += len(w.pool.free)
		for _, r := range w.repaid {
			frames += r.len()
		}
		for i := range w.queues {
			frames += len(w.queues[i].Held(nil))
		}
		flows += w.Flows()
		if err := w.table.Audit(); err != nil {
			q.t.Fatal(err)
		}
	}
	if frames != q.whole {
		q.t.Fatalf("%d frames of %d", frames, q.whole)
	}
	if c.Opened != c.Expired+c.Reopened+c.Evicted+uint64(flows) {
		q.t.Fatalf("%d flows opened; %d expired, %d reopened, %d evicted, %d left", c.Opened, c.Expired, c.Reopened, c.Evicted, flows)
	}
}

// end lets every flow idle out.
func (q *sequence) end() {
	latest := q.now + int64(24*time.Hour)
	for flows := 1; flows > 0; q.now += int64(time.Hour) {
		q.settle()
		flows = 0
		for _, w := range q.dp.Workers {
			for w.table.Behind(w.tick) {
				w.Poll(q.now)
			}
			flows += w.Flows()
			for id, b := range w.BackendCounts() {
				if b.Active < 0 || w.Flows() == 0 && b.Active != 0 {
					q.t.Fatalf("backend %d: %d flows of %d", id, b.Active, w.Flows())
				}
			}
		}
		if q.now > latest {
			q.t.Fatalf("%d flows left", flows)
		}
	}
	q.settle() // an hour on
	for _, w := range q.dp.Workers {
		if n := w.FragmentsWaiting(); n != 0 {
			q.t.Fatalf("%d fragments wait", n)
		}
	}
	q.check()
}

// FuzzSequence has a fuzzer write the traffic, see sequence. The first byte says
// how many workers there are.
func FuzzSequence(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		workers := 1 + int(b[0])%3
		spec := testSpec()
		q := &sequence{registry: NewRegistry(workers), gen: 1, whole: workers * testFrames,
			rig: newRigWith(t, workers, spec, func(o *Options) { o.Flows = 24 * workers })}
		snap, err := q.registry.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		q.dp.Publish(snap)
		for b = b[1:]; len(b) >= eventBytes; b = b[eventBytes:] {
			q.step(b)
		}
		q.end()
	})
}

package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// soakPorts is how many ports each local address has for each backend; a
// million flows use them many times over.
const soakPorts = 2048

// soak is a crowd in which every client lives one life, chosen by its number.
// Servers know nothing but the packet before them.
type soak struct {
	*crowd
	vips   []conntrack.Endpoint
	second []bool // by client: on its second connection
}

// soakSpec is testSpec with timeouts that a test can wait for.
func soakSpec() Spec {
	spec := testSpec()
	for i := range spec.Services {
		to := &spec.Services[i].Timeouts
		for s := range to {
			to[s] = 10 * conntrack.TicksPerSecond
		}
		to[conntrack.Established] = 20 * conntrack.TicksPerSecond
		to[conntrack.TimeWait] = 5 * conntrack.TicksPerSecond
	}
	return spec
}

func newSoak(t *testing.T, workers, clients int, spec Spec, spread *rss.Spread) *soak {
	s := &soak{second: make([]bool, clients), crowd: newCrowd(t, workers, spec, func(o *Options) {
		o.Flows, o.Spread = 1<<16, spread
		o.LocalPorts = []nat.PortRange{}
		for i := range spec.Locals {
			o.LocalPorts = append(o.LocalPorts, nat.PortRange{First: 20000 + uint16(i), Last: 20000 + uint16(i) + soakPorts - 1})
		}
	})}
	for i := range spec.Services {
		s.vips = append(s.vips, spec.Services[i].VIP)
	}
	s.react = func(nic int, p *packet.Packet) {
		if nic == 0 {
			s.client(p)
		} else {
			s.server(p)
		}
	}
	return s
}

// Lives of clients, by their number divided by that of the services. Half-open
// connections, and servers that say nothing or close first, come by the server's
// choice, see server.
const (
	closes     = iota // FIN after the answer
	closesToo         // the same
	waits             // says nothing more
	resets            // RST after the answer
	unfinished        // never acknowledges the SYN-ACK
	syns              // sends its SYN twice
	returns           // connects again from the same port as soon as it has closed
	numLives
)

const clientPorts = 40000 // of each client address

// soakClients are the first clients of both families.
var soakClients = [2]packet.Addr{addr("198.51.100.1"), addr("2001:db8:c::1")}

func (s *soak) life(i int) int { return i / len(s.vips) % numLives }

// from is client number i's address and port.
func (s *soak) from(i int, vip packet.Addr) (packet.Addr, uint16) {
	a := soakClients[0]
	if !vip.Is4() {
		a = soakClients[1]
	}
	a.Lo += uint64(i / clientPorts)
	return a, uint16(1024 + i%clientPorts)
}

// number is the inverse of from.
func (s *soak) number(a packet.Addr, port uint16) int {
	first, _ := s.from(0, a)
	return int(a.Lo-first.Lo)*clientPorts + int(port) - 1024
}

// isn of a client's first and second connection.
func (s *soak) isn(i int) uint32 {
	if s.second[i] {
		return 1 << 20
	}
	return 1000
}

// begin sends client i's first packet.
func (s *soak) begin(i int) {
	vip := s.vips[i%len(s.vips)]
	w := wire{dst: vip.Addr, dport: vip.Port, udp: vip.Proto == packet.ProtoUDP, flags: packet.SYN, seq: s.isn(i)}
	w.src, w.sport = s.from(i, vip.Addr)
	if w.udp {
		w.payload = 20
	}
	s.send(0, w)
	if s.life(i) == syns {
		s.send(0, w)
	}
}

const requestLen = 10

// client answers what came from a VIP.
func (s *soak) client(p *packet.Packet) {
	i := s.number(p.Dst, p.DstPort)
	if i >= len(s.second) {
		return // one of flood's
	}
	if p.Kind != packet.KindTCP || p.TCPFlags&packet.RST != 0 {
		return
	}
	n := uint32(p.End - p.Payload)
	w := wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.ACK, seq: s.isn(i) + 1, ack: p.Seq + n}
	life, fin := s.life(i), p.TCPFlags&packet.FIN != 0
	switch {
	case p.TCPFlags&packet.SYN != 0:
		if life == unfinished {
			return
		}
		w.ack++
		s.send(0, w)
		w.payload = requestLen
	case fin && n == 0: // answers ours
		w.seq, w.ack = w.seq+requestLen+1, w.ack+1
		if life == returns && !s.second[i] {
			s.send(0, w)
			s.second[i] = true
			s.begin(i)
			return
		}
	case fin:
		w.seq, w.ack, w.flags = w.seq+requestLen, w.ack+1, packet.FIN|packet.ACK
	case n > 0 && (life == closes || life == closesToo || life == returns || life == syns):
		w.seq, w.flags = w.seq+requestLen, packet.FIN|packet.ACK
	case n > 0 && life == resets:
		w.seq, w.flags = w.seq+requestLen, packet.RST|packet.ACK
	default:
		return
	}
	s.send(0, w)
}

// server answers what came from a local address, or in DNAT from a client. What
// kind of server it is hangs on the port it is talked to from.
func (s *soak) server(p *packet.Packet) {
	mute, closesFirst := p.SrcPort%16 == 1, p.SrcPort%4 == 3
	n := uint32(p.End - p.Payload)
	w := wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.ACK, seq: p.Ack, ack: p.Seq + n}
	switch {
	case p.Kind == packet.KindUDP:
		w.udp, w.payload = true, 30
		if mute {
			return
		}
	case p.Kind != packet.KindTCP || p.TCPFlags&packet.RST != 0:
		return
	case p.TCPFlags&packet.SYN != 0:
		w.flags, w.seq, w.ack = packet.SYN|packet.ACK, 9000, w.ack+1
		if mute {
			return
		}
	case p.TCPFlags&packet.FIN != 0:
		w.ack++
		if !closesFirst {
			w.flags |= packet.FIN
		}
	case n > 0:
		w.payload = 20
		if closesFirst {
			w.flags |= packet.FIN
		}
	default:
		return
	}
	s.send(1, w)
}

// TestMillionFlows lets a crowd come and go, by all kinds of services, and wants
// nothing left of it: no flow, no timer, no frame (newRig's audit walks the
// tables and the rings), and every port to be had again.
func TestMillionFlows(t *testing.T) {
	flows := 1_000_000
	if testing.Short() {
		flows = 50_000
	}
	for _, workers := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			s := newSoak(t, workers, flows, soakSpec(), nil)
			s.run(flows, true)
			before := s.counts()
			s.quiet()
			n := s.counts()
			t.Logf("%d flows, %d of them by clients that came again; %d expired, %d evicted; %d packets in, %d out, %d handed over",
				n.Opened, n.Reopened, n.Expired, n.Evicted, n.Received, n.Sent, n.Verdicts[HandedOver])
			if n.Opened < uint64(flows) || n.Reopened < uint64(flows/numLives/4) || n.Evicted == 0 || before.Drops() != 0 {
				t.Errorf("%+v", before)
			}
			s.everyPort()
		})
	}
}

// run has so many clients come, a thousand a second. If they are flooded there
// are, now and then, more SYNs from nowhere in two seconds than may be half-open.
func (s *soak) run(clients int, flooded bool) {
	const wave = 1000
	for i := range clients {
		if s.begin(i); (i+1)%wave > 0 {
			continue
		}
		if second := i / wave; flooded && second%100 >= 30 && second%100 < 32 {
			for k := range 10_000 {
				w := wire{dst: addr("192.0.2.11"), dport: 80, flags: packet.SYN, seq: 1}
				w.src, w.sport = s.from(clients+second%2*10_000+k, w.dst)
				s.send(0, w)
			}
		}
		s.settle()
		s.now += int64(time.Second)
	}
	s.settle()
	s.accounts()
}

// quiet lets time pass until no flow is left.
func (s *soak) quiet() {
	for end := s.now + int64(time.Hour); s.flows() > 0; s.now += int64(time.Second) / conntrack.TicksPerSecond {
		if s.step(); s.now > end {
			s.t.Fatalf("%d flows left", s.flows())
		}
	}
	s.accounts()
	for _, w := range s.dp.Workers {
		if w.table.HalfOpenLen() != 0 {
			s.t.Errorf("%d half-open", w.table.HalfOpenLen())
		}
		if err := w.table.Audit(); err != nil {
			s.t.Error(err)
		}
	}
}

// everyPort has as many clients as there are ports come to each backend, and
// stay.
func (s *soak) everyPort() {
	s.t.Helper()
	for _, c := range []struct {
		vip   string
		ports int
	}{{"[2001:db8::64]:5000", 2 * soakPorts}, {"[2001:db8::10]:80", soakPorts}, {"192.0.2.10:5000", 2 * soakPorts}} {
		vip := endpoint(c.vip, packet.ProtoTCP)
		before := s.counts()
		seen := map[[2]uint64]bool{} // local address and port
		s.react = func(nic int, p *packet.Packet) {
			switch key := [2]uint64{p.Src.Lo, uint64(p.SrcPort)}; {
			case nic == 1 && p.TCPFlags == packet.ACK:
			case nic == 1 && seen[key]:
				s.t.Fatalf("%s: %v port %d serves two flows", c.vip, p.Src, p.SrcPort)
			case nic == 1:
				seen[key] = true
				s.server(&packet.Packet{Tuple: packet.Tuple{Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort},
					Kind: p.Kind, TCPFlags: p.TCPFlags, Seq: p.Seq, Ack: p.Ack})
			case p.Kind == packet.KindTCP: // that is all one says
				s.send(0, wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.ACK, seq: p.Ack, ack: p.Seq + 1})
			}
		}
		for i := 0; len(seen) < c.ports; i++ {
			w := wire{dst: vip.Addr, dport: vip.Port, udp: vip.Port == 5000, flags: packet.SYN, seq: 1000}
			w.src, w.sport = s.from(i, vip.Addr)
			if s.send(0, w); i%64 == 0 {
				s.settle()
			}
			if i == clientPorts {
				s.t.Fatalf("%s: %d of %d ports, and no more", c.vip, len(seen), c.ports)
			}
		}
		s.settle()
		if n := s.counts(); n.Opened-before.Opened != uint64(c.ports) || n.Evicted != before.Evicted {
			s.t.Errorf("%s: %d opened, %d ports", c.vip, n.Opened-before.Opened, c.ports)
		}
	}
	s.react = func(int, *packet.Packet) {}
	s.quiet()
}

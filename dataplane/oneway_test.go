package dataplane

import (
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/packet"
)

// TestOneWaySenders: who sends datagrams that are never answered (syslog, statsd)
// keeps its port towards the server while others come in larger numbers than may
// be half-open, if it sends more often than those turn the half-open flows over;
// and TCP clients that come meanwhile connect.
func TestOneWaySenders(t *testing.T) {
	const (
		flows   = 4096
		budget  = flows / 4
		senders = 500
		every   = 50 // ms, of each sender
		fresh   = 1  // new one-way flows a ms: a turnover in half a second
		clients = 100
		rtt     = 20 // ms
	)
	spec := testSpec()
	spec.Services[0].TOA = false
	s := newCrowd(t, 1, spec, func(o *Options) { o.Flows = flows })
	udp, tcp := endpoint("192.0.2.10:5000", packet.ProtoUDP), endpoint("192.0.2.10:80", packet.ProtoTCP)
	ports := make([][2]uint64, senders) // by sender: what the server sees
	moved, connected, ms := 0, 0, 0
	later := map[int][]wire{}
	s.react = func(nic int, p *packet.Packet) {
		switch {
		case nic == 1 && p.Kind == packet.KindUDP && p.End-p.Payload >= senders: // a newcomer
		case nic == 1 && p.Kind == packet.KindUDP:
			i, seen := p.End-p.Payload, [2]uint64{p.Src.Lo, uint64(p.SrcPort)}
			if ports[i] != seen && ports[i] != [2]uint64{} {
				moved++
			}
			ports[i] = seen
		case nic == 1 && p.TCPFlags&packet.SYN != 0:
			s.send(1, wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.SYN | packet.ACK, seq: 9000, ack: p.Seq + 1})
		case nic == 1:
			connected++
		case p.Kind == packet.KindTCP:
			later[ms+rtt] = append(later[ms+rtt], wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.ACK, seq: p.Ack, ack: p.Seq + 1})
		}
	}
	for ms = range 2000 {
		s.now += int64(time.Millisecond)
		for i := ms % every; i < senders; i += every {
			w := wire{dst: udp.Addr, dport: udp.Port, udp: true, payload: i}
			w.src, w.sport = at(steadyNet, i)
			s.send(0, w)
		}
		for k := range fresh {
			w := wire{dst: udp.Addr, dport: udp.Port, udp: true, payload: senders}
			w.src, w.sport = at(spoofed, ms*fresh+k)
			s.send(0, w)
		}
		if ms%10 == 0 && ms/10 < clients {
			w := wire{dst: tcp.Addr, dport: tcp.Port, flags: packet.SYN, seq: 1000}
			w.src, w.sport = at(honestNet, ms/10)
			s.send(0, w)
		}
		for _, w := range later[ms] {
			s.send(0, w)
		}
		s.settle()
	}
	s.accounts()
	c := s.counts()
	t.Logf("%d flows opened, %d evicted, %d of %d clients connected", c.Opened, c.Evicted, connected, clients)
	if moved != 0 || connected != clients || c.Evicted < budget || c.Drops() != 0 {
		t.Errorf("senders changed their port %d times, %d clients connected, %d evicted, %d dropped", moved, connected, c.Evicted, c.Drops())
	}
}

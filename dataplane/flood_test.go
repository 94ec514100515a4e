package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// flood is a crowd of three kinds: SYNs from addresses that never answer,
// clients that want to connect, each as far away as its round-trip time says,
// and clients that were there before. The server is next door. Time goes by
// milliseconds.
type flood struct {
	*crowd
	vip    conntrack.Endpoint
	twice  bool // the flood sends every SYN two times
	ms     int
	later  map[int][]wire // what clients send, by millisecond
	honest []honest
	steady []steady
}

// honest is a client that wants to connect. A SYN that stays unanswered is sent
// again after 1, 3 and 7 seconds, as Linux does; once there was a SYN-ACK the
// client holds the connection for open and sends no SYN any more.
type honest struct {
	rtt      int // ms
	began    int
	answered bool // had a SYN-ACK
	served   int  // when the answer to its request came, 0 not yet
}

// steady is a client with a connection that is older than the flood.
type steady struct {
	seq, ack  uint32
	sent, got int // requests, answers
}

// Where the clients are.
var (
	honestNet = addr("198.51.100.10")
	steadyNet = addr("198.51.100.20")
	spoofed   = addr("198.51.100.100")
)

const (
	handshakeMS   = 200 // the longest round trip
	steadyFlows   = 500
	steadyEvery   = 500 // ms, of each
	honestEvery   = 5   // ms
	perClientAddr = 50_000
)

// at is host i of a network of clients.
func at(net packet.Addr, i int) (packet.Addr, uint16) {
	net.Lo += uint64(i / perClientAddr)
	return net, uint16(1024 + i%perClientAddr)
}

func newFlood(t *testing.T, flows, ports int) *flood {
	spec := testSpec()
	spec.Services = spec.Services[:1]
	spec.Services[0].TOA = false
	spec.Services[0].Backends = spec.Services[0].Backends[:1]
	spec.Locals = spec.Locals[:1]
	f := &flood{later: map[int][]wire{}, crowd: newCrowd(t, 1, spec, func(o *Options) {
		o.Flows = flows
		o.LocalPorts = []nat.PortRange{{First: 1024, Last: uint16(1023 + ports)}}
	})}
	f.vip = spec.Services[0].VIP
	f.react = f.reacts
	for i := range steadyFlows {
		f.steady = append(f.steady, steady{seq: 1000})
		f.send(0, f.wire(steadyNet, i, packet.SYN, 1000, 0))
	}
	f.settle()
	return f
}

// wire is a client's segment.
func (f *flood) wire(net packet.Addr, i int, flags uint8, seq, ack uint32) wire {
	w := wire{dst: f.vip.Addr, dport: f.vip.Port, flags: flags, seq: seq, ack: ack}
	w.src, w.sport = at(net, i)
	return w
}

func (f *flood) reacts(nic int, p *packet.Packet) {
	n := uint32(p.End - p.Payload)
	if nic == 1 { // the server
		w := wire{src: p.Dst, sport: p.DstPort, dst: p.Src, dport: p.SrcPort, flags: packet.SYN | packet.ACK, seq: 9000, ack: p.Seq + 1}
		if p.TCPFlags&packet.SYN == 0 {
			if n == 0 {
				return
			}
			w.flags, w.seq, w.ack, w.payload = packet.ACK, p.Ack, p.Seq+n, 20
		}
		f.send(1, w)
		return
	}
	k := int(p.DstPort) - 1024 + int(p.Dst.Lo&0xff)*perClientAddr
	switch synack := p.TCPFlags&packet.SYN != 0; {
	case p.Dst.Lo >= spoofed.Lo || p.TCPFlags&packet.RST != 0:
	case p.Dst.Lo >= steadyNet.Lo:
		c := &f.steady[k-int(steadyNet.Lo&0xff)*perClientAddr]
		if c.ack = p.Seq + n; synack {
			c.ack, c.seq = p.Seq+1, 1001
			f.send(0, f.wire(steadyNet, int(p.DstPort)-1024, packet.ACK, c.seq, c.ack))
			return
		}
		c.got++
	default:
		k -= int(honestNet.Lo&0xff) * perClientAddr
		c := &f.honest[k]
		if !synack {
			if n > 0 && c.served == 0 {
				c.served = f.ms + 1
			}
			return
		}
		if c.answered {
			return
		}
		c.answered = true
		ack := f.wire(honestNet, k, packet.ACK, 1001, p.Seq+1)
		request := ack
		request.payload = 100
		f.later[f.ms+c.rtt] = append(f.later[f.ms+c.rtt], ack, request)
	}
}

// run floods with so many SYNs a second while for some time honest clients come,
// and until the last of them has given up, or nearly.
func (f *flood) run(rate, ms int) {
	sent, due := 0, 0.0
	for f.ms = 1; f.ms < ms+min(9_000, 2*ms); f.ms++ {
		f.now += int64(time.Millisecond)
		for due += float64(rate) / 1000; float64(sent) < due; sent++ {
			n := sent
			if f.twice {
				n /= 2
			}
			f.send(0, f.wire(spoofed, n%7_000_000, packet.SYN, uint32(n), 0))
		}
		if f.ms%honestEvery == 0 && f.ms <= ms {
			i := len(f.honest)
			rtt := 1 + f.rnd.IntN(handshakeMS)
			f.honest = append(f.honest, honest{rtt: rtt, began: f.ms})
			for _, after := range []int{0, 1000, 3000, 7000} {
				f.later[f.ms+after] = append(f.later[f.ms+after], f.wire(honestNet, i, packet.SYN, 1000, 0))
			}
		}
		for i := f.ms % steadyEvery; i < len(f.steady); i += steadyEvery {
			c := &f.steady[i]
			w := f.wire(steadyNet, i, packet.ACK, c.seq, c.ack)
			w.payload = 50
			c.seq += 50
			c.sent++
			f.send(0, w)
		}
		for _, w := range f.later[f.ms] {
			if w.flags == packet.SYN && f.honest[int(w.sport)-1024].answered {
				continue
			}
			f.send(0, w)
		}
		delete(f.later, f.ms)
		f.settle()
	}
}

// bands are the round-trip times that TestFlood tells apart, ms.
var bands = []int{10, 50, 100, 200}

// report is the share of honest clients served, by band, and in all; and how
// long it took the median of those who were.
func (f *flood) report() (all float64, line string) {
	n, ok := make([]int, len(bands)), make([]int, len(bands))
	first := 0
	for i := range f.honest {
		c := &f.honest[i]
		b := 0
		for c.rtt > bands[b] {
			b++
		}
		n[b]++
		if c.served > 0 {
			ok[b]++
			if c.served-c.began < 900 {
				first++
			}
		}
	}
	served := 0
	for b := range bands {
		served += ok[b]
		line += fmt.Sprintf(" %3.0f %% |", 100*float64(ok[b])/float64(n[b]))
	}
	all = float64(served) / float64(len(f.honest))
	return all, fmt.Sprintf("%s %.1f %% | %.0f %% |", line, 100*all, 100*float64(first)/float64(len(f.honest)))
}

// TestFlood measures how many honest clients get through while SYNs from
// nowhere come in at some multiple of what the bound on half-open flows, or the
// ports towards the backend, hold for the time of a handshake. Connections that
// were there before must not notice.
func TestFlood(t *testing.T) {
	flows, ms := 1<<14, 10_000
	if testing.Short() {
		flows, ms = 1<<11, 2_000
	}
	room := flows / 4
	t.Log("bound by | SYNs/s | × | 1-10 ms | -50 | -100 | -200 | all | at the first SYN |")
	for _, bound := range []struct {
		by    string
		ports int
		room  int // half-open flows that find a place
	}{{"half-open flows", 60_000, room}, {"ports", steadyFlows + ms/honestEvery + room/2, room / 2}} {
		for _, times := range []float64{0.5, 2, 10} {
			t.Run(fmt.Sprintf("%s, %g", bound.by, times), func(t *testing.T) {
				f := newFlood(t, flows, bound.ports)
				rate := int(times * float64(bound.room) * 1000 / handshakeMS)
				f.run(rate, ms)
				all, line := f.report()
				t.Logf("%s | %d | %g |%s", bound.by, rate, times, line)
				for i := range f.steady {
					if c := &f.steady[i]; c.got != c.sent {
						t.Fatalf("connection %d: %d requests, %d answers", i, c.sent, c.got)
					}
				}
				f.accounts()
				c := f.counts()
				t.Logf("%d opened, %d evicted, %d SYNs found no port, %d no half-open flow old enough",
					c.Opened, c.Evicted, c.Verdicts[DropPortsExhausted], c.Verdicts[DropHalfOpenFull])
				if all < 0.99 {
					t.Errorf("%.1f %% of honest clients were served", 100*all)
				}
			})
		}
	}
}

// TestFloodTwice: a flood that sends every SYN two times is taken for clients.
// Nobody may be worse off than if all SYNs were let in and the oldest went: who
// is nearer than it then takes to go round gets in.
func TestFloodTwice(t *testing.T) {
	const flows, ms, times = 1 << 12, 2_000, 10
	f := newFlood(t, flows, 60_000)
	f.twice = true
	f.run(times*flows/4*1000/handshakeMS, ms)
	_, line := f.report()
	t.Log(line)
	near, served := 0, 0
	for i := range f.honest {
		if c := &f.honest[i]; c.rtt <= handshakeMS/times {
			near++
			if c.served > 0 {
				served++
			}
		}
	}
	if near < 20 || served < near {
		t.Errorf("%d of %d near clients were served", served, near)
	}
	f.accounts()
}

// TestNobodyMakesWay: right after the start, with no half-open flow at all, a SYN
// that comes again takes nobody's port.
func TestNobodyMakesWay(t *testing.T) {
	spec := testSpec()
	spec.Locals, spec.Services = spec.Locals[:1], spec.Services[:1]
	spec.Services[0].Backends = spec.Services[0].Backends[:1]
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2000}} })
	r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	for range 2 {
		r.refused(0, 0, DropPortsExhausted, build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:80", syn: true}))
	}
}

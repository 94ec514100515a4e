package dataplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// snatSpec is the return half of services whose forward half is elsewhere, and
// beside it a service in DNAT that shares a VIP and a server with one.
func snatSpec() Spec {
	half := func(name, vip string, proto uint8, backends ...string) ServiceSpec {
		s := service(name, vip, proto, conntrack.DNAT, false, backends...)
		s.ReturnOnly = true
		return s
	}
	return Spec{Seed: 1, Services: []ServiceSpec{
		half("web4", "192.0.2.20:80", packet.ProtoTCP, "10.0.1.20:8080", "10.0.1.21:8080"),
		half("web6", "[2001:db8::20]:80", packet.ProtoTCP, "[2001:db8:1::20]:8080"),
		half("dns4", "192.0.2.20:53", packet.ProtoUDP, "10.0.1.20:53"),
		half("both", "192.0.2.11:80", packet.ProtoTCP, "10.0.1.30:80"),
		service("dnat4", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.30:80"),
	}}
}

func TestReturnHalf(t *testing.T) {
	tests := []struct {
		name, server, client, vip string
		udp                       bool
	}{
		{"tcp4", "10.0.1.21:8080", "198.51.100.7:40000", "192.0.2.20:80", false},
		{"tcp6", "[2001:db8:1::20]:8080", "[2001:db8:c::7]:40000", "[2001:db8::20]:80", false},
		{"udp4", "10.0.1.20:53", "198.51.100.7:40000", "192.0.2.20:53", true},
		{"a server of DNAT, too", "10.0.1.30:80", "198.51.100.7:40000", "192.0.2.11:80", false},
	}
	for _, workers := range []int{1, 3} {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				r := newRig(t, workers, snatSpec())
				for w := range workers {
					in := build(t, seg{src: tt.server, dst: tt.client, udp: tt.udp, syn: !tt.udp, ack: true, seq: 9, ackNum: 10, payload: 3})
					out := r.one(w, 1, 0, in)
					if srcOf(out) != tt.vip || dstOf(out) != tt.client {
						t.Fatalf("%s → %s", srcOf(out), dstOf(out))
					}
					var p, was packet.Packet
					packet.Parse(out, &p)
					packet.Parse(in, &was)
					if p.Seq != was.Seq || p.Ack != was.Ack || p.TTL(out) != was.TTL(in)-1 {
						t.Errorf("numbers %d %d, TTL %d", p.Seq, p.Ack, p.TTL(out))
					}
				}
				c := r.counts()
				if c.Opened != 0 || c.Verdicts[Replied] != uint64(workers) {
					t.Errorf("%d flows, %d replies", c.Opened, c.Verdicts[Replied])
				}
				if tt.name != tests[3].name && c.Adopted != 0 {
					t.Errorf("%d packets were handed over, though nobody can have their flow", c.Adopted)
				}
			})
		}
	}
}

// TestReturnHalfKnowsItsServers: what is none of their answers is not touched.
func TestReturnHalfKnowsItsServers(t *testing.T) {
	r := newRig(t, 1, snatSpec())
	for name, s := range map[string]seg{
		"another port":     {src: "10.0.1.20:8081", dst: "198.51.100.7:40000", ack: true},
		"another server":   {src: "10.0.1.22:8080", dst: "198.51.100.7:40000", ack: true},
		"another protocol": {src: "10.0.1.20:8080", dst: "198.51.100.7:40000", udp: true},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.counts().Verdicts[Passed]
			if out := r.one(0, 1, 0, build(t, s)); srcOf(out) != s.src || r.counts().Verdicts[Passed] != before+1 {
				t.Errorf("from %s", srcOf(out))
			}
		})
	}
	// The VIP is not this machine's: whoever has it answers for it, ARP too.
	r.refused(0, 0, DropNotOurs, serialize(t,
		&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: clientMAC[:], SourceProtAddress: []byte{198, 51, 100, 7},
			DstHwAddress: make([]byte, 6), DstProtAddress: []byte{192, 0, 2, 20}}))
}

// TestReturnHalfWithItsOtherHalf: a service in DNAT and, beside it, the return half of
// the same: a flow that is known goes by its flow, and answers whose flow is another
// machine's by their server.
func TestReturnHalfWithItsOtherHalf(t *testing.T) {
	for _, workers := range []int{1, 3} {
		r := newRig(t, workers, snatSpec())
		syn := r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.11:80", syn: true, seq: 1000}))
		r.one(workers-1, 1, 0, build(t, seg{src: dstOf(syn), dst: srcOf(syn), syn: true, ack: true, seq: 9000, ackNum: 1001}))
		r.refused(0, 1, DropBadRST, build(t, seg{src: dstOf(syn), dst: srcOf(syn), rst: true, seq: 1 << 31}))
		out := r.one(0, 1, 0, build(t, seg{src: dstOf(syn), dst: "198.51.100.8:40000", ack: true, seq: 5, ackNum: 77}))
		if srcOf(out) != "192.0.2.11:80" || r.counts().Opened != 1 {
			t.Errorf("from %s, %d flows", srcOf(out), r.counts().Opened)
		}
	}
}

func TestReturnHalfFragments(t *testing.T) {
	for _, workers := range []int{1, 3} {
		for _, server := range []string{"10.0.1.20:53", "[2001:db8:1::20]:8080"} {
			client, udp := "198.51.100.7:40000", true
			if server[0] == '[' {
				client, udp = "[2001:db8:c::7]:40000", false
			}
			r := newRig(t, workers, snatSpec())
			in := build(t, seg{src: server, dst: client, udp: udp, ack: !udp, payload: 1200})
			want := r.one(0, 1, 0, in)
			next := 0
			workerOf := func() int { next++; return next % workers }
			got, id := whole(t, r.spread(1, workerOf, cut(in, 77, 400)))
			if d := cmp.Diff(plainly(want), got); d != "" || id == 77 {
				t.Errorf("%s, id %d (-whole +fragments)\n%s", server, id, d)
			}
		}
	}
}

// TestReturnHalfIsARouter: it tells servers when a TTL ends or a packet is too big,
// as the VIP; without DF it cuts.
func TestReturnHalfIsARouter(t *testing.T) {
	r := newRig(t, 1, snatSpec())
	about := seg{src: "10.0.1.20:8080", dst: "198.51.100.7:40000", ack: true, ttl: 1}
	frame := build(t, about)
	quotes(t, r.answered(0, 1, 1, DropTTL, frame), "192.0.2.20", "10.0.1.20",
		verify(t, r.sent[0].bytes).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Payload, frame)
	r.narrow(1000)
	about.ttl, about.payload = 64, 1200
	frame = build(t, about)
	quotes(t, r.answered(0, 1, 1, DropTooBig, frame), "192.0.2.20", "10.0.1.20",
		verify(t, r.sent[0].bytes).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Payload, frame)
	pieces := r.deliver(0, 1, freely(frame))
	if len(pieces) != 2 {
		t.Fatalf("%d pieces", len(pieces))
	}
	if got, _ := whole(t, pieces); srcOf(got) != "192.0.2.20:80" {
		t.Errorf("from %s", srcOf(got))
	}
}

func TestReturnHalfErrors(t *testing.T) {
	r := newRig(t, 1, snatSpec())
	// What the other half sent to the server, and of which the server complains.
	sent := build(t, seg{src: "198.51.100.7:40000", dst: "10.0.1.20:8080", ack: true, seq: 41})
	e := icmpError(t, "10.0.1.20", "198.51.100.7", sent[14:])
	p := verify(t, r.one(0, 1, 0, e))
	if from, to := ipOf(p); from.String() != "192.0.2.20" || to.String() != "198.51.100.7" {
		t.Errorf("%v → %v", from, to)
	}
	if src, dst, seq := quoted(p); src != 40000 || dst != 80 || seq != 41 {
		t.Errorf("about %d → %d, number %d", src, dst, seq)
	}
	r.refused(0, 1, DropNoFlow, icmpError(t, "10.0.1.20", "198.51.100.9", sent[14:]))
}

func TestReturnHalfDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, snatSpec())
	frames := [][]byte{build(t, seg{src: "10.0.1.20:8080", dst: "198.51.100.7:40000", ack: true, payload: 9})}
	r.port[0][0].OnSend = nil
	if n := testing.AllocsPerRun(100, func() {
		r.port[0][1].Feed(frames, 1)
		r.step()
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// TestForwardHalf: DNAT whose answers nobody sees here is tracked by the client's
// segments alone, and routers' errors about the answers find the server.
func TestForwardHalf(t *testing.T) {
	for _, c := range []struct{ client, vip, server string }{
		{"198.51.100.7:40000", "192.0.2.30:80", "10.0.1.20:8080"},
		{"[2001:db8:c::7]:40000", "[2001:db8::30]:80", "[2001:db8:1::20]:8080"},
	} {
		for _, workers := range []int{1, 3} {
			r := newRig(t, workers, Spec{Seed: 1, Services: []ServiceSpec{
				service("half", c.vip, packet.ProtoTCP, conntrack.DNATOneWay, false, c.server),
			}})
			last := workers - 1
			from := seg{src: c.client, dst: c.vip, syn: true, seq: 1000}
			sent := r.one(0, 0, 1, build(t, from))
			if srcOf(sent) != c.client || dstOf(sent) != c.server {
				t.Fatalf("%s → %s", srcOf(sent), dstOf(sent))
			}
			from = seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 100}
			for range 3 {
				out := r.one(last, 0, 1, build(t, from))
				if srcOf(out) != c.client || dstOf(out) != c.server {
					t.Fatalf("%s → %s", srcOf(out), dstOf(out))
				}
				from.seq += 100
			}
			if n := r.counts(); n.Opened != 1 {
				t.Errorf("%d flows", n.Opened)
			}
			// Longer than a handshake may take, shorter than a connection may rest.
			r.now += int64(60 * time.Second)
			r.step()
			r.one(0, 0, 1, build(t, from))
			// A router on the answers' way complains to the VIP.
			answer := build(t, seg{src: c.vip, dst: c.client, ack: true, seq: 9001, ackNum: from.seq, payload: 1200})
			router := "198.51.100.99"
			if c.client[0] == '[' {
				router = "2001:db8:c::99"
			}
			p := verify(t, r.one(0, 0, 1, complaint(t, router, answer, 1400, 64)))
			if _, to := ipOf(p); to.String() != endpoint(c.server, 6).Addr.String() {
				t.Errorf("%d workers: the error went to %v", workers, to)
			}
			if src, dst, _ := quoted(p); src != 8080 || dst != 40000 {
				t.Errorf("about %d → %d", src, dst)
			}
			fin := from
			fin.fin, fin.seq = true, from.seq+100
			r.one(0, 0, 1, build(t, fin))
			again := seg{src: c.client, dst: c.vip, syn: true, seq: 1 << 30}
			r.one(0, 0, 1, build(t, again))
		}
	}
}

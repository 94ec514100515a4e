package dataplane

import (
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// TestReopenGoesBeyondTheLast: where the very same local port is taken again,
// the new connection's numbers lie beyond all that the backend has seen.
func TestReopenGoesBeyondTheLast(t *testing.T) {
	spec := testSpec()
	spec.Locals = spec.Locals[:1]
	spec.Services = spec.Services[:1]
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2000}} })
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	// More than the clock's 16 bytes a microsecond.
	seq, sent := uint32(1001), uint32(0)
	for range 300 {
		c.fromClient(seg{ack: true, seq: seq, ackNum: 9001, payload: 1400})
		seq, sent = seq+1400, sent+1400
		c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1 + sent})
	}
	c.fromClient(seg{ack: true, rst: true, seq: seq, ackNum: 9001})
	r.now += 1e6
	again := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	if again.local != c.local || again.backend != c.backend {
		t.Fatalf("%s to %s, had %s to %s", again.local, again.backend, c.local, c.backend)
	}
	if last := c.isn + 1 + sent; int32(again.isn-last) <= 0 {
		t.Errorf("ISN %d lies %d before what the backend has seen", again.isn, last-again.isn)
	}
}

// TestReopenFallsBackToAnother: the backend to be kept cannot be had, any other
// one will do.
func TestReopenFallsBackToAnother(t *testing.T) {
	spec := testSpec()
	spec.Services = []ServiceSpec{
		service("a", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
		service("b", "192.0.2.12:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80"),
	}
	for turns := range 2 { // whoever has had the last turn
		r := newRig(t, 1, spec)
		w := r.dp.Workers[0]
		const client = "198.51.100.7:40000"
		for i := range turns {
			r.open(0, fmt.Sprintf("198.51.100.7:%d", 100+i), "192.0.2.11:80")
		}
		r.open(0, client, "192.0.2.12:80") // takes (client, 10.0.1.20:80)
		p := &w.b.pkt[0]
		syn := build(t, seg{src: client, dst: "192.0.2.11:80", syn: true})
		chunk := w.pool.take(1)[0]
		copy(w.umem[chunk+256:], syn)
		w.b.desc[0] = unix.XDPDesc{Addr: chunk + 256, Len: uint32(len(syn))}
		packet.Parse(syn, p)
		if v := w.open(0, 0, &conntrack.Entry{}); v != Forwarded {
			w.release(chunk)
			t.Errorf("%v, though 10.0.1.21 is free", v)
		}
		w.flush()
	}
}

// TestPortReusedBehindTheBack: the backend has forgotten a connection that is
// open here, the client takes its port again. The new connection must be
// tracked, and its client be told to the backend.
func TestPortReusedBehindTheBack(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
	c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})

	const seq, serverSeq = 0x70000000, 0x30000000
	syn := tcpOf(c.fromClient(seg{syn: true, seq: seq, opts: []layers.TCPOption{mss(1460)}}))
	c.fromServer(seg{syn: true, ack: true, seq: serverSeq, ackNum: syn.Seq + 1, opts: []layers.TCPOption{mss(1460)}})
	if got := toa(c.fromClient(seg{ack: true, seq: seq + 1, ackNum: serverSeq + 1})); got == nil {
		t.Error("the backend is not told the client")
	}
	c.fromClient(seg{ack: true, seq: seq + 1, ackNum: serverSeq + 1, payload: 10})
	c.fromServer(seg{rst: true, ack: true, seq: serverSeq + 1, ackNum: syn.Seq + 11})
	if got := r.counts(); got.Drops() != 0 {
		t.Errorf("%d dropped", got.Drops())
	}
}

// TestHalfOpenGivesItsPort: a SYN flood that has taken all ports keeps nobody
// out for long; connections and fresh handshakes keep theirs.
func TestHalfOpenGivesItsPort(t *testing.T) {
	spec := testSpec()
	spec.Locals, spec.Services = spec.Locals[:1], spec.Services[:1]
	spec.Services[0].Backends = spec.Services[0].Backends[:1]
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2003}} })
	syn := func(i int) []byte {
		return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.10:80", syn: true})
	}
	first := verify(t, r.one(0, 0, 1, syn(0)))
	for i := 1; i < 4; i++ {
		r.one(0, 0, 1, syn(i))
	}
	r.refused(0, 0, DropPortsExhausted, syn(4))
	r.now += 1e9
	if got := tcpOf(verify(t, r.one(0, 0, 1, syn(4)))).SrcPort; got != tcpOf(first).SrcPort {
		t.Errorf("port %d, the oldest had %d", got, tcpOf(first).SrcPort)
	}
	for i := 5; i < 8; i++ {
		r.open(0, fmt.Sprintf("198.51.100.7:%d", 1024+i), "192.0.2.10:80")
	}
	r.now += 1e9
	r.open(0, "198.51.100.7:9000", "192.0.2.10:80")
	r.now += 1e9
	r.refused(0, 0, DropPortsExhausted, syn(8))
	if c := r.counts(); c.Evicted != 5 || r.dp.Workers[0].BackendCounts()[0].Active != 4 {
		t.Errorf("%d evicted, %+v", c.Evicted, r.dp.Workers[0].BackendCounts())
	}
}

// TestSecondSYN: a client gives up before it was answered and connects again at once,
// from the same port. Whichever of its two SYNs the backend has got makes the connection.
func TestSecondSYN(t *testing.T) {
	for name, seq := range map[string]uint32{"first": 1000, "second": 0x70000000} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := &conv{r: r, client: "198.51.100.7:40000", vip: "192.0.2.10:80"}
			var isn uint32
			for _, n := range []uint32{1000, 0x70000000} {
				syn := c.fromClient(seg{syn: true, seq: n, opts: []layers.TCPOption{mss(1460)}})
				src, dst := ipOf(syn)
				local, backend := hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), uint16(tcpOf(syn).DstPort))
				if c.local != "" && (local != c.local || backend != c.backend) {
					t.Fatalf("by %s to %s, then by %s to %s", c.local, c.backend, local, backend)
				}
				if c.local, c.backend = local, backend; n == seq {
					isn = tcpOf(syn).Seq
				}
			}
			answer := c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: isn + 1, opts: []layers.TCPOption{mss(1460)}})
			if got := tcpOf(answer).Ack; got != seq+1 {
				t.Errorf("the client is answered %d, want %d", got, seq+1)
			}
			if got := toa(c.fromClient(seg{ack: true, seq: seq + 1, ackNum: 9001})); got == nil {
				t.Error("the backend is not told the client")
			}
			c.fromClient(seg{ack: true, seq: seq + 1, ackNum: 9001, payload: 10})
			c.fromServer(seg{rst: true, ack: true, seq: 9001, ackNum: isn + 11})
			if got := r.counts(); got.Drops() != 0 || got.Opened != 1 {
				t.Errorf("%d flows, %d packets dropped", got.Opened, got.Drops())
			}
		})
	}
}

// TestSecondSYNElsewhere: so it is in other modes. With PROXY the server never sees the
// second, which cannot harm the first.
func TestSecondSYNElsewhere(t *testing.T) {
	first, second := uint32(1000), uint32(0x70000000)
	for _, k := range []struct {
		client, vip string
		taken       uint32 // by the server
	}{
		{"198.51.100.7:40000", "192.0.2.13:80", first},
		{"[2001:db8:c::7]:40000", "[2001:db8::11]:80", first},
		{"[2001:db8:c::7]:40000", "[2001:db8::11]:80", second},
		{"[2001:db8:c::7]:40000", "[2001:db8::64]:80", first},
		{"[2001:db8:c::7]:40000", "[2001:db8::64]:80", second},
	} {
		t.Run(fmt.Sprintf("%s/%d", k.vip, k.taken), func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := &conv{r: r, client: k.client, vip: k.vip}
			var isn uint32
			for _, n := range []uint32{first, second} {
				syn := c.fromClient(seg{syn: true, seq: n, opts: []layers.TCPOption{mss(1460)}})
				src, dst := ipOf(syn)
				c.local, c.backend = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), uint16(tcpOf(syn).DstPort))
				if n == k.taken {
					isn = tcpOf(syn).Seq
				}
				if proxy := k.vip == "192.0.2.13:80"; tcpOf(syn).SYN != (n == first || !proxy) {
					t.Errorf("SYN %d to the server: %v", n, tcpOf(syn).SYN)
				}
			}
			answer := c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: isn + 1, opts: []layers.TCPOption{mss(1460)}})
			if got := tcpOf(answer).Ack; got != k.taken+1 {
				t.Errorf("the client is answered %d, want %d", got, k.taken+1)
			}
			c.fromClient(seg{ack: true, seq: k.taken + 1, ackNum: 9001})
			data := tcpOf(c.fromClient(seg{ack: true, seq: k.taken + 1, ackNum: 9001, payload: 10}))
			if data.Seq != isn+1 || len(data.Payload) < 10 {
				t.Errorf("data of %d bytes at %d, want it at %d", len(data.Payload), data.Seq, isn+1)
			}
			if got := r.counts(); got.Drops() != 0 || got.Opened != 1 {
				t.Errorf("%d flows, %d packets dropped", got.Opened, got.Drops())
			}
		})
	}
}

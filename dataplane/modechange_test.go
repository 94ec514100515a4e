package dataplane

import (
	"fmt"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// modeKinds are all modes that a service with a VIP can have.
var modeKinds = []struct {
	name   string
	mode   conntrack.Mode
	tunnel nat.Encapsulation
}{
	{"full-nat", conntrack.FullNAT, nat.NoTunnel},
	{"dnat", conntrack.DNAT, nat.NoTunnel},
	{"dnat, replies elsewhere", conntrack.DNATOneWay, nat.NoTunnel},
	{"dsr-l2", conntrack.DirectReturn, nat.NoTunnel},
	{"tunnel", conntrack.DirectReturn, nat.GUE},
}

// modeSpec has one service in the n-th of modeKinds, or, beyond them, its return half.
func modeSpec(n int, family int) Spec {
	vip, servers := "192.0.2.20:80", []string{"10.0.1.20:80", "10.0.1.21:80"}
	if family == 6 {
		vip, servers = "[2001:db8::20]:80", []string{"[2001:db8:1::20]:80", "[2001:db8:1::21]:80"}
	}
	s := service("web", vip, packet.ProtoTCP, conntrack.DNAT, false, servers...)
	if n == len(modeKinds) {
		s.ReturnOnly = true
	} else {
		k := modeKinds[n]
		s = service("web", vip, packet.ProtoTCP, k.mode, k.mode == conntrack.FullNAT, servers...)
		if s.Tunnel = (nat.Tunnel{Kind: k.tunnel}); k.tunnel == nat.GUE {
			s.Tunnel.Port = 6080
			if s.Tunnel.Source = addr("172.16.0.1"); family == 6 {
				s.Tunnel.Source = addr("2001:db8:99::1")
			}
		}
	}
	return Spec{Seed: 1, Services: []ServiceSpec{s}, Locals: []packet.Addr{addr("10.0.1.10"), addr("2001:db8:1::10")}}
}

// innerOf takes the tunnel off a frame of modeSpec's, if there is one.
func innerOf(t *testing.T, f []byte) []byte {
	tn := nat.Tunnel{Kind: nat.GUE, Port: 6080}
	if f[14]>>4 == 4 && f[23] == packet.ProtoUDP || f[14]>>4 == 6 && f[20] == packet.ProtoUDP {
		u := unwrap(t, &tn, f)
		return append(append([]byte(nil), f[:14]...), u.inner...)
	}
	return f
}

// TestModeChanges: a service gets another mode, or becomes a mere return half, while it
// has flows. They go on as they began, to the same server, and new ones as it is now.
func TestModeChanges(t *testing.T) {
	for from, was := range modeKinds {
		for to := range len(modeKinds) + 1 {
			now := "snat"
			if to < len(modeKinds) {
				now = modeKinds[to].name
				if from == to || was.mode == conntrack.DirectReturn && modeKinds[to].mode == conntrack.DirectReturn {
					continue
				}
			}
			for _, workers := range []int{1, 3} {
				for _, family := range []int{4, 6} {
					t.Run(fmt.Sprint(was.name, " → ", now, "/", workers, " workers, IPv", family), func(t *testing.T) {
						changeMode(t, workers, family, from, to, nil)
					})
				}
			}
			t.Run(fmt.Sprint(was.name, " → ", now, "/NICs' spreading known"), func(t *testing.T) {
				changeMode(t, 3, 4, from, to, microsoftNIC(t, 3))
			})
		}
	}
}

// changeMode is one of these changes. Packets arrive with any worker, in turn; where it
// is known how the NICs spread them, servers' answers to new flows with the right one.
func changeMode(t *testing.T, workers, family, from, to int, n *nic) {
	const flows = 8
	r := newRigWith(t, workers, modeSpec(from, family), func(o *Options) {
		if o.UMEM = make([]byte, workers*1024*testFrame); n != nil {
			o.Spread = n.told(t)
		}
	})
	r.dp.PublishRoutes(directRoutes(2, 1500))
	g := NewRegistry(workers)
	publish := func(n int) {
		snap, err := g.Build(modeSpec(n, family).after(modeSpec(from, family)))
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
	}
	client, vip := "198.51.100.7:%d", "192.0.2.20:80"
	if family == 6 {
		client, vip = "[2001:db8:c::7]:%d", "[2001:db8::20]:80"
	}
	// say sends a segment and returns from and to where it went on.
	say := func(worker, port int, s seg) [2]string {
		t.Helper()
		s.src, s.dst = fmt.Sprintf(client, port), vip
		out := r.deliver(worker, 0, build(t, s))
		if len(out) != 1 || out[0].nic != 1 {
			t.Fatalf("port %d: %d frames, %v", port, len(out), r.counts().Verdicts)
		}
		in := innerOf(t, out[0].bytes)
		verify(t, in)
		return [2]string{srcOf(in), dstOf(in)}
	}
	begin := func(port int) [2]string { return say(port%workers, port, seg{syn: true, seq: 1000}) }
	goOn := func(port int) [2]string {
		return say((port+1)%workers, port, seg{ack: true, seq: 1001, ackNum: 1, payload: 5})
	}
	publish(from)
	met := map[int][2]string{}
	for port := range flows {
		met[port] = begin(4000 + port)
	}
	publish(to)
	for port := range flows {
		if got := goOn(4000 + port); got != met[port] {
			t.Errorf("port %d: %v, before %v", port, got, met[port])
		}
	}
	if to == len(modeKinds) {
		return
	}
	for port := range flows {
		first := begin(5000 + port)
		if then := goOn(5000 + port); first != then {
			t.Errorf("port %d: %v, then %v", port, first, then)
		}
		if n == nil || modeKinds[to].mode != conntrack.FullNAT {
			continue
		}
		answer := seg{src: first[1], dst: first[0], ack: true, seq: 9001}
		from, local := endpoint(first[1], packet.ProtoTCP), endpoint(first[0], packet.ProtoTCP)
		before := r.counts().Verdicts[HandedOver]
		if out := r.deliver(n.worker(from.Addr, local.Addr, from.Port, local.Port), 1, build(t, answer)); len(out) != 1 || out[0].nic != 0 {
			t.Errorf("port %d: %d frames of an answer", port, len(out))
		}
		if after := r.counts().Verdicts[HandedOver]; after != before {
			t.Errorf("port %d: an answer was handed over", port)
		}
	}
	if c := r.counts(); c.Opened != 2*flows {
		t.Errorf("%d flows", c.Opened)
	}
}

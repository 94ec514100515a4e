package dataplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// orphanSpec has one service of each kind with two backends and the policy.
func orphanSpec(policy BackendDown) Spec {
	spec := testSpec()
	spec.Services = []ServiceSpec{
		service("fnat4", "192.0.2.10:80", packet.ProtoTCP, conntrack.FullNAT, true, "10.0.1.20:8080", "10.0.1.21:8080"),
		service("dnat4", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
		proxied("proxied", "192.0.2.14:80", nat.ProxyV1, "10.0.1.20:8014", "10.0.1.21:8014"),
		service("fnat4u", "192.0.2.10:5000", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:5001", "10.0.1.21:5001"),
		service("dnat4u", "192.0.2.11:5000", packet.ProtoUDP, conntrack.DNAT, false, "10.0.1.20:5000", "10.0.1.21:5000"),
	}
	for i := range spec.Services {
		spec.Services[i].OnBackendDown = policy
	}
	return spec
}

// without is spec without the backends at an address, which other services keep.
func without(t *testing.T, spec Spec, backend string) Spec {
	t.Helper()
	removed := 0
	for i := range spec.Services {
		s := &spec.Services[i]
		var left []BackendSpec
		for _, b := range s.Backends {
			if b.Endpoint == endpoint(backend, s.VIP.Proto) {
				removed++
			} else {
				left = append(left, b)
			}
		}
		s.Backends = left
	}
	if removed != 1 {
		t.Fatalf("%d services had %s", removed, backend)
	}
	return spec
}

// orphanRig is a rig whose snapshots are of one registry.
func orphanRig(t *testing.T, policy BackendDown) (r *rig, publish func(Spec)) {
	r = newRig(t, 1, orphanSpec(policy))
	g := NewRegistry(1)
	publish = func(s Spec) {
		t.Helper()
		snap, err := g.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
	}
	publish(orphanSpec(policy))
	return r, publish
}

var orphanVIPs = []string{"192.0.2.10:80", "192.0.2.11:80", "192.0.2.14:80"}

// TestBackendDownReset: the next packet of a flow whose backend has left, from
// whichever side, has both ends reset, and the client can begin anew.
func TestBackendDownReset(t *testing.T) {
	for _, vip := range orphanVIPs {
		for _, side := range []string{"client", "server", "server's SYN"} {
			t.Run(vip+"/"+side, func(t *testing.T) {
				r, publish := orphanRig(t, BackendDownReset)
				c := r.open(0, "198.51.100.7:40000", vip)
				publish(without(t, orphanSpec(BackendDownReset), c.backend))
				r.now += int64(time.Second)
				frame, nic := build(t, seg{src: c.client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 10}), 0
				switch side {
				case "server":
					frame, nic = build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10}), 1
				case "server's SYN": // which is no client that begins anew
					frame, nic = build(t, seg{src: c.backend, dst: c.local, syn: true, seq: 77}), 1
				}
				before := r.counts()
				r.deliver(0, nic, frame)
				r.now += int64(time.Second)
				r.step()
				var nics [2]int
				for _, f := range r.sent {
					if tcpOf(verify(t, f.bytes)).RST {
						nics[f.nic]++
					}
				}
				after := r.counts()
				if nics != [2]int{1, 1} || len(r.sent) != 2 {
					t.Errorf("%d frames, RSTs by NIC %v", len(r.sent), nics)
				}
				if after.Verdicts[DropBackendGone] != before.Verdicts[DropBackendGone]+1 || r.dp.Workers[0].Flows() != 0 {
					t.Errorf("%d drops, %d flows", after.Verdicts[DropBackendGone], r.dp.Workers[0].Flows())
				}
				if again := r.open(0, c.client, vip); again.backend == c.backend {
					t.Error("the client came to the backend that is gone")
				}
			})
		}
	}
}

// TestBackendDownDrop: packets vanish until the backend is back.
func TestBackendDownDrop(t *testing.T) {
	for _, vip := range orphanVIPs {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownDrop)
			c := r.open(0, "198.51.100.7:40000", vip)
			publish(without(t, orphanSpec(BackendDownDrop), c.backend))
			data := seg{ack: true, seq: 1001, ackNum: 9001, payload: 10}
			fromClient, fromServer := data, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10}
			fromClient.src, fromClient.dst = c.client, vip
			r.refused(0, 0, DropBackendGone, build(t, fromClient))
			r.refused(0, 1, DropBackendGone, build(t, fromServer))
			r.refused(0, 0, DropBackendGone, build(t, seg{src: c.client, dst: vip, syn: true, seq: 77}))
			publish(orphanSpec(BackendDownDrop))
			r.one(0, 0, 1, build(t, fromClient))
			// Gone for good, the client is let go after a while.
			publish(without(t, orphanSpec(BackendDownDrop), c.backend))
			r.now += int64(desertion/conntrack.TicksPerSecond+1) * int64(time.Second)
			if got := serverOf(r, c.client, vip); got == c.backend {
				t.Errorf("a SYN after a long silence goes to %s", got)
			}
		})
	}
}

// TestBackendGoneWhileServiceDrains: a backend's time is over before that of its service,
// which drains and has no other for its flows, whatever the policy.
func TestBackendGoneWhileServiceDrains(t *testing.T) {
	for _, policy := range []BackendDown{BackendDownReset, BackendDownDrop, BackendDownReschedule} {
		for _, vip := range []string{"192.0.2.10:5000", "192.0.2.11:5000", "192.0.2.10:80", "192.0.2.11:80"} {
			t.Run(fmt.Sprint(policy, vip), func(t *testing.T) {
				r, publish := orphanRig(t, policy)
				udp := vip[len(vip)-5:] == ":5000"
				frame := build(t, seg{src: "198.51.100.7:40000", dst: vip, udp: udp, ack: !udp, seq: 1001, ackNum: 9001, payload: 10})
				if udp {
					r.one(0, 0, 1, frame)
				} else {
					r.open(0, "198.51.100.7:40000", vip)
				}
				spec := Spec{Locals: orphanSpec(policy).Locals}.after(orphanSpec(policy))
				for i := range spec.Services {
					spec.Services[i].Backends = []BackendSpec{{Endpoint: endpoint("10.0.1.29:9", spec.Services[i].VIP.Proto)}}
				}
				publish(spec)
				want := DropBackendGone
				if policy == BackendDownReschedule && udp {
					want = DropNoService
				} else if policy == BackendDownReschedule {
					want = DropNoFlow
				}
				r.refused(0, 0, want, frame)
			})
		}
	}
}

// TestBackendDownReschedule: datagrams go to another backend at once, connections are
// forgotten, and what the old backend has still to say gets through before.
func TestBackendDownReschedule(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:5000", "192.0.2.11:5000"} {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownReschedule)
			query := build(t, seg{src: "198.51.100.7:40000", dst: vip, udp: true, payload: 10})
			to := func() (local, backend string) {
				p := verify(t, r.one(0, 0, 1, query))
				src, dst := ipOf(p)
				u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
				return hostPort(src.String(), uint16(u.SrcPort)), hostPort(dst.String(), uint16(u.DstPort))
			}
			local, backend := to()
			publish(without(t, orphanSpec(BackendDownReschedule), backend))
			r.one(0, 1, 0, build(t, seg{src: backend, dst: local, udp: true, payload: 20}))
			if _, now := to(); now == backend {
				t.Error("a datagram went to the backend that is gone")
			}
			if n := r.dp.Workers[0].Flows(); n != 1 {
				t.Errorf("%d flows", n)
			}
		})
	}
	for _, vip := range orphanVIPs {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownReschedule)
			c := r.open(0, "198.51.100.7:40000", vip)
			publish(without(t, orphanSpec(BackendDownReschedule), c.backend))
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
			r.refused(0, 0, DropNoFlow, build(t, seg{src: c.client, dst: vip, ack: true, seq: 1001, ackNum: 9011, payload: 10}))
			if again := r.open(0, c.client, vip); again.backend == c.backend {
				t.Error("the client came to the backend that is gone")
			}
		})
	}
}

// TestBackendDownSYN: who begins anew on an old connection's port need not wait.
func TestBackendDownSYN(t *testing.T) {
	for _, policy := range []BackendDown{BackendDownReset, BackendDownReschedule} {
		for _, vip := range orphanVIPs {
			t.Run(fmt.Sprint(policy, vip), func(t *testing.T) {
				r, publish := orphanRig(t, policy)
				c := r.open(0, "198.51.100.7:40000", vip)
				publish(without(t, orphanSpec(policy), c.backend))
				if got := serverOf(r, c.client, vip); got == c.backend {
					t.Errorf("a SYN goes to %s", got)
				}
			})
		}
	}
}

// TestServiceGoneKeepsFlows: what becomes of orphans is not for flows of a service
// that has left with its backends, nor for those of one that has a namesake elsewhere.
func TestServiceGoneKeepsFlows(t *testing.T) {
	r, publish := orphanRig(t, BackendDownReset)
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	spec := orphanSpec(BackendDownReset)
	spec.Services = spec.Services[1:]
	publish(spec.after(orphanSpec(BackendDownReset)))
	c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
	c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11, payload: 10})
}

// TestBackendDownDirect: with direct return, too, flows do not go on to who is gone.
func TestBackendDownDirect(t *testing.T) {
	for policy, want := range map[BackendDown]Verdict{
		BackendDownReset: DropBackendGone, BackendDownDrop: DropBackendGone, BackendDownReschedule: DropNoFlow,
	} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			r := newDirectRig(t, 1)
			g := NewRegistry(1)
			publish := func(gone int) {
				spec := directSpec()
				for i := range spec.Services {
					s := &spec.Services[i]
					if s.OnBackendDown = policy; gone >= 0 && s.Name == "tcp4" {
						s.Backends = append(s.Backends[:gone:gone], s.Backends[gone+1:]...)
					}
				}
				snap, err := g.Build(spec)
				if err != nil {
					t.Fatal(err)
				}
				r.dp.Publish(snap)
				r.step()
			}
			publish(-1)
			const client, vip = "198.51.100.7:40000", "192.0.2.20:80"
			first := r.toBackend(0, build(t, seg{src: client, dst: vip, syn: true, seq: 1000}))
			r.toBackend(0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001}))
			publish(first)
			before := r.counts().Verdicts[want]
			r.deliver(0, 0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 5}))
			if got := r.counts().Verdicts[want] - before; got != 1 {
				t.Errorf("%d packets dropped as %v", got, want)
			}
			if policy == BackendDownDrop {
				return
			}
			r.now += int64(time.Second)
			r.step()
			if n := r.dp.Workers[0].Flows(); n != 0 {
				t.Errorf("%d flows", n)
			}
			if again := r.toBackend(0, build(t, seg{src: client, dst: vip, syn: true, seq: 5000})); again == first {
				t.Error("the client came to the backend that is gone")
			}
		})
	}
}

// TestBackendDownLaterFragment: a fragment without ports of its own opens no flow, whose
// first packet it would be, when the backend of its datagram's flow is gone.
func TestBackendDownLaterFragment(t *testing.T) {
	for _, vip := range []string{"192.0.2.20:80", "192.0.2.20:5000"} {
		t.Run(vip, func(t *testing.T) {
			spec := directSpec()
			for i := range spec.Services {
				spec.Services[i].OnBackendDown = BackendDownReschedule
			}
			r := newDirectRig(t, 1)
			_, publish := r.publisher(1)
			publish(spec)
			s := seg{src: "198.51.100.7:40000", dst: vip, udp: strings.HasSuffix(vip, ":5000"), payload: 100}
			if !s.udp {
				r.toBackend(0, build(t, seg{src: s.src, dst: vip, syn: true, seq: 1000}))
				s.ack, s.seq, s.ackNum = true, 1001, 9001
			}
			pieces := cut(build(t, s), 77, 64)
			to := r.toBackend(0, pieces[0])
			for i := range spec.Services {
				if b := &spec.Services[i].Backends; len(*b) > 1 {
					*b = slices.Delete(slices.Clone(*b), to, to+1)
				}
			}
			publish(spec)
			r.refused(0, 0, DropNoFlow, pieces[1])
			if c := r.counts(); c.Opened != 1 || r.dp.Workers[0].Flows() != 0 {
				t.Errorf("%d flows opened, %d left", c.Opened, r.dp.Workers[0].Flows())
			}
		})
	}
}

package dataplane

import (
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

const oneClient = "198.51.100.7:40000"

// oneSpec has one-packet services with two backends each, and an ordinary one.
func oneSpec() Spec {
	spec := testSpec()
	full := service("one-full", "192.0.2.15:53", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:53", "10.0.1.21:53")
	dnat := service("one-dnat", "192.0.2.16:53", packet.ProtoUDP, conntrack.DNAT, false, "10.0.1.20:54", "10.0.1.21:54")
	full.OnePacket, dnat.OnePacket = true, true
	spec.Services = append(spec.Services, full, dnat)
	return spec
}

// query sends a datagram of a client and returns where it went.
func (r *rig) query(client, vip string) (src, dst string) {
	r.t.Helper()
	p := verify(r.t, r.one(0, 0, 1, build(r.t, seg{src: client, dst: vip, udp: true, payload: 40})))
	s, d := ipOf(p)
	u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	return hostPort(s.String(), uint16(u.SrcPort)), hostPort(d.String(), uint16(u.DstPort))
}

// answer sends a server's datagram and wants it at the client, from the VIP.
func (r *rig) answer(server, to, vip, client string) {
	r.t.Helper()
	p := verify(r.t, r.one(0, 1, 0, build(r.t, seg{src: server, dst: to, udp: true, payload: 50})))
	s, d := ipOf(p)
	u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if from, at := hostPort(s.String(), uint16(u.SrcPort)), hostPort(d.String(), uint16(u.DstPort)); from != vip || at != client {
		r.t.Errorf("answer %s → %s, want %s → %s", from, at, vip, client)
	}
}

func TestOnePacket(t *testing.T) {
	for _, vip := range []string{"192.0.2.15:53", "192.0.2.16:53"} {
		for workers := 1; workers <= 3; workers++ {
			t.Run(vip, func(t *testing.T) {
				r := newRig(t, workers, oneSpec())
				var src, dst [6]string
				for i := range src {
					src[i], dst[i] = r.query(oneClient, vip)
					if i > 0 && dst[i] == dst[i-1] {
						t.Errorf("datagrams %d and %d to %s", i-1, i, dst[i])
					}
				}
				for _, i := range []int{3, 0, 5, 1, 4, 2} { // in whatever order
					r.answer(dst[i], src[i], vip, oneClient)
				}
				r.now += int64(3 * time.Second)
				r.step()
				flows, active := 0, int64(0)
				for _, w := range r.dp.Workers {
					flows += w.Flows()
					for _, b := range w.BackendCounts() {
						active += b.Active
					}
				}
				if flows != 0 || active != 0 {
					t.Errorf("%d flows, %d active a while after the answers", flows, active)
				}
			})
		}
	}
}

// TestOnePacketErrors: an ICMP error about an answer finds the server that gave
// it, one about a query its client.
func TestOnePacketErrors(t *testing.T) {
	for _, vip := range []string{"192.0.2.15:53", "192.0.2.16:53"} {
		t.Run(vip, func(t *testing.T) {
			r := newRig(t, 1, oneSpec())
			r.query(oneClient, vip)
			src, dst := r.query(oneClient, vip)
			about := func(inner []byte, from string, nic int, mac [6]byte) []byte {
				q := verify(t, inner)
				to, _ := ipOf(q)
				ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: endpoint(from, 17).Addr.Netip().AsSlice(), DstIP: to}
				return serialize(t, &layers.Ethernet{SrcMAC: mac[:], DstMAC: nicMAC[nic][:], EthernetType: layers.EthernetTypeIPv4}, ip,
					&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(inner[14:14+28]))
			}
			query := build(t, seg{src: src, dst: dst, udp: true, payload: 40})
			_, to := ipOf(verify(t, r.one(0, 1, 0, about(query, dst, 1, serverMAC))))
			if to.String() != "198.51.100.7" {
				t.Errorf("error about the query goes to %v", to)
			}
			r.answer(dst, src, vip, oneClient)
			answer := build(t, seg{src: vip, dst: oneClient, udp: true, payload: 50})
			_, to = ipOf(verify(t, r.one(0, 0, 1, about(answer, oneClient, 0, clientMAC))))
			if want := endpoint(dst, 17).Addr.String(); to.String() != want {
				t.Errorf("error about the answer goes to %v, want %s", to, want)
			}
		})
	}
}

// TestOnePacketFlood: datagrams from invented addresses, and from one client's
// port, take neither an established flow's place nor another service's ports.
func TestOnePacketFlood(t *testing.T) {
	r := newRigWith(t, 1, oneSpec(), func(o *Options) { o.Flows = 64 })
	c := r.open(0, "198.51.100.8:40000", "192.0.2.10:80")
	for i := range 500 {
		vip := []string{"192.0.2.15:53", "192.0.2.16:53"}[i%2]
		r.query(hostPort("198.51.100.9", uint16(1024+i%300)), vip)
	}
	if n := r.counts(); n.Drops() != 0 || r.dp.Workers[0].Flows() != 1+16 {
		t.Errorf("%d drops, %d flows", n.Drops(), r.dp.Workers[0].Flows())
	}
	c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
	r.query("198.51.100.10:40000", "192.0.2.10:5000")
	src, dst := r.query(oneClient, "192.0.2.15:53")
	r.answer(dst, src, "192.0.2.15:53", oneClient)
}

// TestOnePacketPorts: a datagram's port is not another's while it may still be
// answered, and is again afterwards.
func TestOnePacketPorts(t *testing.T) {
	spec := oneSpec()
	spec.Locals = spec.Locals[:1]
	spec.Services = spec.Services[len(spec.Services)-2 : len(spec.Services)-1]
	spec.Services[0].Backends = spec.Services[0].Backends[:1]
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2003}} })
	vip := "192.0.2.15:53"
	for range 4 {
		r.query(oneClient, vip)
	}
	frame := build(t, seg{src: oneClient, dst: vip, udp: true, payload: 40})
	r.refused(0, 0, DropPortsExhausted, frame)
	r.now += int64(time.Second)
	r.refused(0, 0, DropPortsExhausted, frame)
	r.now += int64(2 * time.Second)
	r.query(oneClient, vip)
}

func TestOnePacketDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, oneSpec())
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	list := [][]byte{
		build(t, seg{src: oneClient, dst: "192.0.2.15:53", udp: true, payload: 40}),
		build(t, seg{src: oneClient, dst: "192.0.2.16:53", udp: true, payload: 40}),
	}
	if n := testing.AllocsPerRun(500, func() {
		r.now += int64(time.Second) / 10
		r.port[0][0].Feed(list, 1)
		r.step()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestOnePacketFragments: later fragments go where their first went, and the
// next datagram goes elsewhere.
func TestOnePacketFragments(t *testing.T) {
	for _, vip := range []string{"192.0.2.15:53", "192.0.2.16:53"} {
		t.Run(vip, func(t *testing.T) {
			r := newRig(t, 1, oneSpec())
			whole := build(t, seg{src: oneClient, dst: vip, udp: true, payload: 1400})
			last := ""
			for id := range 4 {
				pieces := cut(whole, uint32(id+1), 600)
				out := r.deliver(0, 0, pieces...)
				if len(out) != len(pieces) {
					t.Fatalf("%d pieces out of %d", len(out), len(pieces))
				}
				to := map[string]bool{}
				for _, f := range out {
					_, d := ipOf(gopacket.NewPacket(f.bytes, layers.LayerTypeEthernet, gopacket.Default))
					to[d.String()] = true
				}
				if len(to) != 1 || to[last] {
					t.Errorf("datagram %d to %v, the one before to %s", id, to, last)
				}
				for last = range to {
				}
			}
		})
	}
}

// TestOnePacketFragmentsChangeFamily: to a service whose servers are IPv4 by now
// fragments go as IPv4 ones, though the client's last datagram went to an IPv6 one.
func TestOnePacketFragmentsChangeFamily(t *testing.T) {
	spec, vip := testSpec(), "[2001:db8::15]:53"
	one := service("one", vip, packet.ProtoUDP, conntrack.FullNAT, false, "[2001:db8:1::20]:53")
	one.OnePacket = true
	spec.Services = append(spec.Services, one)
	r, registry := newRig(t, 1, spec), NewRegistry(1)
	frame := build(t, seg{src: "[2001:db8:c::7]:4000", dst: vip, udp: true, payload: 592})
	for _, backend := range []string{"[2001:db8:1::20]:53", "10.0.1.20:53"} {
		spec.Services[len(spec.Services)-1].Backends[0].Endpoint = endpoint(backend, packet.ProtoUDP)
		snap, err := registry.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		if backend[0] == '[' {
			r.one(0, 0, 1, frame)
			continue
		}
		got, _ := whole(t, r.deliver(0, 0, cut(frame, 1, 304)...))
		if dst := dstOf(got); dst != backend {
			t.Errorf("sent to %s, want %s", dst, backend)
		}
		verify(t, got)
	}
}

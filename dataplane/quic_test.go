package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// quicVIPs are those of quicSpec, by how they forward.
var quicVIPs = map[string]string{
	"full-nat": "192.0.2.20:443", "dnat": "192.0.2.21:443", "full-nat v6": "[2001:db8::20]:443", "nat64": "[2001:db8::21]:443",
}

// quicSpec has services with katran's layout, and backends 1, 2 and 3.
func quicSpec() Spec {
	spec := testSpec()
	spec.Services = nil
	for name, vip := range quicVIPs {
		mode, backends := conntrack.FullNAT, []string{"10.0.1.17:443", "10.0.1.18:443", "10.0.1.19:443"}
		switch name {
		case "dnat":
			mode, backends = conntrack.DNAT, []string{"10.0.1.17:444", "10.0.1.18:444", "10.0.1.19:444"}
		case "full-nat v6":
			backends = []string{"[2001:db8:1::11]:443", "[2001:db8:1::12]:443", "[2001:db8:1::13]:443"}
		case "nat64":
			backends = []string{"10.0.1.17:445", "10.0.1.18:445", "10.0.1.19:445"}
		}
		s := service(name, vip, packet.ProtoUDP, mode, false, backends...)
		s.QUIC = QUICSpec{Layout: QUICKatran}
		for i := range s.Backends {
			s.Backends[i].ServerID = uint64(1 + i)
		}
		spec.Services = append(spec.Services, s)
	}
	return spec
}

// quicRig has snapshots of one registry.
func quicRig(t *testing.T, workers int) (r *rig, publish func(change func(*ServiceSpec))) {
	t.Helper()
	r = newRig(t, workers, quicSpec())
	g := NewRegistry(workers)
	publish = func(change func(*ServiceSpec)) {
		t.Helper()
		spec := quicSpec()
		for i := range spec.Services {
			change(&spec.Services[i])
		}
		snap, err := g.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
	}
	publish(func(*ServiceSpec) {})
	return r, publish
}

// quicClient is a client of VIP's family, by number.
func quicClient(vip string, n int) string {
	if netip.MustParseAddrPort(vip).Addr().Is4() {
		return fmt.Sprintf("198.51.100.7:%d", 40000+n)
	}
	return fmt.Sprintf("[2001:db8:c::7]:%d", 40000+n)
}

// udpFrame is a datagram of any bytes.
func udpFrame(t testing.TB, src, dst string, payload []byte) []byte {
	t.Helper()
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	eth := &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	if from.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		return serialize(t, eth, ip, udp, gopacket.Payload(payload))
	}
	eth.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return serialize(t, eth, ip, udp, gopacket.Payload(payload))
}

// quicShort is a packet of a connection to the server of an id, in katran's version 2.
func quicShort(id byte) []byte {
	return append([]byte{0x4f, 0x80, 0, 0, id, 9, 9, 9, 9}, make([]byte, 30)...)
}

// quicFirst is a client's first packet: its own ID looks as if it were server 3's.
func quicFirst() []byte {
	return append([]byte{0xc3, 0, 0, 0, 1, 8, 0x80, 0, 0, 3, 1, 2, 3, 4, 0}, make([]byte, 1200)...)
}

// server sends a client's datagram and returns which server got it, 1 to 3, and how it
// saw the client.
func (r *rig) server(worker int, client, vip string, payload []byte) (id int, local string) {
	r.t.Helper()
	p := verify(r.t, r.one(worker, 0, 1, udpFrame(r.t, client, vip, payload)))
	src, dst := ipOf(p)
	u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if string(u.Payload) != string(payload) {
		r.t.Errorf("%x arrives as %x", payload, u.Payload)
	}
	return int(dst[len(dst)-1] & 0xf), hostPort(src.String(), uint16(u.SrcPort))
}

func (r *rig) quicCounts() (c ServiceCount) {
	for _, w := range r.dp.Workers {
		for _, s := range w.ServiceCounts() {
			c.Add(&s)
		}
	}
	return c
}

// TestQUICMigration: a client that goes on from another port, and so on other workers,
// keeps its server and gets its answers.
func TestQUICMigration(t *testing.T) {
	for name, vip := range quicVIPs {
		for workers := 1; workers <= 3; workers++ {
			t.Run(fmt.Sprint(name, workers), func(t *testing.T) {
				r, _ := quicRig(t, workers)
				id, _ := r.server(0, quicClient(vip, 0), vip, quicFirst())
				port := map[string]uint16{"dnat": 444, "nat64": 445}[name]
				if port == 0 {
					port = 443
				}
				host := fmt.Sprintf("10.0.1.%d", 16+id)
				if name == "full-nat v6" {
					host = fmt.Sprintf("2001:db8:1::1%d", id)
				}
				for n := range 24 {
					client := quicClient(vip, n)
					got, local := r.server(n%workers, client, vip, quicShort(byte(id)))
					if got != id {
						t.Fatalf("from port %d: server %d, want %d", n, got, id)
					}
					p := verify(t, r.one(0, 1, 0, udpFrame(t, hostPort(host, port), local, quicShort(7))))
					if _, dst := ipOf(p); hostPort(dst.String(), uint16(p.Layer(layers.LayerTypeUDP).(*layers.UDP).DstPort)) != client {
						t.Fatalf("the answer goes to %v, not to %s", dst, client)
					}
				}
				if diff := cmp.Diff(ServiceCount{QUICNone: 1, QUICRouted: 23}, r.quicCounts()); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// TestQUICWithoutID: what names nobody goes where the scheduler says, and stays there.
func TestQUICWithoutID(t *testing.T) {
	tests := []struct {
		name    string
		payload []byte
		want    ServiceCount
	}{
		{"initial", quicFirst(), ServiceCount{QUICNone: 3}},
		{"unknown server", quicShort(9), ServiceCount{QUICUnknown: 3}},
		{"no layout", append([]byte{0x40}, make([]byte, 20)...), ServiceCount{QUICNone: 3}},
		{"short", []byte{0x40, 0x80, 0, 0, 2}, ServiceCount{QUICNone: 3}},
		{"empty", nil, ServiceCount{QUICNone: 3}},
	}
	for _, tt := range tests {
		for name, vip := range quicVIPs {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				r, _ := quicRig(t, 1)
				var seen [4]int
				for n := range 3 {
					id, local := r.server(0, quicClient(vip, n), vip, tt.payload)
					seen[id]++
					if again, same := r.server(0, quicClient(vip, n), vip, tt.payload); again != id || same != local {
						t.Errorf("server %d, then %d", id, again)
					}
				}
				if diff := cmp.Diff([4]int{0, 1, 1, 1}, seen); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(tt.want, r.quicCounts()); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// TestQUICIDWins: a flow's datagram with another server's ID goes to that server, the
// flow with it, and an ID of nobody's changes nothing.
func TestQUICIDWins(t *testing.T) {
	for name, vip := range quicVIPs {
		t.Run(name, func(t *testing.T) {
			r, _ := quicRig(t, 2)
			client := quicClient(vip, 0)
			for i, id := range []byte{1, 1, 2, 2, 9, 2, 3, 1, 0, 1} {
				want := int(id)
				switch id { // what names nobody stays
				case 9:
					want = 2
				case 0:
					want = 1
				}
				if got, _ := r.server(0, client, vip, quicShort(id)); got != want {
					t.Errorf("datagram %d: server %d, want %d", i, got, want)
				}
			}
			if got, _ := r.server(0, client, vip, quicFirst()); got != 1 {
				t.Errorf("a new connection from the same port: server %d", got)
			}
			if diff := cmp.Diff(ServiceCount{QUICRouted: 4, QUICMoved: 3}, r.quicCounts()); diff != "" {
				t.Error(diff)
			}
			flows := 0
			for _, w := range r.dp.Workers {
				flows += w.Flows()
			}
			if c := r.counts(); flows != 1 || c.Drops() != 0 || c.Opened != 4 {
				t.Errorf("%d flows, %d opened, %d drops", flows, c.Opened, c.Drops())
			}
			last := udpFrame(t, client, vip, quicShort(2))
			if netip.MustParseAddrPort(vip).Addr().Is4() {
				last[14+8] = 1 // nobody looks at the header's checksum here
			} else {
				last[14+7] = 1
			}
			r.deliver(0, 0, last) // its TTL is used up
			if got := r.quicCounts().QUICMoved; got != 3 {
				t.Errorf("what goes nowhere has moved the flow")
			}
		})
	}
}

// TestQUICDrain: a server that takes no new connections keeps those it has, from
// wherever they come; one that is gone does not.
func TestQUICDrain(t *testing.T) {
	for name, vip := range quicVIPs {
		t.Run(name, func(t *testing.T) {
			r, publish := quicRig(t, 1)
			publish(func(s *ServiceSpec) { s.Backends[1].Weight = 0 })
			for n := range 4 {
				if id, _ := r.server(0, quicClient(vip, n), vip, quicFirst()); id == 2 {
					t.Error("a new connection to a server that drains")
				}
				if id, _ := r.server(0, quicClient(vip, 10+n), vip, quicShort(2)); id != 2 {
					t.Errorf("server %d for a connection of server 2", id)
				}
			}
			publish(func(s *ServiceSpec) {
				for i := range s.Backends {
					s.Backends[i].Weight = 0
				}
			})
			if id, _ := r.server(0, quicClient(vip, 20), vip, quicShort(3)); id != 3 {
				t.Errorf("all drain: server %d for a connection of server 3", id)
			}
			r.refused(0, 0, DropNoBackend, udpFrame(t, quicClient(vip, 21), vip, quicFirst()))
			publish(func(s *ServiceSpec) {
				s.Backends = s.Backends[:2]
				s.OnBackendDown = BackendDownDrop
			})
			if id, _ := r.server(0, quicClient(vip, 30), vip, quicShort(3)); id == 3 {
				t.Error("a connection to a server that is gone")
			}
			r.refused(0, 0, DropBackendGone, udpFrame(t, quicClient(vip, 20), vip, quicShort(3)))
			if id, _ := r.server(0, quicClient(vip, 20), vip, quicShort(1)); id != 1 {
				t.Errorf("server %d for server 1's connection on a flow whose server is gone", id)
			}
			publish(func(s *ServiceSpec) { s.QUIC, s.OnBackendDown = QUICSpec{}, BackendDownDrop })
			if id, _ := r.server(0, quicClient(vip, 20), vip, quicShort(2)); id != 1 {
				t.Error("an ID was looked at where no layout is")
			}
		})
	}
}

// TestQUICLimit: a server that is full takes no connection more, and no other gets it.
func TestQUICLimit(t *testing.T) {
	for name, vip := range quicVIPs {
		t.Run(name, func(t *testing.T) {
			r, publish := quicRig(t, 1)
			publish(func(s *ServiceSpec) { s.Backends[1].MaxConnections = 2 })
			for n := range 2 {
				r.server(0, quicClient(vip, n), vip, quicShort(2))
			}
			r.refused(0, 0, DropBackendsFull, udpFrame(t, quicClient(vip, 2), vip, quicShort(2)))
			if id, _ := r.server(0, quicClient(vip, 3), vip, quicShort(1)); id != 1 {
				t.Errorf("server %d", id)
			}
		})
	}
}

// TestQUICPersistence: a connection's ID counts more than where its client's prefix was
// before, and is counted once, whichever worker has the template.
func TestQUICPersistence(t *testing.T) {
	const clients = 30
	r, publish := quicRig(t, 3)
	publish(func(s *ServiceSpec) { s.Persistence = Persistence{Timeout: 1 << 20, Prefix: 24} })
	vip, first := quicVIPs["full-nat"], 0
	for n := range clients {
		id, _ := r.server(n%3, quicClient(vip, n), vip, quicFirst())
		if first == 0 {
			first = id
		}
		if id != first {
			t.Errorf("server %d, the prefix is with %d", id, first)
		}
	}
	for n := range clients {
		if id, _ := r.server(n%3, quicClient(vip, 100+n), vip, quicShort(byte(1+n%3))); id != 1+n%3 {
			t.Errorf("server %d, want %d", id, 1+n%3)
		}
	}
	if diff := cmp.Diff(ServiceCount{QUICNone: clients, QUICRouted: clients}, r.quicCounts()); diff != "" {
		t.Error(diff)
	}
}

// TestQUICFragments: the first fragment says where all go, also when it comes last.
func TestQUICFragments(t *testing.T) {
	for name, vip := range quicVIPs {
		t.Run(name, func(t *testing.T) {
			r, _ := quicRig(t, 2)
			for id := byte(1); id <= 3; id++ {
				whole := udpFrame(t, quicClient(vip, int(id)), vip, append(quicShort(id), make([]byte, 592-39)...))
				a, b := pieceOf(whole, uint32(id), span{0, 400, true}), pieceOf(whole, uint32(id), span{400, 200, false})
				for _, f := range r.deliver(0, 0, b, a) {
					_, dst := ipOf(gopacket.NewPacket(f.bytes, layers.LayerTypeEthernet, gopacket.Default))
					if dst[len(dst)-1]&0xf != id {
						t.Errorf("server %v for a connection of server %d", dst, id)
					}
				}
				if len(r.sent) != 2 {
					t.Errorf("%d fragments out", len(r.sent))
				}
			}
			// An ID that the fragment ends before is none, whatever lies behind it.
			whole := udpFrame(t, quicClient(vip, 9), vip, append(quicShort(2), make([]byte, 100)...))
			before := r.quicCounts().QUICNone
			r.deliver(0, 0, pieceOf(whole, 9, span{0, 16, true}))
			if got := r.quicCounts().QUICNone; got != before+1 {
				t.Errorf("%d without an ID, want %d", got, before+1)
			}
		})
	}
}

// TestQUICBeyondTheDatagram: what pads an IP packet behind its datagram is no ID.
func TestQUICBeyondTheDatagram(t *testing.T) {
	r, _ := quicRig(t, 1)
	vip := quicVIPs["full-nat"]
	f := udpFrame(t, quicClient(vip, 0), vip, quicShort(2))
	f[14+20+5], f[14+20+6], f[14+20+7] = 8+5, 0, 0 // the datagram has 5 bytes, and no checksum
	r.deliver(0, 0, f)
	if diff := cmp.Diff(ServiceCount{QUICNone: 1}, r.quicCounts()); diff != "" {
		t.Error(diff)
	}
}

// TestQUICPlain: datagrams that stay with their server take the short way, both ways,
// and nothing is allocated, not even where they move.
func TestQUICPlain(t *testing.T) {
	r, _ := quicRig(t, 1)
	for name, vip := range map[string]string{"full-nat": quicVIPs["full-nat"], "dnat": quicVIPs["dnat"], "full-nat v6": quicVIPs["full-nat v6"]} {
		client := quicClient(vip, 0)
		r.server(0, client, vip, quicShort(1))
		for payload, want := range map[string]bool{string(quicShort(1)): true, string(quicFirst()): true, string(quicShort(9)): true, "": true, string(quicShort(2)): false} {
			if v := r.plain(udpFrame(t, client, vip, []byte(payload))); v != undecided != want {
				t.Errorf("%s: verdict %d for %.9x", name, v, payload)
			}
		}
	}
	w, p, vip := r.dp.Workers[0], r.port[0][0], quicVIPs["full-nat"]
	p.OnSend, r.port[0][1].OnSend = nil, nil
	var frames [][]byte
	for _, id := range []byte{1, 1, 2, 3, 9} {
		frames = append(frames, udpFrame(t, quicClient(vip, 0), vip, quicShort(id)))
	}
	if n := testing.AllocsPerRun(100, func() {
		p.Feed(frames, 1)
		w.Poll(r.now)
	}); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// TestQUICDirect: where servers answer themselves their connections come back to them
// as well, a flow's IDs count more than the flow, and only where there is a header is
// one looked for.
func TestQUICDirect(t *testing.T) {
	for _, k := range directKinds {
		if !k.udp {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := newDirectRig(t, 2)
			spec := directSpec()
			for i := range spec.Services {
				s := &spec.Services[i]
				s.QUIC = QUICSpec{Layout: QUICKatran}
				for j := range s.Backends {
					s.Backends[j].ServerID = uint64(1 + j)
				}
			}
			snap, err := NewRegistry(2).Build(spec)
			if err != nil {
				t.Fatal(err)
			}
			r.dp.Publish(snap)
			r.step()
			for n, id := range []byte{1, 2, 2, 1, 1} {
				for _, client := range []string{fmt.Sprintf(k.client, 4000), fmt.Sprintf(k.client, 4001+n)} {
					if to := r.toBackend(n%2, udpFrame(t, client, k.vip, quicShort(id))); to%2 != int(id)-1 {
						t.Errorf("backend %d for a connection of server %d", to, id)
					}
				}
			}
			if diff := cmp.Diff(ServiceCount{QUICRouted: 8, QUICMoved: 2}, r.quicCounts()); diff != "" {
				t.Error(diff)
			}
			// The second piece begins as a header of another connection would.
			payload := make([]byte, 592)
			copy(payload, quicShort(1))
			copy(payload[392:], quicShort(2))
			whole := udpFrame(t, fmt.Sprintf(k.client, 4000), k.vip, payload)
			for i, f := range r.deliver(0, 0, pieceOf(whole, 9, span{0, 400, true}), pieceOf(whole, 9, span{400, 200, false})) {
				if to := [6]byte(f.bytes); to[5]%2 != 0 {
					t.Errorf("piece %d goes to %x", i, to)
				}
			}
			if c := r.quicCounts(); len(r.sent) != 2 || c.QUICMoved != 2 {
				t.Errorf("%d fragments out, %+v", len(r.sent), c)
			}
		})
	}
}

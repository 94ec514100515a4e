package dataplane

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/nat"
)

// complaint is an ICMP or ICMPv6 error of a router at from about the packet sent,
// which it quotes whole: "too big" with an MTU, or with none "time exceeded".
func complaint(t testing.TB, from string, sent []byte, mtu int, ttl uint8) []byte {
	t.Helper()
	a := addr(from)
	eth := &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}
	quoted := gopacket.Payload(sent[14:])
	if a.Is4() {
		icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(11, 0)}
		if mtu > 0 {
			icmp = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: uint16(mtu)}
		}
		return serialize(t, eth, &layers.IPv4{Version: 4, TTL: ttl, Protocol: layers.IPProtocolICMPv4,
			SrcIP: a.Netip().AsSlice(), DstIP: sent[26:30]}, icmp, quoted)
	}
	eth.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: layers.IPProtocolICMPv6, SrcIP: a.Netip().AsSlice(), DstIP: sent[22:38]}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(3, 0)}
	if mtu > 0 {
		icmp.TypeCode = layers.CreateICMPv6TypeCode(2, 0)
	}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	quoted = gopacket.Payload(append(binary.BigEndian.AppendUint32(nil, uint32(mtu)), quoted[:min(len(quoted), 1200)]...))
	return serialize(t, eth, ip, icmp, quoted)
}

// quoted is the TCP header in an ICMP error: its ports and sequence number.
func quoted(p gopacket.Packet) (src, dst uint16, seq uint32) {
	var b []byte
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		b = l.Payload[20:]
	} else {
		b = p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).Payload[4+40:]
	}
	return binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:])
}

// TestErrorsAboutProxyHeaders: a router behind l4fwd finds a packet too big, once
// one with the PROXY header, once what follows it, once after the server has
// acknowledged the header. The client, who knows of none, hears of its own
// packets: their numbers, and how long they may be for what l4fwd makes of them.
func TestErrorsAboutProxyHeaders(t *testing.T) {
	spec := testSpec()
	spec.Services = append(spec.Services, proxied("proxy6", "[2001:db8::14]:80", nat.ProxyV1, "[2001:db8:1::20]:8013"))
	for _, k := range []struct {
		name, client, vip, router string
		wider                     int // the client's side of the MTU that the router reports
	}{
		{"v4", "198.51.100.7:40000", "192.0.2.13:80", "10.0.1.1", 0},
		{"v6", "[2001:db8:c::7]:40000", "[2001:db8::14]:80", "2001:db8:1::1", 0},
		{"nat64", "[2001:db8:c::7]:40000", "[2001:db8::13]:80", "10.0.1.1", 20},
	} {
		t.Run(k.name, func(t *testing.T) {
			const mtu, payload = 1400, 1300
			r := newRig(t, 2, spec)
			c, _ := r.begin(k.client, k.vip, 1000, mss(1440))
			c.answer(mss(1460))
			size := uint32(len(tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})).Payload))
			if size == 0 {
				t.Fatal("no header")
			}
			check := func(what string, seq, sentAs uint32, wantMTU int) {
				t.Helper()
				sent := r.one(0, 0, 1, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: seq, ackNum: 9001, payload: payload}))
				if tcp := tcpOf(verify(t, sent)); tcp.Seq-c.isn != sentAs {
					t.Fatalf("%s: sent as %d, want %d", what, tcp.Seq-c.isn, sentAs)
				}
				for arrives := range 2 { // at the flow's worker, and at another
					p := verify(t, r.one(arrives, 1, 0, complaint(t, k.router, sent, mtu, 64)))
					src, dst, got := quoted(p)
					if src != 40000 || dst != 80 || got != seq {
						t.Errorf("%s: about %d → %d, number %d; want 40000 → 80, %d", what, src, dst, got, seq)
					}
					if told := toldMTU(p); told != wantMTU {
						t.Errorf("%s: told an MTU of %d, want %d", what, told, wantMTU)
					}
				}
			}
			check("with the header", 1001, 1, mtu+k.wider-int(size))
			check("behind it", 1001+payload, 1+size+payload, mtu+k.wider)
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1 + size})
			check("the header has arrived", 1001, 1+size, mtu+k.wider)
			if n := r.counts(); n.Drops() != 0 {
				t.Errorf("%+v", n.Verdicts)
			}
		})
	}
}

// TestErrorsAreHopsToo: an ICMP error about a flow whose own TTL ends here goes no
// further, and nothing is said about it; one more hop and it goes on, as it does
// where l4fwd is no hop.
func TestErrorsAreHopsToo(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for _, k := range []struct{ name, client, vip, router, access string }{
			{"v4", "198.51.100.7:40000", "192.0.2.10:80", "10.0.1.1", "198.51.100.1"},
			{"v6", "[2001:db8:c::7]:40000", "[2001:db8::10]:80", "2001:db8:1::1", "2001:db8:c::1"},
			{"dnat", "198.51.100.7:40000", "192.0.2.11:80", "10.0.1.1", "198.51.100.1"},
			{"nat64", "[2001:db8:c::7]:40000", "[2001:db8::64]:80", "10.0.1.1", "2001:db8:c::1"},
		} {
			t.Run(fmt.Sprintf("%s, keep %v", k.name, keep), func(t *testing.T) {
				spec := testSpec()
				spec.KeepTTL = keep
				r := newRig(t, 1, spec)
				c := r.open(0, k.client, k.vip)
				request := r.one(0, 0, 1, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 100}))
				answer := r.one(0, 1, 0, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 101, payload: 100}))
				for _, way := range []struct {
					from    string
					about   []byte
					in, out int
				}{{k.router, request, 1, 0}, {k.access, answer, 0, 1}} {
					last := complaint(t, way.from, way.about, 0, 1)
					if !keep {
						r.refused(0, way.in, DropTTL, last)
						if n := r.counts().Refusals; n != 0 {
							t.Errorf("%d refusals", n)
						}
						last = complaint(t, way.from, way.about, 0, 2)
					}
					if got := ttlOf(verify(t, r.one(0, way.in, way.out, last))); got != 1 {
						t.Errorf("TTL %d, want 1", got)
					}
				}
			})
		}
	}
}

func ttlOf(p gopacket.Packet) uint8 {
	if l, ok := p.NetworkLayer().(*layers.IPv4); ok {
		return l.TTL
	}
	return p.NetworkLayer().(*layers.IPv6).HopLimit
}

// TestNAT64TellsTheNarrowerHop: what an ICMP error says of an MTU, translated, is
// never more than fits both next hops of l4fwd itself (RFC 7915 sections 4.2 and
// 5.2), whoever says what.
func TestNAT64TellsTheNarrowerHop(t *testing.T) {
	for _, k := range []struct {
		client, server, said int
		toServer             bool
		want                 int
	}{
		{1500, 1500, 1400, false, 1420}, // the router is the narrowest
		{1400, 1500, 1450, false, 1400}, // the way to the client is
		{1500, 1300, 1450, false, 1320}, // the way to the server is
		{1500, 1500, 1300, true, 1280},
		{1350, 1500, 1450, true, 1330},
		{1500, 1300, 1450, true, 1300},
	} {
		t.Run(fmt.Sprintf("%+v", k), func(t *testing.T) {
			r := newRig(t, 1, withPolicy(func(s *ServiceSpec) { s.TOA = false }))
			c := r.open(0, "[2001:db8:c::7]:40000", "[2001:db8::64]:80")
			request := r.one(0, 0, 1, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 900}))
			answer := r.one(0, 1, 0, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 901, payload: 900}))
			r.dp.PublishRoutes(routesOf(k.client, k.server))
			in, out, e := 1, 0, complaint(t, "10.0.1.1", request, k.said, 64)
			if k.toServer {
				in, out, e = 0, 1, complaint(t, "2001:db8:c::1", answer, k.said, 64)
			}
			if got := toldMTU(verify(t, r.one(0, in, out, e))); got != k.want {
				t.Errorf("MTU %d, want %d", got, k.want)
			}
		})
	}
}

// TestIdentificationsDiffer: packets that l4fwd makes of its own, or in IPv4 of
// IPv6 ones, and that may be fragmented behind it have an identification each
// (RFC 6864 section 4), though the workers share their local addresses.
func TestIdentificationsDiffer(t *testing.T) {
	const workers, packets = 3, 50
	r := newRig(t, workers, testSpec())
	seen := map[string]bool{}
	note := func(p gopacket.Packet) {
		t.Helper()
		ip := p.NetworkLayer().(*layers.IPv4)
		if ip.Flags&layers.IPv4DontFragment != 0 {
			return
		}
		key := fmt.Sprint(ip.DstIP, ip.Protocol, ip.Id)
		if seen[key] {
			t.Fatalf("a second packet to %v with identification %d", ip.DstIP, ip.Id)
		}
		seen[key] = true
	}
	tcp := make([]*conv, 0, workers)
	for i := range 4 * workers {
		tcp = append(tcp, r.open(i%workers, fmt.Sprintf("[2001:db8:c::7]:%d", 40000+i), "[2001:db8::64]:80"))
	}
	for i := range packets {
		for worker := range workers {
			p := verify(t, r.one(worker, 0, 1, build(t, seg{src: fmt.Sprintf("[2001:db8:c::8]:%d", 5000+i%7), dst: "[2001:db8::64]:5000", udp: true, payload: 40})))
			note(p)
		}
		c := tcp[i%len(tcp)]
		note(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 20}))
		answer := r.one(0, 1, 0, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 21, payload: 9}))
		note(verify(t, r.one(i%workers, 0, 1, complaint(t, "2001:db8:c::1", answer, 1300, 64))))
	}
	if len(seen) < packets*workers {
		t.Errorf("only %d packets that may be fragmented", len(seen))
	}
}

package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// answered delivers a frame and wants it counted as dropped by v, and one frame
// sent by NIC out, its checksums right.
func (r *rig) answered(worker, nic, out int, v Verdict, frame []byte) gopacket.Packet {
	r.t.Helper()
	before := r.counts()
	sent := r.deliver(worker, nic, frame)
	after := r.counts()
	if len(sent) != 1 || sent[0].nic != out || after.Verdicts[v] != before.Verdicts[v]+1 || after.Refusals != before.Refusals+1 {
		r.t.Fatalf("%d frames out, %d counted as %v", len(sent), after.Verdicts[v]-before.Verdicts[v], v)
	}
	return verify(r.t, sent[0].bytes)
}

// quotes checks that an ICMP error goes to dst and quotes the frame it is about.
func quotes(t *testing.T, p gopacket.Packet, src, dst string, icmp, about []byte) {
	t.Helper()
	from, to := ipOf(p)
	if from.String() != src || to.String() != dst {
		t.Errorf("error %v → %v, want %s → %s", from, to, src, dst)
	}
	if q := icmp[:min(len(icmp), 40)]; !bytes.HasPrefix(about[14:], q) {
		t.Errorf("quotes\n% x, the packet was\n% x", q, about[14:])
	}
}

func TestTTLExceeded(t *testing.T) {
	tests := []struct {
		name, client, vip string
	}{
		{"v4", "198.51.100.7:40000", "192.0.2.10:80"},
		{"v4, no such service", "198.51.100.7:40000", "192.0.2.10:33434"},
		{"dnat", "198.51.100.7:40000", "192.0.2.11:80"},
		{"v6", "[2001:db8:c::7]:40000", "[2001:db8::10]:80"},
		{"nat64", "[2001:db8:c::7]:40000", "[2001:db8::64]:80"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			frame := build(t, seg{src: tt.client, dst: tt.vip, syn: true, ttl: 1})
			p := r.answered(0, 0, 0, DropTTL, frame)
			vip, client := endpoint(tt.vip, 6).Addr.String(), endpoint(tt.client, 6).Addr.String()
			if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
				if l.TypeCode != layers.CreateICMPv4TypeCode(11, 0) {
					t.Error(l.TypeCode)
				}
				quotes(t, p, vip, client, l.Payload, frame)
				return
			}
			l := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			if l.TypeCode != layers.CreateICMPv6TypeCode(3, 0) {
				t.Error(l.TypeCode)
			}
			quotes(t, p, vip, client, l.Payload[4:], frame)
		})
	}
	t.Run("from the server", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
		frame := build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, ttl: 1})
		p := r.answered(0, 1, 1, DropTTL, frame)
		quotes(t, p, endpoint(c.local, 6).Addr.String(), "10.0.1.20", p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Payload, frame)
	})
}

func TestTooBig(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	frame := build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1500})
	p := r.answered(0, 0, 0, DropTooBig, frame)
	l := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if l.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || l.Seq != 1492 {
		t.Errorf("%v, MTU %d; want room for TOA left: 1492", l.TypeCode, l.Seq)
	}
	quotes(t, p, "192.0.2.10", "198.51.100.7", l.Payload, frame)

	frame = build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 1500})
	if l := r.answered(0, 1, 1, DropTooBig, frame).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); l.Seq != 1500 {
		t.Errorf("MTU %d", l.Seq)
	}

	// An IPv4 server's packet grows by 20 bytes on its way to an IPv6 client.
	c = r.open(0, "[2001:db8:c::7]:40000", "[2001:db8::64]:80")
	frame = build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 1450})
	if l := r.answered(0, 1, 1, DropTooBig, frame).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); l.Seq != 1480 {
		t.Errorf("MTU %d, want 1480", l.Seq)
	}
}

// TestCrowdedOutWithData: where half-open flows have no place left, a SYN with data
// is refused like any other, and costs no flow and nobody's place.
func TestCrowdedOutWithData(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		for _, payload := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s, %d bytes", vip, payload), func(t *testing.T) {
				r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 4 })
				r.one(0, 0, 1, build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:80", syn: true}))
				r.refused(0, 0, DropHalfOpenFull, build(t, seg{src: "198.51.100.7:40000", dst: vip, syn: true, payload: payload}))
				if n := r.counts(); n.Opened != 1 || n.Evicted != 0 || r.dp.Workers[0].Flows() != 1 {
					t.Errorf("%d opened, %d evicted, %d flows", n.Opened, n.Evicted, r.dp.Workers[0].Flows())
				}
			})
		}
	}
}

// TestTooBigOpensNothing: the first packet of a client that does not fit the way
// to the server is answered, and costs neither a flow nor a port, nor what else
// is half-open.
func TestTooBigOpensNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame seg
		mtu   uint16
	}{
		{"udp", seg{src: "198.51.100.7:40000", dst: "192.0.2.11:5000", udp: true, payload: 1473}, 1500},
		{"udp, full-nat", seg{src: "198.51.100.7:40000", dst: "192.0.2.10:5000", udp: true, payload: 1473}, 1500},
		{"SYN with data, TOA", seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true, payload: 1461}, 1492},
		{"SYN with data", seg{src: "198.51.100.7:40000", dst: "192.0.2.11:80", syn: true, payload: 1461}, 1500},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 4 })
			r.one(0, 0, 1, build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:80", syn: true}))
			before := r.counts()
			l := r.answered(0, 0, 0, DropTooBig, build(t, c.frame)).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if l.Seq != c.mtu {
				t.Errorf("MTU %d, want %d", l.Seq, c.mtu)
			}
			if n := r.counts(); n.Opened != before.Opened || n.Evicted != 0 || r.dp.Workers[0].Flows() != 1 {
				t.Errorf("%d opened, %d evicted, %d flows", n.Opened-before.Opened, n.Evicted, r.dp.Workers[0].Flows())
			}
		})
	}
	t.Run("nat64", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		// 20 bytes less behind us: what is too long here fits there.
		r.one(0, 0, 1, build(t, seg{src: "[2001:db8:c::7]:4000", dst: "[2001:db8::64]:5000", udp: true, payload: 1472}))
		p := r.answered(0, 0, 0, DropTooBig, build(t, seg{src: "[2001:db8:c::7]:4001", dst: "[2001:db8::64]:5000", udp: true, payload: 1473}))
		if l := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); binary.BigEndian.Uint32(l.Payload) != 1520 {
			t.Errorf("MTU %d, want 1520", binary.BigEndian.Uint32(l.Payload))
		}
		if n := r.dp.Workers[0].Flows(); n != 1 {
			t.Errorf("%d flows", n)
		}
	})
}

func TestErrorsAreLimited(t *testing.T) {
	r := newRig(t, 1, testSpec())
	frame := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true, ttl: 1})
	sent := 0
	for range 3 * refusalBurst {
		sent += len(r.deliver(0, 0, frame))
	}
	if sent != refusalBurst {
		t.Errorf("%d errors at once, want %d", sent, refusalBurst)
	}
	r.now += int64(time.Second)
	if len(r.deliver(0, 0, frame)) != 1 {
		t.Error("none a second later")
	}
}

func TestStrayIsReset(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 2, spec)
	for worker := range 2 {
		p := r.answered(worker, 0, 0, DropNoFlow, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", ack: true, seq: 5, ackNum: 77, payload: 9}))
		if tcp := tcpOf(p); !tcp.RST || tcp.ACK || tcp.Seq != 77 {
			t.Errorf("%+v", tcp)
		}
	}
	r.refused(0, 0, DropNoFlow, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", rst: true, seq: 5}))
	r.refused(0, 0, DropNoFlow, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.11:80", ack: true, seq: 5})) // a service that does not ask for it
}

// TestStrayOfServerIsReset: a real server that sends to a flow of before a
// restart hears of it if its service says so, and only then.
func TestStrayOfServerIsReset(t *testing.T) {
	spec := testSpec()
	shared := service("shared", "192.0.2.14:80", packet.ProtoTCP, conntrack.FullNAT, false, "10.0.1.21:8080")
	spec.Services = append(spec.Services, shared)
	for i := range spec.Services {
		spec.Services[i].ResetStray = spec.Services[i].Name == "fnat4" || spec.Services[i].Name == "fnat6"
	}
	r := newRig(t, 2, spec)
	for _, c := range []struct {
		name, src, dst string
	}{
		{"v4", "10.0.1.20:8080", "10.0.1.10:5001"},
		{"v4, other worker", "10.0.1.20:8080", "10.0.1.10:5002"},
		{"v6", "[2001:db8:1::20]:8080", "[2001:db8:1::10]:5001"},
	} {
		for arrives := range 2 {
			t.Run(c.name, func(t *testing.T) {
				p := r.answered(arrives, 1, 1, DropNoFlow, build(t, seg{src: c.src, dst: c.dst, ack: true, seq: 5, ackNum: 77, payload: 9}))
				src, dst := ipOf(p)
				if tcp := tcpOf(p); !tcp.RST || tcp.ACK || tcp.Seq != 77 ||
					hostPort(src.String(), uint16(tcp.SrcPort)) != c.dst || hostPort(dst.String(), uint16(tcp.DstPort)) != c.src {
					t.Errorf("%v → %v, %+v", src, dst, tcp)
				}
			})
		}
	}
	for _, c := range []struct {
		name  string
		frame seg
	}{
		{"RST", seg{src: "10.0.1.20:8080", dst: "10.0.1.10:5001", rst: true, seq: 5}},
		{"no backend", seg{src: "10.0.1.20:8081", dst: "10.0.1.10:5001", ack: true}},
		{"shared with a service that drops", seg{src: "10.0.1.21:8080", dst: "10.0.1.10:5001", ack: true}},
		{"service that drops", seg{src: "10.0.1.20:8064", dst: "10.0.1.10:5001", ack: true}},
		{"udp", seg{src: "10.0.1.20:8080", dst: "10.0.1.10:5001", udp: true}},
	} {
		t.Run(c.name, func(t *testing.T) { r.refused(1, 1, DropNoFlow, build(t, c.frame)) })
	}
}

// TestUnanswerableCostsNoToken: RSTs without a flow, which nobody may answer,
// must not use up the answers to others.
func TestUnanswerableCostsNoToken(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 1, spec)
	rst := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", rst: true, seq: 5})
	away := build(t, seg{src: "203.0.113.7:40000", dst: "192.0.2.10:80", ack: true}) // no route back
	for range 2 * refusalBurst {
		r.refused(0, 0, DropNoFlow, rst)
		r.refused(0, 0, DropNoFlow, away)
	}
	sent := 0
	for range 2 * refusalBurst {
		sent += len(r.deliver(0, 0, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", ack: true})))
	}
	if sent != refusalBurst {
		t.Errorf("%d answers, want %d", sent, refusalBurst)
	}
}

// idleOut lets hours pass and returns what the two ends of the only flow get, by
// NIC.
func (r *rig) idleOut() [2]*layers.TCP {
	r.t.Helper()
	r.sent = nil
	for range 3 {
		r.now += int64(2*time.Hour + 5*time.Minute)
		for range 100 {
			r.step()
		}
	}
	var got [2]*layers.TCP
	for _, f := range r.sent {
		got[f.nic] = tcpOf(verify(r.t, f.bytes))
	}
	if len(r.sent) != 2 || got[0] == nil || got[1] == nil {
		r.t.Fatalf("%d frames sent", len(r.sent))
	}
	return got
}

// TestExpiryResetsBothEnds lets an established flow idle out: each end must get
// a RST with exactly the sequence number it expects next.
func TestExpiryResetsBothEnds(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		t.Run(vip, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := r.open(0, "198.51.100.7:40000", vip)
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 100})
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 101, payload: 300})
			got := r.idleOut()
			if s := got[0]; !s.RST || s.Seq != 9301 || s.Ack != 1101 {
				t.Errorf("client gets %+v", s)
			}
			if s := got[1]; !s.RST || s.Seq != c.isn+101 || s.Ack != 9301 {
				t.Errorf("server gets %+v", s)
			}
			if n := r.counts(); n.Expired != 1 || r.dp.Workers[0].Flows() != 0 {
				t.Errorf("%+v", n)
			}
		})
	}
}

func TestNAT64(t *testing.T) {
	r := newRig(t, 2, testSpec())
	c := r.open(1, "[2001:db8:c::7]:40000", "[2001:db8::64]:80")
	data := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 101})
	if got := toa(data); len(got) != 18 || binary.BigEndian.Uint16(got) != 40000 || !bytes.Equal(got[2:], addr("2001:db8:c::7").Netip().AsSlice()) {
		t.Errorf("TOA % x", got)
	}
	if ip := data.NetworkLayer().(*layers.IPv4); ip.TTL != 63 || ip.DstIP.String() != "10.0.1.20" {
		t.Errorf("%+v", ip)
	}
	answer := c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 102, payload: 333})
	if ip := answer.NetworkLayer().(*layers.IPv6); ip.SrcIP.String() != "2001:db8::64" || ip.DstIP.String() != "2001:db8:c::7" || ip.HopLimit != 63 {
		t.Errorf("%+v", ip)
	}
	if tcp := tcpOf(answer); tcp.Ack != 1102 || len(tcp.Payload) != 333 {
		t.Errorf("%+v", tcp)
	}
	syn := verify(t, r.one(0, 0, 1, build(t, seg{src: "[2001:db8:c::7]:41000", dst: "[2001:db8::64]:80", syn: true, opts: []layers.TCPOption{mss(1440)}})))
	src, dst := ipOf(syn)
	synAck := verify(t, r.one(0, 1, 0, build(t, seg{src: hostPort(dst.String(), 8064), dst: hostPort(src.String(), uint16(tcpOf(syn).SrcPort)),
		syn: true, ack: true, ackNum: tcpOf(syn).Seq + 1, opts: []layers.TCPOption{mss(1460)}})))
	if v := binary.BigEndian.Uint16(tcpOf(synAck).Options[0].OptionData); v != 1440 {
		t.Errorf("MSS %d, want 1440", v)
	}

	// UDP: a reply without checksum gets one on its way to IPv6.
	q := verify(t, r.one(0, 0, 1, build(t, seg{src: "[2001:db8:c::7]:4000", dst: "[2001:db8::64]:5000", udp: true, payload: 40})))
	src, dst = ipOf(q)
	u := q.Layer(layers.LayerTypeUDP).(*layers.UDP)
	a := verify(t, r.one(0, 1, 0, build(t, seg{src: hostPort(dst.String(), uint16(u.DstPort)), dst: hostPort(src.String(), uint16(u.SrcPort)), udp: true, payload: 41, noCsum: true})))
	if u := a.Layer(layers.LayerTypeUDP).(*layers.UDP); u.Checksum == 0 || len(u.Payload) != 41 {
		t.Errorf("%+v", u)
	}

	// A router behind l4fwd cannot pass the server's side: the client hears of it
	// in its own family.
	out := r.deliver(0, 0, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1102, ackNum: 9334, payload: 100}))
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{10, 0, 1, 1}, DstIP: endpoint(c.local, 6).Addr.Netip().AsSlice()}
	e := serialize(t, &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(out[0].bytes[14:14+28]))
	icmp := verify(t, r.one(1, 1, 0, e)).Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if icmp.TypeCode != layers.CreateICMPv6TypeCode(2, 0) || binary.BigEndian.Uint32(icmp.Payload) != 1420 {
		t.Errorf("%v, MTU %d; want packet too big, 1420", icmp.TypeCode, binary.BigEndian.Uint32(icmp.Payload))
	}
	if n := r.counts(); n.Drops() != 0 {
		t.Errorf("%+v", n.Verdicts)
	}
}

func TestRefusalsDoNotAllocate(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 1, spec)
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	c64 := r.open(0, "[2001:db8:c::7]:40000", "[2001:db8::64]:80")
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	list := [][]byte{
		build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, ttl: 1}),
		build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1500}),
		build(t, seg{src: "198.51.100.9:1", dst: c.vip, ack: true}),
		build(t, seg{src: c.backend, dst: "10.0.1.10:1", ack: true}),
		build(t, seg{src: c64.client, dst: c64.vip, ack: true, seq: 1001, ackNum: 9001, payload: 9}),
		build(t, seg{src: c64.backend, dst: c64.local, ack: true, seq: 9001, ackNum: c64.isn + 1, payload: 9}),
	}
	allocs := testing.AllocsPerRun(300, func() {
		r.now += int64(time.Second)
		r.port[0][0].Feed(list, 1)
		r.step()
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if r.counts().Refusals < 900 {
		t.Errorf("%d refusals", r.counts().Refusals)
	}
}

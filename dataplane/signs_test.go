package dataplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// signs are those of all backends.
func (r *rig) signs() (sum Signs) {
	for _, w := range r.dp.Workers {
		for i := range w.Signs() {
			sum.Add(&w.Signs()[i])
		}
	}
	return sum
}

// wait lets time pass for the next packet.
func (r *rig) wait(d time.Duration) { r.now += int64(d) }

// TestSigns: what flows of TCP meet with, once a flow, and what says nothing about the
// server, in every mode that sees both directions.
func TestSigns(t *testing.T) {
	const second = time.Second
	refuse := func(c *conv) { c.fromServer(seg{rst: true, ack: true, ackNum: c.isn + 1}) }
	steps := []struct {
		name string
		do   func(*rig, *conv)
		want Signs
	}{
		{"nothing yet", func(*rig, *conv) {}, Signs{}},
		{"an answer", func(_ *rig, c *conv) { c.answer(); c.answer() }, Signs{Answered: 1}},
		{"a SYN again", func(r *rig, c *conv) {
			for range 3 {
				r.wait(second)
				c.fromClient(seg{syn: true, seq: 1000})
			}
		}, Signs{Unanswered: 1}},
		{"two SYNs at once", func(r *rig, c *conv) {
			r.wait(second / 2)
			c.fromClient(seg{syn: true, seq: 1000})
		}, Signs{}},
		{"an answer that comes late", func(r *rig, c *conv) {
			r.wait(second)
			c.fromClient(seg{syn: true, seq: 1000})
			c.answer()
		}, Signs{Unanswered: 1, Answered: 1}},
		{"given up by time", func(r *rig, _ *conv) { r.wait(30 * second); r.step() }, Signs{Unanswered: 1}},
		{"given up by time, the SYN came again", func(r *rig, c *conv) {
			r.wait(second)
			c.fromClient(seg{syn: true, seq: 1000})
			r.wait(30 * second)
			r.step()
		}, Signs{Unanswered: 1}},
		{"given up for another SYN", func(r *rig, c *conv) {
			r.wait(2 * second)
			c.fromClient(seg{syn: true, seq: 77_000})
		}, Signs{Unanswered: 1}},
		{"given up by the client", func(r *rig, c *conv) {
			r.wait(2 * second)
			c.fromClient(seg{rst: true, seq: 1001})
			r.wait(30 * second)
			r.step()
		}, Signs{}},
		{"no ACK of the client", func(r *rig, c *conv) { c.answer(); r.wait(60 * second); r.step() }, Signs{Answered: 1}},
		{"an answer to another connection", func(r *rig, c *conv) {
			c.fromServer(seg{ack: true, seq: 7, ackNum: c.isn + 70_000})
			r.wait(second)
			c.fromClient(seg{syn: true, seq: 1000})
		}, Signs{}},
		{"refused", func(_ *rig, c *conv) { refuse(c); refuse(c) }, Signs{Refused: 1}},
		{"reset in the handshake", func(_ *rig, c *conv) { c.answer(); c.fromServer(seg{rst: true, seq: 9001}) }, Signs{Answered: 1, Reset: 1}},
		{"reset before data", func(_ *rig, c *conv) {
			c.answer()
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11})
			c.fromServer(seg{rst: true, ack: true, seq: 9001, ackNum: c.isn + 11})
		}, Signs{Answered: 1, Reset: 1}},
		{"reset after data", func(_ *rig, c *conv) {
			c.answer()
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11, payload: 20})
			c.fromServer(seg{rst: true, ack: true, seq: 9021, ackNum: c.isn + 11})
		}, Signs{Answered: 1}},
		{"a RST that nobody believes", func(_ *rig, c *conv) {
			c.answer()
			c.r.deliver(0, 1, build(c.r.t, seg{src: c.backend, dst: c.local, rst: true, seq: 5000}))
		}, Signs{Answered: 1}},
		{"reset by the client", func(_ *rig, c *conv) { c.answer(); c.fromClient(seg{rst: true, seq: 1001}) }, Signs{Answered: 1}},
	}
	for _, k := range []struct{ service, client, vip string }{
		{"fnat4", "198.51.100.7:1024", "192.0.2.10:80"},
		{"dnat6", "[2001:db8:c::7]:1024", "[2001:db8::11]:80"},
		{"nat64", "[2001:db8:c::7]:1024", "[2001:db8::64]:80"},
		{"proxy1", "198.51.100.7:1024", "192.0.2.13:80"},
	} {
		for _, s := range steps {
			if k.service == "proxy1" && s.name[:5] == "reset" && s.name != "reset in the handshake" && s.name != "reset by the client" {
				continue // the header counts in the server's acknowledgements
			}
			t.Run(k.service+"/"+s.name, func(t *testing.T) {
				r := newRig(t, 1, testSpec())
				c, _ := r.begin(k.client, k.vip, 1000)
				s.do(r, c)
				if d := cmp.Diff(s.want, r.signs()); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

// TestSignsWithoutAWay: a server that has no MAC address does not answer; where clients
// have none, their servers answer all the same.
func TestSignsWithoutAWay(t *testing.T) {
	r := newRig(t, 1, Spec{Services: []ServiceSpec{service("s", "192.0.2.10:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.9.20:80", "10.0.1.20:80")}})
	syn := func(client string) []sentFrame {
		return r.deliver(0, 0, build(t, seg{src: client, dst: "192.0.2.10:80", syn: true, seq: 1000}))
	}
	for range 2 {
		if out := syn("198.51.100.7:1024"); len(out) != 0 {
			t.Fatal("sent to nobody")
		}
	}
	r.wait(10 * time.Second)
	r.step()
	if d := cmp.Diff(Signs{Unanswered: 1}, r.signs()); d != "" {
		t.Error(d)
	}
	const stranger = "203.0.113.9:1024" // no route leads there
	if out := syn(stranger); len(out) != 1 {
		t.Fatalf("%d frames", len(out))
	}
	r.refused(0, 1, DropNoRoute, build(t, seg{src: "10.0.1.20:80", dst: stranger, syn: true, ack: true, seq: 9000, ackNum: 1001}))
	r.wait(30 * time.Second)
	r.step()
	if d := cmp.Diff(Signs{Unanswered: 1}, r.signs()); d != "" {
		t.Error(d)
	}
}

// TestSignsOfDirectReturn: there are none.
func TestSignsOfDirectReturn(t *testing.T) {
	for _, mode := range []conntrack.Mode{conntrack.DirectReturn, conntrack.DNATOneWay} {
		r := newRig(t, 1, Spec{Services: []ServiceSpec{service("s", "192.0.2.10:80", packet.ProtoTCP, mode, false, "10.0.1.20:80")}})
		for range 3 {
			r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.10:80", syn: true, seq: 1000}))
			r.wait(time.Second)
		}
		r.wait(time.Minute)
		r.step()
		if d := cmp.Diff(Signs{}, r.signs()); d != "" {
			t.Error(mode, d)
		}
	}
}

// closed is a server's word at from that the port of the datagram sent is closed.
func closed(t *testing.T, from string, sent []byte) []byte {
	t.Helper()
	a := addr(from)
	eth := &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}
	if a.Is4() {
		return serialize(t, eth, &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: a.Netip().AsSlice(), DstIP: sent[26:30]},
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(sent[14:]))
	}
	eth.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolICMPv6, SrcIP: a.Netip().AsSlice(), DstIP: sent[22:38]}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 4)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	return serialize(t, eth, ip, icmp, gopacket.Payload(append(make([]byte, 4), sent[14:]...)))
}

// TestSignsOfUDP: a first answer, and the server's own word that its port is closed.
func TestSignsOfUDP(t *testing.T) {
	for _, k := range []struct{ name, client, vip, backend string }{
		{"fnat4u", "198.51.100.7:1024", "192.0.2.10:5000", "10.0.1.20:5001"},
		{"nat64u", "[2001:db8:c::7]:1024", "[2001:db8::64]:5000", "10.0.1.20:5064"},
		{"dnat4u", "198.51.100.7:1024", "192.0.2.11:5000", "10.0.1.20:5000"},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			sent := r.one(0, 0, 1, build(t, seg{src: k.client, dst: k.vip, udp: true, payload: 20}))
			src, _ := ipOf(verify(t, sent))
			r.one(0, 1, 0, icmpError(t, "10.0.1.20", src.String(), sent[14:])) // host unreachable
			r.one(0, 1, 0, closed(t, "10.0.1.99", sent))                       // somebody else says so
			r.one(0, 1, 0, closed(t, "10.0.1.20", sent))
			if d := cmp.Diff(Signs{Refused: 1}, r.signs()); d != "" {
				t.Error(d)
			}
			port := uint16(sent[34])<<8 | uint16(sent[35])
			for range 3 {
				r.one(0, 1, 0, build(t, seg{src: k.backend, dst: hostPort(src.String(), port), udp: true, payload: 20}))
			}
			if d := cmp.Diff(Signs{Refused: 1, Answered: 1}, r.signs()); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("v6", func(t *testing.T) {
		r := newRig(t, 1, Spec{Services: []ServiceSpec{service("s", "[2001:db8::11]:53", packet.ProtoUDP, conntrack.DNAT, false, "[2001:db8:1::20]:53")}})
		sent := r.one(0, 0, 1, build(t, seg{src: "[2001:db8:c::7]:1024", dst: "[2001:db8::11]:53", udp: true, payload: 20}))
		r.one(0, 1, 0, closed(t, "2001:db8:1::20", sent))
		if d := cmp.Diff(Signs{Refused: 1}, r.signs()); d != "" {
			t.Error(d)
		}
	})
}

// TestSignsKept: a reload keeps them, and who has a gone backend's id begins anew.
func TestSignsKept(t *testing.T) {
	r := newRig(t, 1, Spec{})
	reg, publish := r.publisher(1)
	spec := func(backend string) Spec {
		return Spec{Services: []ServiceSpec{service("s", "192.0.2.10:80", packet.ProtoTCP, conntrack.DNAT, false, backend)}}
	}
	publish(spec("10.0.1.20:80"))
	r.open(0, "198.51.100.7:1", "192.0.2.10:80")
	publish(spec("10.0.1.20:80"))
	if d := cmp.Diff(Signs{Answered: 1}, r.signs()); d != "" {
		t.Error(d)
	}
	r.wait(3 * time.Hour)
	r.step()
	publish(Spec{})
	reg.Forget(r.backendCounts())
	publish(spec("10.0.1.21:80"))
	if d := cmp.Diff([]Signs{{}}, r.dp.Workers[0].Signs()); d != "" {
		t.Error(d)
	}
}

// TestSignsAllocs: counting costs no memory.
func TestSignsAllocs(t *testing.T) {
	r := newRig(t, 1, Spec{Services: []ServiceSpec{service("s", "192.0.2.10:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80")}})
	r.step()
	syn := build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.10:80", syn: true, seq: 1000})
	rst := build(t, seg{src: "10.0.1.20:80", dst: "198.51.100.7:1", rst: true, ack: true, ackNum: 1001})
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	w, in := r.dp.Workers[0], r.port[0]
	frames := [][]byte{nil}
	give := func(nic int, f []byte, after time.Duration) {
		frames[0] = f
		r.wait(after)
		in[nic].Feed(frames, 1)
		w.Poll(r.now)
	}
	if n := testing.AllocsPerRun(200, func() {
		give(0, syn, time.Second)
		give(0, syn, time.Second)
		give(1, rst, time.Second)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if s := r.signs(); s.Refused < 200 || s.Unanswered < 200 {
		t.Errorf("%+v", s)
	}
	if h := w.hopTo(0); h.State != route.Resolved {
		t.Error(h.State)
	}
}

// TestSignsOfBadSYNs: nobody can have a server that is well complained of by what every
// host drops without a word.
func TestSignsOfBadSYNs(t *testing.T) {
	option := func(kind layers.TCPOptionKind, n int) []layers.TCPOption {
		return []layers.TCPOption{mss(1460), {OptionType: kind, OptionLength: uint8(n), OptionData: make([]byte, n-2)}}
	}
	vips := []string{"192.0.2.10:80", "192.0.2.13:80", "[2001:db8::11]:80", "[2001:db8::64]:80"}
	tcp, ip := 1, 2 // whose checksum is wrong
	for name, k := range map[string]struct {
		seg  seg
		harm int
		late uint64
		vips []string
	}{
		"good":                      {late: 1, vips: vips},
		"good, with options":        {seg: seg{opts: option(3, 3)}, late: 1, vips: vips},
		"few hops left":             {seg: seg{ttl: leastTTL}, late: 1, vips: vips},
		"too few hops left":         {seg: seg{ttl: leastTTL - 1}, vips: vips},
		"checksum of TCP":           {harm: tcp, vips: vips},
		"checksum of TCP, data":     {seg: seg{payload: 10}, harm: tcp, vips: vips},
		"checksum of TCP, options":  {seg: seg{opts: option(3, 3)}, harm: tcp, vips: vips},
		"checksum of IP":            {harm: ip, vips: vips[:2]},
		"data":                      {seg: seg{payload: 10}, vips: vips[2:3]},
		"data that does not get on": {seg: seg{payload: 10}, late: 1, vips: vips[:2]},
		"MD5":                       {seg: seg{opts: option(packet.OptMD5, 18)}, vips: vips},
		"AO":                        {seg: seg{opts: option(packet.OptAO, 16)}, vips: vips},
	} {
		for _, vip := range k.vips {
			t.Run(name+"/"+vip, func(t *testing.T) {
				r := newRig(t, 1, testSpec())
				k.seg.src, k.seg.dst, k.seg.syn, k.seg.seq = "198.51.100.7:1024", vip, true, 1000
				if vip[0] == '[' {
					k.seg.src = "[2001:db8:c::7]:1024"
				}
				frame := build(t, k.seg)
				var p packet.Packet
				packet.Parse(frame, &p)
				switch k.harm {
				case tcp:
					frame[p.L4+packet.TCPChecksum] ^= 1
				case ip:
					frame[p.L3+packet.IPv4Checksum] ^= 1
				}
				for range 2 {
					if out := r.deliver(0, 0, frame); len(out) != 1 {
						t.Fatalf("%d frames", len(out))
					}
					r.wait(time.Second)
				}
				if d := cmp.Diff(Signs{Unanswered: k.late}, r.signs()); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
)

// stamps is the timestamps option.
func stamps(val, echo uint32) layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10,
		OptionData: binary.BigEndian.AppendUint64(nil, uint64(val)<<32|uint64(echo))}
}

// clocks are TSval and TSecr of p, false without the option.
func clocks(p gopacket.Packet) (val, echo uint32, ok bool) {
	for _, o := range tcpOf(p).Options {
		if o.OptionType == layers.TCPOptionKindTimestamps {
			return binary.BigEndian.Uint32(o.OptionData), binary.BigEndian.Uint32(o.OptionData[4:]), true
		}
	}
	return 0, 0, false
}

// announced is the MSS in p, 0 without the option.
func announced(p gopacket.Packet) uint16 {
	for _, o := range tcpOf(p).Options {
		if o.OptionType == layers.TCPOptionKindMSS {
			return binary.BigEndian.Uint16(o.OptionData)
		}
	}
	return 0
}

// begin sends a client's SYN and notes whom the backend sees.
func (r *rig) begin(client, vip string, seq uint32, opts ...layers.TCPOption) (*conv, gopacket.Packet) {
	r.t.Helper()
	c := &conv{r: r, client: client, vip: vip}
	syn := c.fromClient(seg{syn: true, seq: seq, opts: opts})
	src, dst := ipOf(syn)
	c.local, c.backend = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), uint16(tcpOf(syn).DstPort))
	c.isn = tcpOf(syn).Seq
	return c, syn
}

// answer is the backend's SYN-ACK as the client gets it.
func (c *conv) answer(opts ...layers.TCPOption) gopacket.Packet {
	c.r.t.Helper()
	return c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1, opts: opts})
}

// withPolicy is testSpec with every TCP service changed.
func withPolicy(change func(*ServiceSpec)) Spec {
	spec := testSpec()
	for i := range spec.Services {
		if spec.Services[i].VIP.Proto == 6 {
			change(&spec.Services[i])
		}
	}
	return spec
}

// TestTimestampPolicies follows the timestamps of a whole conversation through
// each policy, in every kind of service that can have it.
func TestTimestampPolicies(t *testing.T) {
	const client4, client6 = "198.51.100.7:40000", "[2001:db8:c::7]:40000"
	kinds := []struct{ name, client, vip string }{
		{"full-nat v4", client4, "192.0.2.10:80"}, {"full-nat v6", client6, "[2001:db8::10]:80"},
		{"nat64", client6, "[2001:db8::64]:80"}, {"proxy", client4, "192.0.2.13:80"},
		{"proxy and nat64", client6, "[2001:db8::13]:80"}, {"dnat", client4, "192.0.2.11:80"},
	}
	for _, k := range kinds {
		for _, policy := range []nat.TSPolicy{nat.TSKeep, nat.TSStrip, nat.TSTranslate} {
			if k.name == "dnat" && policy == nat.TSTranslate {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", k.name, policy), func(t *testing.T) {
				r := newRig(t, 1, withPolicy(func(s *ServiceSpec) {
					if s.Mode == conntrack.FullNAT || policy != nat.TSTranslate {
						s.Timestamps = policy
					}
				}))
				followClock(t, r, k.client, k.vip, policy)
			})
		}
	}
}

func followClock(t *testing.T, r *rig, client, vip string, policy nat.TSPolicy) {
	const clock, serverClock = 0xfffffff0, 7_000_000
	c, syn := r.begin(client, vip, 1000, mss(1400), stamps(clock, 0))
	first, _, ok := clocks(syn)
	switch {
	case ok == (policy == nat.TSStrip):
		t.Fatalf("the backend is offered timestamps: %v", ok)
	case policy == nat.TSStrip:
		return
	case (first == clock) == (policy == nat.TSTranslate):
		t.Fatalf("TSval %d of the client shows as %d", uint32(clock), first)
	}
	check := func(p gopacket.Packet, val, echo uint32) {
		t.Helper()
		if v, e, ok := clocks(p); !ok || v != val || e != echo {
			t.Errorf("TSval %d, TSecr %d, %v; want %d, %d", v, e, ok, val, echo)
		}
	}
	check(c.answer(mss(1400), stamps(serverClock, first)), serverClock, clock)
	delta := uint32(clock) - first
	for i := range uint32(3) {
		now, then := clock+40*(i+1), first+40*(i+1)
		check(c.fromClient(seg{ack: true, seq: 1001 + 10*i, ackNum: 9001, payload: 10, opts: []layers.TCPOption{stamps(now, serverClock+i)}}), then, serverClock+i)
	}
	header := uint32(0)
	if data := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10, opts: []layers.TCPOption{stamps(clock+9, 1)}})); len(data.Payload) > 10 {
		header = uint32(len(data.Payload) - 10)
	}
	reply := c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 31 + header, payload: 5, opts: []layers.TCPOption{stamps(serverClock+9, first+120)}})
	check(reply, serverClock+9, first+120+delta)
	if n := r.counts(); n.Drops() != 0 {
		t.Errorf("%d dropped", n.Drops())
	}
}

// TestTranslatedClockOfAReusedPort: clients whose clocks have nothing to do with
// each other come by one local port; the backend sees time go forward. Once by
// the same client again (its flow is reopened), once by others.
func TestTranslatedClockOfAReusedPort(t *testing.T) {
	for _, policy := range []nat.TSPolicy{nat.TSTranslate, nat.TSKeep} {
		for _, others := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/others=%v", policy, others), func(t *testing.T) {
				spec := withPolicy(func(s *ServiceSpec) {
					if s.Mode == conntrack.FullNAT {
						s.Timestamps = policy
					}
				})
				spec.Locals, spec.Services = spec.Locals[:1], spec.Services[:1]
				spec.Services[0].Backends = spec.Services[0].Backends[:1]
				r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2000}} })
				last, back := uint32(0), 0
				for i := range uint32(40) {
					client := "198.51.100.7:40000"
					if others {
						client = fmt.Sprintf("198.51.100.%d:40000", 7+i)
					}
					val := i * 0x9e3779b9
					c, syn := r.begin(client, "192.0.2.10:80", 1000, stamps(val, 0))
					seen, _, _ := clocks(syn)
					if i > 0 && int32(seen-last) < 0 {
						back++
					}
					c.answer(stamps(1, seen))
					r.now += 1e9 // and the client's clock goes on, as fast as it may
					val += 1000
					last, _, _ = clocks(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, opts: []layers.TCPOption{stamps(val, 1)}}))
					if policy == nat.TSTranslate && last-seen != 1000 {
						t.Fatalf("connection %d: %d ticks passed, the client's clock had 1000", i, last-seen)
					}
					c.fromClient(seg{rst: true, ack: true, seq: 1001, ackNum: 9001})
					if others {
						r.now += 11e9 // the timeout of closed flows
						for range 200 {
							r.step()
						}
					} else {
						r.now += 1e6
					}
				}
				if (back > 0) != (policy == nat.TSKeep) {
					t.Errorf("time went back %d times", back)
				}
				if got := r.counts(); got.Drops() != 0 || (got.Reopened == 39) == others {
					t.Errorf("%d dropped, %d reopened", got.Drops(), got.Reopened)
				}
			})
		}
	}
}

// full is as many options as a header has place for besides n bytes.
func full(n int) []layers.TCPOption {
	return []layers.TCPOption{{OptionType: 77, OptionLength: uint8(40 - n), OptionData: make([]byte, 38-n)}}
}

// TestTOANoRoom: what has no room for TOA goes on without it, or not at all, as
// the service has it; either way the cause is counted.
func TestTOANoRoom(t *testing.T) {
	for _, only := range []bool{false, true} {
		t.Run(fmt.Sprintf("only=%v", only), func(t *testing.T) {
			r := newRig(t, 1, withPolicy(func(s *ServiceSpec) { s.TOAOnly = only && s.TOA }))
			for _, k := range [][2]string{{"198.51.100.7:40000", "192.0.2.10:80"}, {"[2001:db8:c::7]:40000", "[2001:db8::64]:80"}} {
				c, _ := r.begin(k[0], k[1], 1000)
				c.answer()
				room := 8
				if k[0][0] == '[' {
					room = 20
				}
				fits := seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, opts: full(room)}
				if toa(c.fromClient(fits)) == nil {
					t.Error("no TOA though there is room to the byte")
				}
				crowded, large := fits, fits
				crowded.opts = full(room - 4)
				large.opts, large.payload = nil, 1500-40-room+1
				mtu := 1500 - room
				if c.vip[0] == '[' { // it becomes shorter on its way
					mtu += 20
				}
				if !only {
					for _, s := range []seg{crowded, large} {
						if toa(c.fromClient(s)) != nil {
							t.Error("TOA where there is no room for it")
						}
					}
					continue
				}
				r.refused(0, 0, DropTOA, build(t, crowded))
				p := r.answered(0, 0, 0, DropTooBig, build(t, large))
				if told := toldMTU(p); told != mtu {
					t.Errorf("the client is told an MTU of %d, want %d", told, mtu)
				}
			}
			want := [nat.NumTOAResults]uint64{nat.TOAInserted: 2, nat.TOANoRoom: 2, nat.TOATooBig: 2}
			if diff := cmp.Diff(want, r.counts().TOA); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNoFastOpenWithTOA: a server that had the connection from the SYN would not
// be told the client.
func TestNoFastOpenWithTOA(t *testing.T) {
	r := newRig(t, 1, testSpec())
	cookie := layers.TCPOption{OptionType: 34, OptionLength: 10, OptionData: make([]byte, 8)}
	for vip, cut := range map[string]bool{"192.0.2.10:80": true, "192.0.2.11:80": false} {
		syn := verify(t, r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: vip, syn: true, seq: 1000, opts: []layers.TCPOption{mss(1460), cookie}, payload: 50})))
		fastOpen := false
		for _, o := range tcpOf(syn).Options {
			fastOpen = fastOpen || o.OptionType == 34
		}
		if fastOpen == cut || (len(tcpOf(syn).Payload) > 0) == cut || announced(syn) != 1460 {
			t.Errorf("%s: Fast Open %v, %d bytes", vip, fastOpen, len(tcpOf(syn).Payload))
		}
	}
}

// TestKeepTTL: l4fwd is no hop, in either direction, of any kind, and says
// nothing about TTLs.
func TestKeepTTL(t *testing.T) {
	spec := testSpec()
	spec.KeepTTL = true
	r := newRig(t, 2, spec)
	ttl := func(p gopacket.Packet) uint8 {
		if l, ok := p.NetworkLayer().(*layers.IPv4); ok {
			return l.TTL
		}
		return p.NetworkLayer().(*layers.IPv6).HopLimit
	}
	for _, k := range [][2]string{
		{"198.51.100.7:40000", "192.0.2.10:80"}, {"198.51.100.7:40000", "192.0.2.11:80"}, {"198.51.100.7:40000", "192.0.2.13:80"},
		{"[2001:db8:c::7]:40000", "[2001:db8::10]:80"}, {"[2001:db8:c::7]:40000", "[2001:db8::64]:80"},
	} {
		c := r.open(0, k[0], k[1])
		for _, n := range []uint8{1, 2, 64, 255} {
			data := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 5, ttl: n})
			if got := ttl(data); got != n {
				t.Errorf("%s: %d arrives as %d", k[1], n, got)
			}
			if got := ttl(c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, ttl: n})); got != n {
				t.Errorf("%s: %d comes back as %d", k[1], n, got)
			}
		}
	}
	// A SYN with a TTL of 1 opens a flow: it does not end here.
	if got := ttl(verify(t, r.one(0, 0, 1, build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:80", syn: true, ttl: 1})))); got != 1 {
		t.Errorf("TTL %d", got)
	}
	ip := &layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{10, 0, 1, 1}}
	out := r.sent[0].bytes
	ip.DstIP = out[26:30]
	e := serialize(t, &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(out[14:14+28]))
	if got := ttl(verify(t, r.one(0, 1, 0, e))); got != 1 {
		t.Errorf("an error with TTL 1 arrives with %d", got)
	}
	// No host sends a TTL of 0, and nobody is told.
	zero := build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:80", syn: true, ttl: 1})
	zero[14+8] = 0
	r.refused(0, 0, DropTTL, zero)
	// What is routed on could circle.
	r.refused(0, 1, DropTTL, build(t, seg{src: "10.0.1.20:80", dst: "198.51.100.9:555", ack: true, ttl: 1}))
	r.refused(0, 0, DropNoService, build(t, seg{src: "198.51.100.8:40000", dst: "192.0.2.10:33434", udp: true, ttl: 1}))
	if n := r.counts(); n.Refusals != 0 {
		t.Errorf("%d errors sent", n.Refusals)
	}
}

// TestMSSClamp: the table of what SYN and SYN-ACK may announce, by family and by
// what is added to the client's segments.
func TestMSSClamp(t *testing.T) {
	const four, six = "198.51.100.7:40000", "[2001:db8:c::7]:40000"
	tests := []struct {
		name, client, vip string
		clamp             uint16
		mtus              [2]int // towards client and server
		in, syn, synAck   uint16 // announced by both, and what the other gets
	}{
		{"off", four, "192.0.2.11:80", 0, [2]int{1400, 1300}, 1460, 1460, 1460},
		{"off, TOA", four, "192.0.2.10:80", 0, [2]int{1400, 1300}, 1460, 1460, 1452},
		{"number", four, "192.0.2.11:80", 1300, [2]int{1500, 1500}, 1460, 1300, 1300},
		{"number, TOA", four, "192.0.2.10:80", 1300, [2]int{1500, 1500}, 1460, 1300, 1292},
		{"number, TOA 6", six, "[2001:db8::10]:80", 1300, [2]int{1500, 1500}, 1440, 1300, 1280},
		{"number, PROXY", four, "192.0.2.13:80", 1300, [2]int{1500, 1500}, 1460, 1300, 1255},
		{"number above", four, "192.0.2.10:80", 1459, [2]int{1500, 1500}, 1400, 1400, 1392},
		{"mtu, both wide", four, "192.0.2.11:80", ClampToMTU, [2]int{1500, 1500}, 1460, 1460, 1460},
		{"mtu, narrow servers", four, "192.0.2.11:80", ClampToMTU, [2]int{1500, 1400}, 1460, 1360, 1360},
		{"mtu, narrow clients", four, "192.0.2.11:80", ClampToMTU, [2]int{1400, 1500}, 1460, 1360, 1360},
		{"mtu, narrow servers, TOA", four, "192.0.2.10:80", ClampToMTU, [2]int{1500, 1400}, 1460, 1360, 1352},
		{"mtu, narrow clients, TOA", four, "192.0.2.10:80", ClampToMTU, [2]int{1400, 1500}, 1460, 1360, 1360},
		{"mtu, v6, TOA", six, "[2001:db8::10]:80", ClampToMTU, [2]int{1500, 1400}, 1440, 1340, 1320},
		{"mtu, nat64, narrow servers", six, "[2001:db8::64]:80", ClampToMTU, [2]int{1500, 1400}, 1460, 1360, 1340},
		{"mtu, nat64, narrow clients", six, "[2001:db8::64]:80", ClampToMTU, [2]int{1400, 1500}, 1460, 1340, 1340},
		{"mtu, jumbo", four, "192.0.2.11:80", ClampToMTU, [2]int{1774, 1774}, 8960, 1734, 1734},
		{"mtu, never raised", four, "192.0.2.11:80", ClampToMTU, [2]int{1500, 1500}, 536, 536, 536},
		{"absent", four, "192.0.2.11:80", ClampToMTU, [2]int{1400, 1400}, 0, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, withPolicy(func(s *ServiceSpec) { s.MSSClamp = tt.clamp }))
			r.dp.PublishRoutes(routesOf(tt.mtus[0], tt.mtus[1]))
			var opts []layers.TCPOption
			if tt.in > 0 {
				opts = append(opts, mss(tt.in))
			}
			c, syn := r.begin(tt.client, tt.vip, 1000, opts...)
			if got := announced(syn); got != tt.syn {
				t.Errorf("the backend is announced %d, want %d", got, tt.syn)
			}
			if got := announced(c.answer(opts...)); got != tt.synAck {
				t.Errorf("the client is announced %d, want %d", got, tt.synAck)
			}
		})
	}
}

// thirdPacket is a real server that looks for TOA in one packet of a connection
// only, the ACK that completes the handshake, and knows the option's layout from
// nowhere but the wire format: kind, length, port, address.
func thirdPacket(t *testing.T, p gopacket.Packet) netip.AddrPort {
	t.Helper()
	tcp := tcpOf(p)
	if tcp.SYN || !tcp.ACK || tcp.RST || tcp.FIN {
		t.Fatalf("not the handshake's ACK: %+v", tcp)
	}
	o := tcp.Contents[20:] // the option is the first, right behind the fixed header
	if len(o) < 8 || o[0] != 254 || o[1] != 8 && o[1] != 20 || int(o[1]) > len(o) {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(o[4:o[1]])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(o[2:4]))
}

// TestTOAInTheHandshakesACK: such a server learns every client, whatever options
// the client's ACK has, or data on it, and after a lost one too.
func TestTOAInTheHandshakesACK(t *testing.T) {
	kinds := []struct{ client, vip string }{
		{"198.51.100.7:%d", "192.0.2.10:80"}, {"[2001:db8:c::7]:%d", "[2001:db8::10]:80"}, {"[2001:db8:c::7]:%d", "[2001:db8::64]:80"},
	}
	acks := map[string]seg{
		"bare":       {},
		"timestamps": {opts: []layers.TCPOption{stamps(5, 6)}},
		"with data":  {payload: 100},
		"with a forged one": {opts: []layers.TCPOption{
			{OptionType: 254, OptionLength: 8, OptionData: []byte{0, 80, 10, 9, 8, 7}}, stamps(5, 6)}},
		"padding to the brim": {opts: append([]layers.TCPOption{stamps(5, 6)}, make([]layers.TCPOption, 28)...)},
	}
	for i := range acks["padding to the brim"].opts[1:] {
		acks["padding to the brim"].opts[1+i].OptionType = layers.TCPOptionKindNop
	}
	r := newRig(t, 1, withPolicy(func(s *ServiceSpec) {
		if s.TOA {
			s.Timestamps = nat.TSTranslate
		}
	}))
	port := 40000
	for _, k := range kinds {
		for name, ack := range acks {
			port++
			client := fmt.Sprintf(k.client, port)
			c, _ := r.begin(client, k.vip, 1000, mss(1400), stamps(4, 0))
			c.answer(mss(1400), stamps(6, 4))
			ack.ack, ack.seq, ack.ackNum = true, 1001, 9001
			for range 2 { // the server may not have got the first, and asks by its SYN-ACK again
				if got := thirdPacket(t, c.fromClient(ack)); got.String() != client {
					t.Errorf("%s, %s: the server reads %v, want %s", k.vip, name, got, client)
				}
				c.answer(mss(1400), stamps(6, 4))
			}
		}
	}
}

// TestNobodyHidesFromTOA: a client that has l4fwd believe that the server knows it,
// by packets that never arrive there (a TTL too short, a bad checksum), must not
// get a connection by one that does not say who it is. The server takes none but an
// acknowledgement of just its SYN.
func TestNobodyHidesFromTOA(t *testing.T) {
	lies := map[string]seg{
		"data of the server's that was never sent": {ack: true, seq: 1001, ackNum: 9002, payload: 1},
		"much of it":       {ack: true, seq: 1001, ackNum: 9500},
		"a FIN of its own": {ack: true, fin: true, seq: 1001, ackNum: 9002},
		"a RST":            {ack: true, rst: true, seq: 1001, ackNum: 9001},
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c, _ := r.begin("198.51.100.7:40000", "192.0.2.10:80", 1000)
			c.answer()
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})
			lie.src, lie.dst = c.client, c.vip
			r.one(0, 0, 1, build(t, lie))
			if p := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 5}); toa(p) == nil {
				t.Error("what completes the handshake does not say who the client is")
			}
		})
	}
}

// everyPolicy is testSpec with all that is off by default.
func everyPolicy() Spec {
	spec := withPolicy(func(s *ServiceSpec) {
		s.MSSClamp = ClampToMTU
		if s.TOAOnly = s.TOA; s.Mode == conntrack.FullNAT {
			s.Timestamps = nat.TSTranslate
		}
	})
	spec.KeepTTL = true
	return spec
}

func TestPoliciesDoNotAllocate(t *testing.T) {
	r := newRig(t, 1, everyPolicy())
	c, _ := r.begin("198.51.100.7:40000", "192.0.2.10:80", 1000, mss(1400), stamps(4, 0))
	answer := build(t, seg{src: c.backend, dst: c.local, syn: true, ack: true, seq: 9000, ackNum: c.isn + 1, opts: []layers.TCPOption{mss(1400), stamps(6, 4)}})
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	list := [][]byte{
		build(t, seg{src: c.client, dst: c.vip, syn: true, seq: 1000, opts: []layers.TCPOption{mss(1400), stamps(4, 0)}}),
		build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, opts: full(4)}),
		build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 10, opts: []layers.TCPOption{stamps(5, 6)}}),
	}
	replies := [][]byte{answer}
	if n := testing.AllocsPerRun(200, func() {
		r.port[0][1].Feed(replies, 1)
		r.port[0][0].Feed(list, 1)
		r.step()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got := r.counts(); got.Verdicts[DropTOA] == 0 || got.TOA[nat.TOAInserted] == 0 {
		t.Errorf("%+v", got)
	}
}

// TestTranslateNeedsFullNAT: in DNAT there is no clock to put clients on.
func TestTranslateNeedsFullNAT(t *testing.T) {
	spec := withPolicy(func(s *ServiceSpec) { s.Timestamps = nat.TSTranslate })
	if _, err := NewRegistry(1).Build(spec); err == nil {
		t.Error("built")
	}
}

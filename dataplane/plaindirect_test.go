package dataplane

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// oneWayServices are as many kinds of service as plainOneWay has to tell apart.
func oneWayServices() (all []ServiceSpec) {
	const direct, half = conntrack.DirectReturn, conntrack.DNATOneWay
	add := func(name string, mode conntrack.Mode, vip4, vip6, backend string, tn nat.Tunnel) {
		for _, vip := range []string{vip4, vip6} {
			if vip == "" {
				continue
			}
			for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
				port := uint16(80 + proto)
				s := service(fmt.Sprint(name, vip, proto), hostPort(vip, port), proto, mode, false, hostPort(backend, port))
				s.Tunnel = tn
				all = append(all, s)
			}
		}
	}
	add("direct", direct, "192.0.2.18", "2001:db8::18", "10.0.1.20", nat.Tunnel{})
	add("half", half, "192.0.2.19", "", "10.0.1.20", nat.Tunnel{})
	add("half", half, "", "2001:db8::19", "2001:db8:1::20", nat.Tunnel{})
	n := 30
	for _, name := range []string{"ipip", "gre", "gue", "fou", "vxlan"} {
		for _, backend := range []string{"10.0.1.20", "2001:db8:1::20"} {
			add(name, direct, fmt.Sprint("192.0.2.", n), fmt.Sprint("2001:db8::", n), backend, tunnelKinds[name])
			n++
		}
	}
	add("spread", direct, "192.0.2.20", "", "10.0.1.20", nat.Tunnel{Kind: nat.IPIP, Source: addr("172.16.0.0"), Spread: 16})
	add("spread", direct, "192.0.2.21", "", "2001:db8:1::20", nat.Tunnel{Kind: nat.GUE, Port: 6080, Source: addr("2001:db8:7::"), Spread: 2})
	return append(all, service("half with toa", "192.0.2.22:80", packet.ProtoTCP, half, true, "10.0.1.20:80"))
}

// peers draws who is at the ends of the hops: mostly hosts of which all is known.
func (tw *twins) peers() []route.Peer {
	far := rapid.SampledFrom([]packet.Addr{{}, {}, {}, addr("10.0.1.20"), addr("10.0.1.254")}).Draw(tw.rt, "neighbour")
	own := [2]packet.Addr{addr("10.0.1.1"), addr("2001:db8:1::1")}
	switch rapid.IntRange(0, 7).Draw(tw.rt, "own addresses") {
	case 0:
		own = [2]packet.Addr{addr("10.0.1.2"), addr("2001:db8:1::2")}
	case 1:
		own = [2]packet.Addr{}
	}
	return []route.Peer{{}, {Own: own}, {Addr: far, Own: own}}
}

// TestPlainOneWayTakes: of a flow of which only clients' packets come by plain knows
// what nearly all of them are, after the first that has shown the way.
func TestPlainOneWayTakes(t *testing.T) {
	ack := seg{ack: true, seq: 1001, ackNum: 9001, payload: 10}
	with := func(change func(*seg)) seg {
		s := ack
		change(&s)
		return s
	}
	tests := []struct {
		name  string
		s     seg
		plain bool
	}{
		{"ack", ack, true},
		{"timestamps", with(func(s *seg) { s.opts = twinOptions["timestamps"] }), true},
		{"sack", with(func(s *seg) { s.opts = twinOptions["sack"] }), false},
		{"fin", with(func(s *seg) { s.fin = true }), false},
		{"rst", with(func(s *seg) { s.rst = true }), false},
		{"syn", with(func(s *seg) { s.syn, s.ack = true, false }), false},
		{"too big", with(func(s *seg) { s.payload = 1461 }), false},
		{"vlan", with(func(s *seg) { s.vlan = 7 }), true},
		{"too far ahead", with(func(s *seg) { s.seq += 1<<20 + 11 }), false},
		{"ahead", with(func(s *seg) { s.seq += 1<<20 + 10 }), true},
	}
	for _, svc := range oneWayServices() {
		r := newRig(t, 1, Spec{Seed: 1, Services: []ServiceSpec{svc}})
		r.dp.PublishRoutes(testRoutesOf(5, 1500).WithPeers([]route.Peer{{}, {}, {Own: [2]packet.Addr{addr("10.0.1.1"), addr("2001:db8:1::1")}}}))
		client, vip := "198.51.100.7:40000", hostPort(svc.VIP.Addr.String(), svc.VIP.Port)
		if !svc.VIP.Addr.Is4() {
			client = "[2001:db8:c::7]:40000"
		}
		if svc.VIP.Proto == packet.ProtoUDP {
			datagram := build(t, seg{src: client, dst: vip, udp: true, payload: 10})
			r.one(0, 0, 1, datagram)
			if v := r.plain(datagram); v != Forwarded {
				t.Errorf("%s: verdict %d", svc.Name, v)
			}
			continue
		}
		r.one(0, 0, 1, build(t, seg{src: client, dst: vip, syn: true, seq: 1000}))
		r.one(0, 0, 1, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001}))
		for _, tt := range tests {
			tt.s.src, tt.s.dst = client, vip
			if v := r.plain(build(t, tt.s)); v != undecided != (tt.plain && !svc.TOA) {
				t.Errorf("%s, %s: verdict %d", svc.Name, tt.name, v)
			}
		}
	}
}

// TestPlainTunnelHeadroom: a frame that came with no room before it is not plain, and
// nothing of its neighbour's is written.
func TestPlainTunnelHeadroom(t *testing.T) {
	const client = "198.51.100.7:40001"
	for room, want := range map[uint64]Verdict{0: undecided, 3: undecided, 75: undecided, 76: Forwarded, 256: Forwarded} {
		r := newTunnelRig(t, 1, tunnelKinds["vxlan"])
		r.one(0, 0, 1, build(t, seg{src: client, dst: "192.0.2.21:80", syn: true, seq: 1000}))
		r.one(0, 0, 1, build(t, seg{src: client, dst: "192.0.2.21:80", ack: true, seq: 1001, ackNum: 9001}))
		if v := r.plainAt(room, build(t, seg{src: client, dst: "192.0.2.21:80", ack: true, seq: 1001, ackNum: 9001, payload: 6})); v != want {
			t.Errorf("%d bytes of room: verdict %d, want %d", room, v, want)
		}
	}
}

package dataplane

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

// everywhere routes all of IPv4 to the client's side.
func everywhere(gen uint32, mtu int) *route.Table {
	hops := []route.Hop{{}, route.NewHop(0, clientMAC, nicMAC[0], 0, mtu), route.NewHop(1, serverMAC, nicMAC[1], 0, mtu)}
	return route.New(gen, hops, []route.Prefix{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Hop: 1},
		{Prefix: netip.MustParsePrefix("10.0.1.0/24"), Hop: 2},
	})
}

// icmpError builds an IPv4 error; about begins with the embedded IP header.
func icmpError(t testing.TB, src, dst string, about []byte) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: addr(src).Netip().AsSlice(), DstIP: addr(dst).Netip().AsSlice()}
	return serialize(t, &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(about))
}

// TestNoLoopThroughTheRouter: what is addressed to a VIP must not be routed
// onward, or the router brings it back, as often as its TTL allows. The tuple
// of an ICMP error is that of the packet within, which anybody can make up.
func TestNoLoopThroughTheRouter(t *testing.T) {
	for _, workers := range []int{1, 3} {
		r := newRig(t, workers, testSpec())
		r.dp.PublishRoutes(everywhere(2, 1500))
		foreign := build(t, seg{src: "203.0.113.5:1000", dst: "203.0.113.6:2000", ack: true, payload: 20})
		for _, to := range []string{"192.0.2.10", "10.0.1.10"} {
			for w := range workers {
				r.refused(w, 0, DropNoFlow, icmpError(t, "198.51.100.7", to, foreign[14:]))
			}
		}
	}
}

// TestErrorsKeepTheMTU: also an ICMP error must fit the way out.
func TestErrorsKeepTheMTU(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	answer := build(t, seg{src: c.vip, dst: c.client, ack: true, seq: 9001, ackNum: 1001, payload: 1200})
	e := icmpError(t, "198.51.100.7", "192.0.2.10", answer[14:])
	r.one(0, 0, 1, e)
	r.dp.PublishRoutes(everywhere(2, 1000))
	r.refused(0, 0, DropTooBig, e)
}

// TestFewerHops: a table with the same generation and fewer hops, whose ids
// read as "no route".
func TestFewerHops(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	r.dp.PublishRoutes(testRoutes(1).WithHops(make([]route.Hop, 1)))
	r.refused(0, 0, DropNoRoute, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001}))
	r.refused(0, 1, DropNoRoute, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1}))
	r.refused(0, 0, DropNoRoute, build(t, seg{src: "10.0.1.20:80", dst: "198.51.100.9:555", ack: true}))
}

// TestOurOwnAddressIsNoClient: a packet that claims to come from a VIP or a
// local address is forged; answered, it would let two services talk to each
// other for ever.
func TestOurOwnAddressIsNoClient(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.dp.PublishRoutes(everywhere(2, 1500))
	martian := malformedNamed("martian_source")
	r.refused(0, 0, martian, build(t, seg{src: "192.0.2.10:5000", dst: "192.0.2.11:5000", udp: true}))
	r.refused(0, 0, martian, build(t, seg{src: "10.0.1.10:5000", dst: "192.0.2.11:80", syn: true}))
}

// TestDamagedSolicitation: RFC 4861 section 7.1.1 has it discarded.
func TestDamagedSolicitation(t *testing.T) {
	r := newRig(t, 1, testSpec())
	target := addr("2001:db8:1::10").Netip().AsSlice()
	group := append([]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}, target[13:]...)
	ip6 := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: addr("2001:db8:c::7").Netip().AsSlice(), DstIP: group}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = icmp.SetNetworkLayerForChecksum(ip6)
	ns := serialize(t, &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: append([]byte{0x33, 0x33}, group[12:]...), EthernetType: layers.EthernetTypeIPv6}, ip6, icmp,
		&layers.ICMPv6NeighborSolicitation{TargetAddress: target, Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: clientMAC[:]}}})
	r.one(0, 0, 0, ns)
	ns[len(ns)-1] ^= 1
	if out := r.deliver(0, 0, ns); len(out) != 0 {
		t.Errorf("answered: %x", out[0].bytes)
	}
}

// TestLearnedWayIsTheRoutes: what was learned of a client on one NIC says
// nothing once its route leads out by another.
func TestLearnedWayIsTheRoutes(t *testing.T) {
	r := newRig(t, 1, testSpec())
	hops := []route.Hop{{}, route.NewHop(0, [6]byte{}, nicMAC[0], 0, 1500), route.NewHop(1, serverMAC, nicMAC[1], 0, 1500), route.NewHop(1, [6]byte{}, nicMAC[1], 0, 1500)}
	hops[1].State, hops[3].State = route.Unresolved, route.Unresolved
	table := func(gen uint32, clients route.HopID) *route.Table {
		return route.New(gen, append([]route.Hop(nil), hops...), []route.Prefix{
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Hop: clients}, {Prefix: netip.MustParsePrefix("10.0.1.0/24"), Hop: 2}})
	}
	r.dp.PublishRoutes(table(7, 1))
	r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.11:5000", udp: true, srcMAC: clientMAC}))
	reply := build(t, seg{src: "10.0.1.20:5000", dst: "198.51.100.7:4000", udp: true})
	r.one(0, 1, 0, reply)
	r.dp.PublishRoutes(table(8, 3))
	r.refused(0, 1, DropNeighbour, reply)
}

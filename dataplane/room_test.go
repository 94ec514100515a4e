package dataplane

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
)

// toldMTU is what an ICMP error says a packet may be long at most.
func toldMTU(p gopacket.Packet) int {
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return int(l.Seq)
	}
	return int(binary.BigEndian.Uint32(p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).Payload))
}

// TestRoomIsToldTruly: whoever heeds the MSS that was announced is never told that
// a packet is too big, and whoever heeds the MTU that was told is not told again;
// the server is told the client all the while.
func TestRoomIsToldTruly(t *testing.T) {
	const four, six = "198.51.100.7:40000", "[2001:db8:c::7]:40000"
	rapid.Check(t, func(rt *rapid.T) {
		k := rapid.SampledFrom([][2]string{
			{four, "192.0.2.10:80"}, {six, "[2001:db8::10]:80"}, {six, "[2001:db8::64]:80"},
			{four, "192.0.2.11:80"}, {four, "192.0.2.13:80"}, {six, "[2001:db8::13]:80"},
		}).Draw(rt, "service")
		mtus := [2]int{rapid.IntRange(1320, 1700).Draw(rt, "MTU to clients"), rapid.IntRange(1320, 1700).Draw(rt, "MTU to servers")}
		r := newRig(t, 1, withPolicy(func(s *ServiceSpec) { s.MSSClamp, s.TOAOnly = ClampToMTU, s.TOA }))
		r.dp.PublishRoutes(routesOf(mtus[0], mtus[1]))
		c, syn := r.begin(k[0], k[1], 1000, mss(9000))
		clientMay := int(announced(c.answer(mss(9000))))
		// The server's segments at full length, then the client's, which carry what
		// l4fwd adds to them.
		c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})
		c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: int(announced(syn))})
		r.tellsTheServer(rt, c, clientMay)

		// A client that does not heed the MSS, on a way that is wide up to here.
		headers := 40
		if k[0] == six {
			headers = 60
		}
		large := seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1720 - headers}
		told := toldMTU(r.answered(0, 0, 0, DropTooBig, build(t, large)))
		r.tellsTheServer(rt, c, told-headers)
		if told < headers+clientMay && mtus[0] >= mtus[1] {
			rt.Errorf("told an MTU of %d, but segments of %d bytes were allowed", told, clientMay)
		}
	})
}

// tellsTheServer sends so many bytes from the client and wants them at the server
// with TOA or PROXY, where the service has it, and nothing larger than the MTU.
func (r *rig) tellsTheServer(t *rapid.T, c *conv, payload int) {
	before := r.counts().TOA
	p := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: payload})
	after := r.counts().TOA
	proxied := len(tcpOf(p).Payload) > payload
	if toaed := after[nat.TOAInserted] == before[nat.TOAInserted]+1; toaed != (toa(p) != nil) || !toaed && !proxied && c.local != c.client {
		t.Errorf("%d bytes: TOA %v, PROXY %v", payload, toaed, proxied)
	}
}

// TestErrorsLeaveRoomForTOA: an MTU that a router behind l4fwd reports is lowered
// for the client by what l4fwd adds, for as long as it does, and else not.
func TestErrorsLeaveRoomForTOA(t *testing.T) {
	spec := testSpec()
	spec.Services = append(spec.Services, service("plain", "192.0.2.14:80", 6, 0, false, "10.0.1.20:8014"))
	for _, k := range []struct {
		vip           string
		before, after uint16
	}{{"192.0.2.10:80", 1392, 1400}, {"192.0.2.11:80", 1400, 1400}, {"192.0.2.14:80", 1400, 1400}} {
		t.Run(k.vip, func(t *testing.T) {
			r := newRig(t, 1, spec)
			c := r.open(0, "198.51.100.7:40000", k.vip)
			reported := func() uint16 {
				t.Helper()
				out := r.one(0, 0, 1, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1000}))
				ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{10, 0, 1, 1}, DstIP: out[26:30]}
				e := serialize(t, &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}, ip,
					&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(out[14:14+28]))
				return uint16(toldMTU(verify(t, r.one(0, 1, 0, e))))
			}
			if got := reported(); got != k.before {
				t.Errorf("the client is told %d, want %d", got, k.before)
			}
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011})
			if got := reported(); got != k.after {
				t.Errorf("once it has acknowledged the server's data, the client is told %d, want %d", got, k.after)
			}
		})
	}
}

// routesOf is testRoutes with other MTUs.
func routesOf(client, server int) *route.Table {
	hops := []route.Hop{{}, route.NewHop(0, clientMAC, nicMAC[0], 0, client), route.NewHop(1, serverMAC, nicMAC[1], 0, server)}
	var prefixes []route.Prefix
	for i, list := range [][]string{{"198.51.100.0/24", "2001:db8:c::/64"}, {"10.0.1.0/24", "2001:db8:1::/64"}} {
		for _, s := range list {
			prefixes = append(prefixes, route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: route.HopID(i + 1)})
		}
	}
	return route.New(2, hops, prefixes)
}

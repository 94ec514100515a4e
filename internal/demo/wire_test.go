package demo

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestDecode reads frames that gopacket has made.
func TestDecode(t *testing.T) {
	here, there := mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}
	v4 := &layers.IPv4{Version: 4, TTL: 63, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
	v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP,
		SrcIP: netip.MustParseAddr("2001:db8::1").AsSlice(), DstIP: netip.MustParseAddr("2001:db8::2").AsSlice()}
	tcp, udp := &layers.TCP{SrcPort: 1, DstPort: 80}, &layers.UDP{SrcPort: 1, DstPort: 4789}
	icmp := &layers.IPv4{Version: 4, Protocol: layers.IPProtocolICMPv4, SrcIP: v4.SrcIP, DstIP: v4.DstIP}
	gre := &layers.IPv4{Version: 4, Protocol: layers.IPProtocolGRE, SrcIP: v4.SrcIP, DstIP: v4.DstIP}
	optional := &layers.IPv4{Version: 4, Protocol: layers.IPProtocolTCP, SrcIP: v4.SrcIP, DstIP: v4.DstIP,
		Options: []layers.IPv4Option{{OptionType: 1}}}
	for _, tt := range []struct {
		name string
		kind layers.EthernetType
		body []gopacket.SerializableLayer
		want packet
		ok   bool
	}{
		{"TCP over IPv4", layers.EthernetTypeIPv4, []gopacket.SerializableLayer{v4, tcp},
			packet{to: here, from: there, src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.2"), ttl: 63}, true},
		{"UDP over IPv6", layers.EthernetTypeIPv6, []gopacket.SerializableLayer{v6, udp},
			packet{to: here, from: there, src: netip.MustParseAddr("2001:db8::1"), dst: netip.MustParseAddr("2001:db8::2"), ttl: 64, wrap: vxlan}, true},
		{"GRE", layers.EthernetTypeIPv4, []gopacket.SerializableLayer{gre, gopacket.Payload(make([]byte, 20))},
			packet{to: here, from: there, src: netip.MustParseAddr("10.0.0.1"), dst: netip.MustParseAddr("10.0.0.2"), wrap: "gre"}, true},
		{"ICMP", layers.EthernetTypeIPv4, []gopacket.SerializableLayer{icmp, gopacket.Payload(make([]byte, 20))}, packet{}, false},
		{"options", layers.EthernetTypeIPv4, []gopacket.SerializableLayer{optional, tcp}, packet{}, false},
		{"ARP", layers.EthernetTypeARP, []gopacket.SerializableLayer{gopacket.Payload(make([]byte, 28))}, packet{}, false},
		{"short", layers.EthernetTypeIPv6, []gopacket.SerializableLayer{gopacket.Payload(make([]byte, 43))}, packet{}, false},
		{"empty", layers.EthernetTypeIPv6, nil, packet{}, false},
	} {
		frame := append([]gopacket.SerializableLayer{&layers.Ethernet{DstMAC: here[:], SrcMAC: there[:], EthernetType: tt.kind}}, tt.body...)
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, frame...); err != nil {
			t.Fatal(err)
		}
		got, ok := decode(b.Bytes())
		if !ok {
			got = packet{}
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(packet{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || ok != tt.ok {
			t.Errorf("%s: %t (-want +got)\n%s", tt.name, ok, diff)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen map[string]uint64
		want check
	}{
		{"as expected", map[string]uint64{"a": 1000, "b": 2}, check{name: "x", ok: true, detail: "a: 1,000; b: 2"}},
		{"one is missing", map[string]uint64{"a": 1}, check{name: "x", detail: "a: 1; b: 0", because: []string{"never seen: b"}}},
		{"one too many", map[string]uint64{"a": 1, "b": 2, "c": 3},
			check{name: "x", detail: "a: 1; b: 2", because: []string{"seen and not expected: c, 3 times"}}},
	} {
		if diff := cmp.Diff(tt.want, compare("x", []string{"a", "b"}, tt.seen), cmp.AllowUnexported(check{})); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestCheckRoad(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mode  *mode
		names []string
		seen  map[string]uint64
		ok    bool
	}{
		{"both ways", modes[1], []string{"l4fwd"}, map[string]uint64{"to l4fwd": 1, "from l4fwd": 1}, true},
		{"answers past l4fwd", modes[1], []string{"l4fwd"}, map[string]uint64{"to l4fwd": 1, "from rs1": 1}, false},
		{"two halves", modes[2], []string{"l4fwd A", "l4fwd B"}, map[string]uint64{"to l4fwd A": 1, "from l4fwd B": 1}, true},
		{"one half does all", modes[2], []string{"l4fwd A", "l4fwd B"}, map[string]uint64{"to l4fwd A": 1, "from l4fwd A": 1}, false},
		{"direct", modes[3], []string{"l4fwd"}, map[string]uint64{"to l4fwd": 1, "from rs1": 1, "from rs2": 1}, true},
		{"not direct", modes[3], []string{"l4fwd"}, map[string]uint64{"to l4fwd": 1, "from l4fwd": 1}, false},
		{"direct, routed by the host", modes[3].over(trunk), []string{"l4fwd"}, map[string]uint64{"to l4fwd": 1, "from l4fwd": 1}, true},
		{"a server has answered ARP", modes[3], []string{"l4fwd"}, map[string]uint64{"to rs1": 1, "from rs1": 1, "from rs2": 1}, false},
	} {
		d := &demo{modes: []*mode{tt.mode}, net: &network{names: tt.names, clientEar: ear{seen: tt.seen}}}
		if c := d.checkRoad(); c.ok != tt.ok {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}

// TestArrivals: what a server's ear says of packets is what the modes expect.
func TestArrivals(t *testing.T) {
	client, vip, local, server, lb := netip.MustParseAddr("198.51.100.100"), netip.MustParseAddr("192.0.2.10"),
		netip.MustParseAddr("10.0.1.10"), netip.MustParseAddr("10.0.1.20"), netip.MustParseAddr("10.0.1.1")
	self, front, other := mac{1}, mac{2}, mac{3}
	n := &network{top: &testbed.Topology{}, names: []string{"l4fwd"}, owners: map[mac]string{front: "l4fwd", other: "rs2"},
		roles: map[netip.Addr]string{client: roleClient, vip: roleVIP, local: roleLocal, server: roleServer, lb: "l4fwd"}}
	for _, tt := range []struct {
		p    packet
		want string
	}{
		{packet{to: self, from: front, src: local, dst: server, ttl: 63}, modes[0].arrival},
		{packet{to: self, from: front, src: client, dst: server, ttl: 63}, modes[1].arrival},
		{packet{to: self, from: front, src: client, dst: vip, ttl: 63}, modes[3].arrival},
		{packet{to: self, from: front, src: lb, dst: server, ttl: 63, wrap: "gue"}, "gue: l4fwd → server, TTL 63"},
		{packet{to: self, from: other, src: client, dst: vip, ttl: 63}, modes[3].arrival + ", from rs2"},
		{packet{to: other, from: front, src: client, dst: vip, ttl: 63}, ""},
	} {
		if got := n.atServer(self)(tt.p, true); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.p, got, tt.want)
		}
	}
	if got := n.atServer(self)(packet{to: self}, false); got != "" {
		t.Errorf("from it: %q", got)
	}
}

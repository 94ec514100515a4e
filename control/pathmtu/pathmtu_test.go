package pathmtu

import (
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var (
	host4, end4 = netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.0.5.20")
	host6, end6 = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:5::20")
)

// about is a packet of a tunnel to an end.
func about(t testing.TB, to netip.Addr, proto layers.IPProtocol, port uint16) []byte {
	t.Helper()
	payload := gopacket.Payload(make([]byte, 40))
	var ls []gopacket.SerializableLayer
	udp := &layers.UDP{SrcPort: 50000, DstPort: layers.UDPPort(port)}
	if to.Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: host4.AsSlice(), DstIP: to.AsSlice(), Flags: layers.IPv4DontFragment}
		_ = udp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: host6.AsSlice(), DstIP: to.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, ip)
	}
	if proto == layers.IPProtocolUDP {
		ls = append(ls, udp)
	}
	return serialize(t, append(ls, payload)...)
}

func tooBig4(t testing.TB, mtu uint16, quoted []byte) []byte {
	return serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: mtu}, gopacket.Payload(quoted))
}

func tooBig6(mtu uint16, quoted []byte) []byte {
	return slices.Concat([]byte{2, 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quoted)
}

var equal = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

func TestParse(t *testing.T) {
	udp4, gre4 := about(t, end4, 17, 6080), about(t, end4, 47, 0)
	udp6, ipip6 := about(t, end6, 17, 4789), about(t, end6, 41, 0)
	later := slices.Clone(udp4)
	later[7] = 1
	damaged := tooBig4(t, 1400, udp4)
	damaged[20] ^= 1
	for name, c := range map[string]struct {
		parse func([]byte) (Report, []byte, bool)
		b     []byte
		want  Report
	}{
		"udp":            {Parse4, tooBig4(t, 1400, udp4), Report{Dst: end4, Proto: 17, Port: 6080, MTU: 1400}},
		"gre, 8 bytes":   {Parse4, tooBig4(t, 1400, gre4[:28]), Report{Dst: end4, Proto: 47, MTU: 1400}},
		"below least":    {Parse4, tooBig4(t, 68, udp4), Report{Dst: end4, Proto: 17, Port: 6080, MTU: Least4}},
		"no MTU":         {Parse4, tooBig4(t, 0, udp4), Report{}},
		"later fragment": {Parse4, tooBig4(t, 1400, later), Report{}},
		"damaged":        {Parse4, damaged, Report{}},
		"too short":      {Parse4, tooBig4(t, 1400, udp4[:27]), Report{}},
		"port":           {Parse4, serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3), Seq: 1400}, gopacket.Payload(udp4)), Report{}},
		"nothing":        {Parse4, nil, Report{}},
		"udp6":           {Parse6, tooBig6(1400, udp6), Report{Dst: end6, Proto: 17, Port: 4789, MTU: 1400}},
		"ipip6":          {Parse6, tooBig6(1400, ipip6), Report{Dst: end6, Proto: 41, MTU: 1400}},
		"below least 6":  {Parse6, tooBig6(600, udp6), Report{Dst: end6, Proto: 17, Port: 4789, MTU: Least6}},
		"too short 6":    {Parse6, tooBig6(1400, udp6[:47]), Report{}},
		"not IPv6":       {Parse6, tooBig6(1400, append(udp4, make([]byte, 40)...)), Report{}},
		"nothing 6":      {Parse6, nil, Report{}},
	} {
		got, _, ok := c.parse(c.b)
		if diff := cmp.Diff(c.want, got, equal); diff != "" || ok != (c.want != Report{}) {
			t.Errorf("%s: %v (-want +got)\n%s", name, ok, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tooBig4(f, 1400, about(f, end4, 17, 6080)))
	f.Add(tooBig6(1400, about(f, end6, 17, 6080)))
	f.Fuzz(func(t *testing.T, b []byte) {
		ends := Ends{end4: {Looks: []Look{{17, 6080, 12}, {4, 0, 0}}}, end6: {Looks: []Look{{17, 6080, 12}, {47, 0, 4}}}}
		if r, rest, ok := Parse4(b); ok && (r.MTU < Least4 || !r.Dst.Is4() || ends.heed(&r, rest) && !r.Quote.Src.IsValid() && r.MTU < LeastBlind) {
			t.Errorf("%+v", r)
		}
		if r, rest, ok := Parse6(b); ok && (r.MTU < Least6 || !r.Dst.Is6() || ends.heed(&r, rest) && r.Quote.Src.IsValid() != r.Quote.Dst.IsValid()) {
			t.Errorf("%+v", r)
		}
	})
}

// TestListen: what comes to the host about a packet to a configured end is told, and
// nothing else is.
func TestListen(t *testing.T) {
	ns, err := testbed.NewNamespace("pmtu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	told := make(chan Report, 16)
	ends := Ends{
		end4: {Looks: []Look{{17, 6080, 12}, {4, 0, 0}}, Least: 1312},
		end6: {Looks: []Look{{17, 6080, 12}}, Least: 1332},
	}
	var l *Listener
	err = ns.Do(func() (err error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		l, err = Listen(ends, func(r Report) { told <- r })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	send := func(network, to string, b []byte) {
		c, err := ns.ListenPacket(network, "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := c.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			t.Fatal(err)
		}
	}
	send("ip4:icmp", "127.0.0.1", tooBig4(t, 1300, about(t, end4, 17, 6081)))
	send("ip4:icmp", "127.0.0.1", tooBig4(t, 1300, about(t, netip.MustParseAddr("10.0.5.21"), 4, 0)))
	send("ip4:icmp", "127.0.0.1", tooBig4(t, 1400, about(t, end4, 4, 0)))
	send("ip6:ipv6-icmp", "::1", tooBig6(1400, about(t, end6, 17, 6081)))
	send("ip6:ipv6-icmp", "::1", tooBig6(1350, about(t, end6, 17, 6080)))
	// Too little for IPv6 within.
	send("ip4:icmp", "127.0.0.1", tooBig4(t, 600, about(t, end4, 4, 0)))
	send("ip6:ipv6-icmp", "::1", tooBig6(1280, about(t, end6, 17, 6080)))
	got := map[Report]bool{}
	for range 4 {
		select {
		case r := <-told:
			got[r] = true
		case <-time.After(10 * time.Second):
			t.Fatalf("told %v", got)
		}
	}
	for _, want := range []Report{
		{Dst: end4, Proto: 4, MTU: 1400}, {Dst: end6, Proto: 17, Port: 6080, MTU: 1350},
		{Dst: end4, Proto: 4, MTU: 1312}, {Dst: end6, Proto: 17, Port: 6080, MTU: 1332},
	} {
		if !got[want] {
			t.Errorf("told %v, not %v", got, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if len(told) > 0 {
		t.Errorf("told more: %v", <-told)
	}
}

// TestHeed: what is quoted of a packet within is told, as its sender made it, in whatever
// tunnel; where it is not enough, nothing small is believed.
func TestHeed(t *testing.T) {
	client, vip := netip.MustParseAddrPort("198.51.100.7:40000"), netip.MustParseAddrPort("192.0.2.10:80")
	client6, vip6 := netip.MustParseAddrPort("[2001:db8:c::7]:40000"), netip.MustParseAddrPort("[2001:db8::10]:80")
	within := func(src, dst netip.AddrPort, proto layers.IPProtocol) []byte {
		var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Protocol: proto, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		if src.Addr().Is6() {
			ip = &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: proto, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		}
		b := []byte{byte(src.Port() >> 8), byte(src.Port()), byte(dst.Port() >> 8), byte(dst.Port()), 1, 2, 3, 4}
		return serialize(t, ip, gopacket.Payload(b))
	}
	tcp, udp6 := within(client, vip, 6), within(client6, vip6, 17)
	later := slices.Clone(tcp)
	later[7] = 1
	gue, vxlan := make([]byte, 12), make([]byte, 30)
	looks := []Look{{Proto: 4}, {Proto: 47, Head: 4}, {Proto: 17, Port: 6080, Head: 12}, {Proto: 17, Port: 4789, Head: 30}}
	ends := Ends{end4: {Looks: looks}, end6: {Looks: looks, Least: 1300}}
	asTCP, asUDP := Quote{client, vip, 6, 0x01020304}, Quote{client6, vip6, 17, 0}
	for name, c := range map[string]struct {
		r     Report
		rest  []byte
		quote Quote
		mtu   int
		no    bool
	}{
		"ipip":             {Report{Dst: end4, Proto: 4, MTU: 600}, tcp, asTCP, 600, false},
		"gre":              {Report{Dst: end4, Proto: 47, MTU: 600}, slices.Concat(gue[:4], tcp), asTCP, 600, false},
		"gue, IPv6 within": {Report{Dst: end4, Proto: 17, Port: 6080, MTU: 600}, slices.Concat(gue, udp6), asUDP, 600, false},
		"vxlan":            {Report{Dst: end4, Proto: 17, Port: 4789, MTU: 1400}, slices.Concat(vxlan, tcp), asTCP, 1400, false},
		"least":            {Report{Dst: end6, Proto: 17, Port: 4789, MTU: 1280}, slices.Concat(vxlan, udp6), asUDP, 1300, false},
		"too short":        {Report{Dst: end4, Proto: 4, MTU: 600}, tcp[:27], Quote{}, LeastBlind, false},
		"too short, IPv6":  {Report{Dst: end4, Proto: 17, Port: 6080, MTU: 600}, slices.Concat(gue, udp6[:47]), Quote{}, LeastBlind, false},
		"nothing":          {Report{Dst: end4, Proto: 17, Port: 6080, MTU: 600}, gue[:8], Quote{}, LeastBlind, false},
		"later fragment":   {Report{Dst: end4, Proto: 4, MTU: 600}, later, Quote{}, LeastBlind, false},
		"ICMP":             {Report{Dst: end4, Proto: 4, MTU: 600}, within(client, vip, 1), Quote{}, LeastBlind, false},
		"other port":       {Report{Dst: end4, Proto: 17, Port: 6081, MTU: 1400}, slices.Concat(gue, tcp), Quote{}, 1400, true},
	} {
		want := c.r
		want.Quote, want.MTU = c.quote, c.mtu
		got := c.r
		if ours := ends.heed(&got, c.rest); ours == c.no {
			t.Errorf("%s: heeded %v", name, ours)
		} else if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

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

func TestParse(t *testing.T) {
	udp4, gre4 := about(t, end4, 17, 6080), about(t, end4, 47, 0)
	udp6, ipip6 := about(t, end6, 17, 4789), about(t, end6, 41, 0)
	later := slices.Clone(udp4)
	later[7] = 1
	damaged := tooBig4(t, 1400, udp4)
	damaged[20] ^= 1
	for name, c := range map[string]struct {
		parse func([]byte) (Report, bool)
		b     []byte
		want  Report
	}{
		"udp":            {Parse4, tooBig4(t, 1400, udp4), Report{end4, 17, 6080, 1400}},
		"gre, 8 bytes":   {Parse4, tooBig4(t, 1400, gre4[:28]), Report{end4, 47, 0, 1400}},
		"below least":    {Parse4, tooBig4(t, 68, udp4), Report{end4, 17, 6080, Least4}},
		"no MTU":         {Parse4, tooBig4(t, 0, udp4), Report{}},
		"later fragment": {Parse4, tooBig4(t, 1400, later), Report{}},
		"damaged":        {Parse4, damaged, Report{}},
		"too short":      {Parse4, tooBig4(t, 1400, udp4[:27]), Report{}},
		"port":           {Parse4, serialize(t, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3), Seq: 1400}, gopacket.Payload(udp4)), Report{}},
		"nothing":        {Parse4, nil, Report{}},
		"udp6":           {Parse6, tooBig6(1400, udp6), Report{end6, 17, 4789, 1400}},
		"ipip6":          {Parse6, tooBig6(1400, ipip6), Report{end6, 41, 0, 1400}},
		"below least 6":  {Parse6, tooBig6(600, udp6), Report{end6, 17, 4789, Least6}},
		"too short 6":    {Parse6, tooBig6(1400, udp6[:47]), Report{}},
		"not IPv6":       {Parse6, tooBig6(1400, append(udp4, make([]byte, 40)...)), Report{}},
		"nothing 6":      {Parse6, nil, Report{}},
	} {
		got, ok := c.parse(c.b)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || ok != (c.want != Report{}) {
			t.Errorf("%s: %v (-want +got)\n%s", name, ok, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tooBig4(f, 1400, about(f, end4, 17, 6080)))
	f.Add(tooBig6(1400, about(f, end6, 17, 6080)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := Parse4(b); ok && (r.MTU < Least4 || !r.Dst.Is4()) {
			t.Errorf("%+v", r)
		}
		if r, ok := Parse6(b); ok && (r.MTU < Least6 || !r.Dst.Is6()) {
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
		end4: {Looks: []Look{{17, 6080}, {4, 0}}, Least: 1312},
		end6: {Looks: []Look{{17, 6080}}, Least: 1332},
	}
	var l *Listener
	err = ns.Do(func() (err error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		l, err = Listen(ends, func(end netip.Addr, mtu int) { told <- Report{Dst: end, MTU: mtu} })
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
	if !got[Report{Dst: end4, MTU: 1400}] || !got[Report{Dst: end6, MTU: 1350}] || !got[Report{Dst: end4, MTU: 1312}] || !got[Report{Dst: end6, MTU: 1332}] {
		t.Errorf("told %v", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if len(told) > 0 {
		t.Errorf("told more: %v", <-told)
	}
}

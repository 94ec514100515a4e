package steer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// neighbour are the decisions on ARP, neighbour discovery and what is no IP.
func neighbour(t testing.TB) map[string]decision {
	v4, v6 := families["ipv4"], families["ipv6"]
	all := layers.EthernetBroadcast
	arp := func(mac net.HardwareAddr, op uint16, src, dst netip.Addr) []byte {
		return frame(t, eth(mac, layers.EthernetTypeARP), &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: peerMAC, SourceProtAddress: src.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: dst.AsSlice(),
		}, gopacket.Payload(make([]byte, 18)))
	}
	nd := func(mac net.HardwareAddr, typ uint8, src, dst, target netip.Addr) []byte {
		b := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
		return datagram{src: src, dst: dst, proto: 58, payload: append(b, 1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee), mac: mac}.frame(t)
	}
	group := func(a netip.Addr) (net.HardwareAddr, netip.Addr) {
		b := a.As16()
		ip := netip.MustParseAddr("ff02::1:ff00:0").As16()
		copy(ip[13:], b[13:])
		return net.HardwareAddr{0x33, 0x33, ip[12], ip[13], ip[14], ip[15]}, netip.AddrFrom16(ip)
	}
	ns := func(src, target netip.Addr) []byte {
		mac, ip := group(target)
		return nd(mac, 135, src, ip, target)
	}
	notARP := arp(all, 1, v4.client, v4.vip)
	notARP[14+1] = 6 // IEEE 802 hardware type
	allNodes := netip.MustParseAddr("ff02::1")
	fragment := ns(v6.client, v6.vip)
	fragment[14+6] = 44
	return map[string]decision{
		"arp request for a VIP":                {arp(all, 1, v4.client, v4.vip), TakeNeighbour},
		"arp request for a local address":      {arp(all, 1, v4.client, v4.local), TakeNeighbour},
		"arp request by unicast":               {arp(nicMAC, 1, v4.client, v4.vip), TakeNeighbour},
		"arp request to a foreign MAC":         {arp(otherMAC, 1, v4.client, v4.vip), PassForeignMAC},
		"arp request for the host":             {arp(all, 1, v4.client, v4.host), PassOther},
		"arp request for a stranger":           {arp(all, 1, v4.client, v4.stranger), PassOther},
		"arp probe for a VIP":                  {arp(all, 1, netip.IPv4Unspecified(), v4.vip), TakeNeighbour},
		"arp announcement of a VIP":            {arp(all, 1, v4.vip, v4.vip), TakeNeighbour},
		"arp reply":                            {arp(nicMAC, 2, v4.vip, v4.vip), PassOther},
		"arp of other hardware":                {notARP, PassOther},
		"solicitation for a VIP":               {ns(v6.client, v6.vip), TakeNeighbour},
		"solicitation for a local address":     {ns(v6.client, v6.local), TakeNeighbour},
		"solicitation for the host":            {ns(v6.client, v6.host), PassOther},
		"solicitation for a stranger":          {ns(v6.client, v6.stranger), PassOther},
		"duplicate address detection of a VIP": {ns(netip.IPv6Unspecified(), v6.vip), TakeNeighbour},
		"solicitation to the VIP itself":       {nd(nicMAC, 135, v6.client, v6.vip, v6.vip), TakeAddress},
		"solicitation to the host about a VIP": {nd(nicMAC, 135, v6.client, v6.host, v6.vip), TakeNeighbour},
		"solicitation to a foreign MAC":        {nd(otherMAC, 135, v6.client, v6.vip, v6.vip), PassForeignMAC},
		"solicitation in a fragment header":    {fragment, PassOther},
		"advertisement about a VIP":            {nd(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 136, v6.client, allNodes, v6.vip), PassOther},
		"advertisement to the host":            {nd(nicMAC, 136, v6.client, v6.host, v6.client), PassOther},
		"router advertisement":                 {nd(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 134, v6.client, allNodes, v6.vip), PassOther},
		"lldp":                                 {frame(t, eth(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, 0x88cc), gopacket.Payload(make([]byte, 46))), PassOther},
		"unknown ethertype to the NIC":         {frame(t, eth(nicMAC, 0x88b5), gopacket.Payload(make([]byte, 46))), PassOther},
		"multicast datagram":                   {datagram{src: v4.backend, dst: netip.MustParseAddr("224.0.0.5"), proto: 17, payload: l4(53, 53), mac: net.HardwareAddr{1, 0, 0x5e, 0, 0, 5}}.frame(t), PassOther},
		"broadcast datagram":                   {datagram{src: v4.backend, dst: netip.MustParseAddr("255.255.255.255"), proto: 17, payload: l4(53, 68), mac: all}.frame(t), PassOther},
	}
}

func allDecisions(t testing.TB) map[string]map[string]decision {
	groups := map[string]map[string]decision{"neighbour": neighbour(t), "ipv6/extended": families["ipv6"].extended(t)}
	for name, f := range families {
		groups[name+"/addressed"] = f.addressed(t)
		groups[name+"/fragmented"] = f.fragmented(t)
		groups[name+"/errors"] = f.errors(t)
	}
	return groups
}

// TestDecisions runs every frame without a tag, behind one and behind two.
func TestDecisions(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	seen := make(map[Counter]bool)
	for group, ds := range allDecisions(t) {
		for name, d := range ds {
			check := func(how string, f []byte, want Counter) {
				t.Helper()
				got := b.outcome(t, f)
				seen[got] = true
				if got != want {
					t.Errorf("%s, %s, %s: %s, want %s", group, name, how, got, want)
				}
			}
			check("untagged", d.frame, d.want)
			check("802.1Q", tagged(d.frame, 0x8100), d.want)
			check("802.1ad", tagged(d.frame, 0x88a8), d.want)
			twice := PassOther
			if d.want == PassForeignMAC {
				twice = PassForeignMAC
			}
			check("two tags", tagged(d.frame, 0x88a8, 0x8100), twice)
		}
	}
	for c := range Counter(NumCounters) {
		if !seen[c] && c != PassMalformed && c != DropNoSocket {
			t.Errorf("no frame had the outcome %s", c)
		}
	}
}

// TestLease: what a DHCP server sends to the address it offers passes, where that is
// ours and the host has none (any more); not where the configuration has that port.
func TestLease(t *testing.T) {
	b := newBench(t, Options{})
	f := families["ipv4"]
	for name, c := range map[string]struct {
		rules  Rules
		answer Counter
	}{
		"VIP":           {Rules{}, PassOther},
		"service":       {Rules{Services: []ServiceRule{{f.vip, 17, 68}}}, TakeAddress},
		"other service": {Rules{Services: []ServiceRule{{f.vip, 6, 68}, {f.vip, 17, 69}, {f.host, 17, 68}}}, PassOther},
		"range":         {Rules{LocalRanges: []RangeRule{{f.vip, 60, 68}}}, TakeAddress},
		"other range":   {Rules{LocalRanges: []RangeRule{{f.vip, 69, 70}}}, PassOther},
		"backend":       {Rules{Backends: []ServiceRule{{f.client, 17, 67}}}, PassOther},
	} {
		c.rules.Addrs = []netip.Addr{f.vip}
		if err := b.Update(c.rules); err != nil {
			t.Fatal(err)
		}
		for what, d := range map[string]decision{
			"67 to 68":     {f.udp(t, f.client, 67, f.vip, 68), c.answer},
			"67 to 69":     {f.udp(t, f.client, 67, f.vip, 69), TakeAddress},
			"66 to 68":     {f.udp(t, f.client, 66, f.vip, 68), TakeAddress},
			"tcp 67 to 68": {f.tcp(t, f.client, 67, f.vip, 68), TakeAddress},
		} {
			if got := b.outcome(t, d.frame); got != d.want {
				t.Errorf("%s, %s: %s, want %s", name, what, got, d.want)
			}
			checkDecide(t, c.rules, d.frame, d.want)
		}
	}
}

// TestNoRules: an empty program passes everything.
func TestNoRules(t *testing.T) {
	b := newBench(t, Options{})
	for group, ds := range allDecisions(t) {
		for name, d := range ds {
			if got := b.outcome(t, d.frame); got > PassFragment {
				t.Errorf("%s, %s: %s", group, name, got)
			}
		}
	}
}

// TestNoSocket: what is ours is dropped where no socket is.
func TestNoSocket(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	if err := b.nic.objs.Sockets.Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	for group, ds := range allDecisions(t) {
		for name, d := range ds {
			want := d.want
			if want >= TakeAddress {
				want = DropNoSocket
			}
			if got := b.outcome(t, d.frame); got != want {
				t.Errorf("%s, %s: %s, want %s", group, name, got, want)
			}
		}
	}
}

// TestTruncated cuts every frame at every length: what the IP header promises
// and the frame does not hold is never taken.
func TestTruncated(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	for group, ds := range allDecisions(t) {
		for name, d := range ds {
			whole := len(d.frame)
			if typ := binary.BigEndian.Uint16(d.frame[12:]); typ == 0x0806 {
				whole = 14 + 28 // the rest is padding
			}
			for _, f := range [][]byte{d.frame, tagged(d.frame, 0x8100)} {
				whole := whole + len(f) - len(d.frame)
				for n := 14; n < whole; n++ {
					if got := b.outcome(t, f[:n:n]); got > PassFragment {
						t.Fatalf("%s, %s cut at %d of %d: %s", group, name, n, whole, got)
					}
				}
			}
		}
	}
}

// TestMalformed changes one field of good frames to nonsense.
func TestMalformed(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	for name, f := range families {
		good := f.tcp(t, f.client, 4000, f.vip, 80)
		cases := map[string]func(p []byte){"version": func(p []byte) { p[14] ^= 0x70 }}
		if f.v6 {
			cases["payload length"] = func(p []byte) { p[18] = 0xff }
		} else {
			cases["header length 4"] = func(p []byte) { p[14] = 0x44 }
			cases["header longer than packet"] = func(p []byte) { p[14], p[17] = 0x4f, 40 }
			cases["total length beyond the frame"] = func(p []byte) { p[17]++ }
			cases["total length 0"] = func(p []byte) { p[17] = 0 }
		}
		for what, change := range cases {
			bad := bytes.Clone(good)
			change(bad)
			if got := b.outcome(t, bad); got != PassMalformed {
				t.Errorf("%s, %s: %s, want %s", name, what, got, PassMalformed)
			}
		}
	}
}

// TestPadding: bytes behind the datagram are not its ports, and a padded frame
// is as good as one without.
func TestPadding(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	f := families["ipv4"]
	short := f.tcp(t, f.client, 4000, f.host, 80)
	binary.BigEndian.PutUint16(short[16:], 20) // the TCP header is padding now
	if got := b.outcome(t, short); got != PassOther {
		t.Errorf("ports in the padding: %s", got)
	}
	padded := append(f.tcp(t, f.client, 4000, f.host, 80), make([]byte, 30)...)
	if got := b.outcome(t, padded); got != TakeService {
		t.Errorf("padded frame: %s", got)
	}
}

// TestIPv4Options: the ports are behind the options.
func TestIPv4Options(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	f := families["ipv4"]
	for words := 0; words <= 10; words++ {
		ip := datagram{src: f.client, dst: f.host, proto: 6}.ipv4()
		for range words {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1}, layers.IPv4Option{OptionType: 1},
				layers.IPv4Option{OptionType: 1}, layers.IPv4Option{OptionType: 1})
		}
		p := frame(t, eth(nicMAC, layers.EthernetTypeIPv4), ip, gopacket.Payload(l4(4000, 80)))
		if got := b.outcome(t, p); got != TakeService {
			t.Errorf("%d bytes of options: %s", 4*words, got)
		}
	}
}

// TestFragmentsFollow: later fragments to the host go where the first went, of
// the same datagram only.
func TestFragmentsFollow(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	for name, f := range families {
		d := func(src netip.Addr, proto uint8, port uint16, off uint16, id uint32) []byte {
			return datagram{src: src, dst: f.host, proto: proto, payload: l4(4000, port), frag: &shape{off: off, more: off == 0, id: id}}.frame(t)
		}
		steps := []struct {
			what  string
			frame []byte
			want  Counter
		}{
			{"later before the first", d(f.client, 17, 53, 800, 7), PassFragment},
			{"first", d(f.client, 17, 53, 0, 7), TakeService},
			{"later", d(f.client, 17, 53, 800, 7), TakeService},
			{"later again", d(f.client, 17, 53, 1600, 7), TakeService},
			{"later of another id", d(f.client, 17, 53, 800, 8), PassFragment},
			{"later from another client", d(f.stranger, 17, 53, 800, 7), PassFragment},
			{"later of another protocol", d(f.client, 6, 53, 800, 7), PassFragment},
			{"first that passes", d(f.client, 17, 54, 0, 9), PassOther},
			{"later of one that passes", d(f.client, 17, 54, 800, 9), PassFragment},
			{"first to the range", d(f.backend, 17, rangeLo, 0, 10), TakeRange},
			{"later to the range", d(f.backend, 17, 0, 800, 10), TakeService},
		}
		for _, s := range steps {
			if got := b.outcome(t, s.frame); got != s.want {
				t.Errorf("%s, %s: %s, want %s", name, s.what, got, s.want)
			}
		}
	}
}

// TestSetMAC: the program follows the NIC's address.
func TestSetMAC(t *testing.T) {
	b := newBench(t, Options{})
	if err := b.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	f := families["ipv4"]
	p := datagram{src: f.client, dst: f.vip, proto: 6, payload: l4(4000, 80), mac: otherMAC}.frame(t)
	for _, step := range []struct {
		mac  net.HardwareAddr
		want Counter
	}{{nicMAC, PassForeignMAC}, {otherMAC, TakeAddress}, {nicMAC, PassForeignMAC}} {
		if err := b.nic.SetMAC(step.mac); err != nil {
			t.Fatal(err)
		}
		if got := b.outcome(t, p); got != step.want {
			t.Errorf("NIC has %s: %s, want %s", step.mac, got, step.want)
		}
	}
	if err := b.nic.SetMAC(nil); err == nil {
		t.Error("empty MAC address accepted")
	}
}

// BenchmarkProgram is the kernel's own time for a frame, without a driver.
func BenchmarkProgram(b *testing.B) {
	bench := newBench(b, Options{})
	if err := bench.Update(testRules()); err != nil {
		b.Fatal(err)
	}
	f, g := families["ipv4"], families["ipv6"]
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"vip4", f.tcp(b, f.client, 4000, f.vip, 80)},
		{"vip6", g.tcp(b, g.client, 4000, g.vip, 80)},
		{"service4", f.tcp(b, f.client, 4000, f.host, 80)},
		{"return4", f.tcp(b, f.backend, 8080, f.client, 4000)},
		{"ssh4", f.tcp(b, f.client, 4000, f.host, 22)},
		{"stranger6", g.tcp(b, g.client, 4000, g.stranger, 80)},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, perRun, err := bench.nic.objs.L4fwdSteer.Benchmark(c.frame, b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(perRun.Nanoseconds()), "ns/frame")
		})
	}
}

// TestObjectsAreCurrent compares the sources with what the committed objects
// were compiled from; generate.sh -check compares the objects themselves.
func TestObjectsAreCurrent(t *testing.T) {
	want, err := os.ReadFile("sources.sha256")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, name := range []string{"steer.c", "abi.h", "generate.sh"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%x  %s\n", sha256.Sum256(b), name)
	}
	if got.String() != string(want) {
		t.Errorf("steer.c, abi.h or generate.sh changed: run go generate ./dataplane/steer\nnow:\n%sgenerated from:\n%s", &got, want)
	}
}

package testbed

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var (
	mac1, mac2  = []byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2}
	comparePort = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
)

// build serializes layers into a frame with right lengths and checksums.
func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(buf.Bytes())
}

func ether(kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: mac1, DstMAC: mac2, EthernetType: kind}
}

func ipv4Layer(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
}

func ipv6Layer(proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto,
		SrcIP: netip.MustParseAddr("fd00::1").AsSlice(), DstIP: netip.MustParseAddr("fd00::2").AsSlice()}
}

func tcpLayer(ip gopacket.NetworkLayer, options ...layers.TCPOption) *layers.TCP {
	l := &layers.TCP{SrcPort: 1000, DstPort: 80, ACK: true, Seq: 5, Ack: 6, Window: 7, Options: options}
	_ = l.SetNetworkLayerForChecksum(ip)
	return l
}

func udpLayer(ip gopacket.NetworkLayer) *layers.UDP {
	l := &layers.UDP{SrcPort: 1000, DstPort: 53}
	_ = l.SetNetworkLayerForChecksum(ip)
	return l
}

func toaOption(client netip.AddrPort) layers.TCPOption {
	data := append([]byte{byte(client.Port() >> 8), byte(client.Port())}, client.Addr().AsSlice()...)
	return layers.TCPOption{OptionType: DefaultTOAKind, OptionLength: uint8(2 + len(data)), OptionData: data}
}

// samples are right frames of every kind the checker knows.
func samples(t testing.TB) map[string][]byte {
	ip4, ip6 := ipv4Layer, ipv6Layer
	data := gopacket.Payload("odd length payload!")
	t4, t6, u4, u6 := ip4(layers.IPProtocolTCP), ip6(layers.IPProtocolTCP), ip4(layers.IPProtocolUDP), ip6(layers.IPProtocolUDP)
	i6 := ip6(layers.IPProtocolICMPv6)
	icmp6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
	_ = icmp6.SetNetworkLayerForChecksum(i6)
	withOptions := ip4(layers.IPProtocolTCP)
	withOptions.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	inner := build(t, ip4(layers.IPProtocolUDP), gopacket.Payload("12345678"))
	padded := append(build(t, ether(layers.EthernetTypeIPv4), t4, tcpLayer(t4)), 1, 2, 3, 4, 5, 6)
	return map[string][]byte{
		"tcp4":        build(t, ether(layers.EthernetTypeIPv4), t4, tcpLayer(t4), data),
		"tcp6":        build(t, ether(layers.EthernetTypeIPv6), t6, tcpLayer(t6), data),
		"udp4":        build(t, ether(layers.EthernetTypeIPv4), u4, udpLayer(u4), data),
		"udp6":        build(t, ether(layers.EthernetTypeIPv6), u6, udpLayer(u6), data),
		"tcp4 padded": padded,
		"tcp4 in vlan": build(t, ether(layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeIPv4},
			t4, tcpLayer(t4), data),
		"tcp4 behind options": build(t, ether(layers.EthernetTypeIPv4), withOptions, tcpLayer(withOptions), data),
		"icmp echo": build(t, ether(layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 1, Seq: 2}, data),
		"icmp error": build(t, ether(layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, 3)}, gopacket.Payload(inner)),
		"icmp6 echo": build(t, ether(layers.EthernetTypeIPv6), i6, icmp6, data),
	}
}

// unprotected are bytes no checksum that must be right covers: the Ethernet
// header and, in IPv6, version, class, flow label and hop limit; a change of a
// type, length or next header makes another packet of it.
func unprotected(name string, i int) bool {
	l3 := 14
	if strings.Contains(name, "vlan") {
		l3 = 18
	}
	v6 := strings.Contains(name, "6")
	switch {
	case i < l3:
		return true
	case v6 && i < l3+8:
		return true
	case strings.Contains(name, "padded") && i >= 14+40:
		return true
	}
	return false
}

func TestCheckFrame(t *testing.T) {
	for name, f := range samples(t) {
		t.Run(name, func(t *testing.T) {
			if err := CheckFrame(f); err != nil {
				t.Fatal(err)
			}
			for i := range f {
				bad := slices.Clone(f)
				bad[i] ^= 0x10
				if err := CheckFrame(bad); err == nil && !unprotected(name, i) {
					t.Errorf("byte %d flipped: not noticed\n%x", i, bad)
				}
				// Any cut is noticed, save in the trailing padding.
				if err := CheckFrame(f[:i]); err == nil && !unprotected(name, i) {
					t.Errorf("cut to %d bytes: not noticed", i)
				}
			}
		})
	}
}

func TestCheckFrameUDPZero(t *testing.T) {
	s := samples(t)
	four, six := s["udp4"], s["udp6"]
	copy(four[14+20+6:], []byte{0, 0})
	copy(six[14+40+6:], []byte{0, 0})
	if err := CheckFrame(four); err != nil {
		t.Error("UDP over IPv4 may go without a checksum:", err)
	}
	if err := CheckFrame(six); err == nil {
		t.Error("UDP over IPv6 without a checksum: not noticed")
	}
}

// pair is two namespaces joined by a veth.
func pair(t *testing.T, o VethOptions) (a, b *Device) {
	t.Helper()
	var ns [2]*Namespace
	for i, role := range []string{"a", "b"} {
		n, err := NewNamespace(role)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		ns[i] = n
	}
	a, b, err := Veth(ns[0], "a0", ns[1], "b0", o)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func sniff(t *testing.T, d *Device, o SnifferOptions) *Sniffer {
	t.Helper()
	s, err := d.NS.Sniff(d.Name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.Stop() })
	return s
}

func TestSnifferCorruptAndTOA(t *testing.T) {
	a, b := pair(t, VethOptions{})
	var pcap bytes.Buffer
	s := sniff(t, b, SnifferOptions{Direction: Incoming, Pcap: &pcap})
	c4, c6 := netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("[2001:db8::9]:815")
	forged := netip.MustParseAddrPort("203.0.113.66:666")
	t4, t6 := ipv4Layer(layers.IPProtocolTCP), ipv6Layer(layers.IPProtocolTCP)
	corrupt := samples(t)["udp4"]
	corrupt[len(corrupt)-1]++
	twice := tcpLayer(t4, toaOption(c4), toaOption(forged))
	twice.SrcPort = 1001
	tagged := samples(t)["tcp4 in vlan"]
	frames := [][]byte{
		tagged,
		build(t, ether(layers.EthernetTypeIPv4), t4, tcpLayer(t4, toaOption(c4)), gopacket.Payload("x")),
		build(t, ether(layers.EthernetTypeIPv6), t6, tcpLayer(t6, toaOption(c6))),
		corrupt,
		build(t, ether(layers.EthernetTypeIPv4), t4, twice),
	}
	for _, f := range frames {
		copy(f, b.MAC)
	}
	if err := a.Inject(frames...); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("10.0.0.1:1000")
	server := netip.MustParseAddrPort("10.0.0.2:80")
	if got, ok := s.Client(local, server); !ok || got != c4 {
		t.Errorf("Client = %v, %t", got, ok)
	}
	if _, ok := s.Client(server, local); ok {
		t.Error("Client found a connection that is not there")
	}
	r, err := s.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if captured := pcap.Bytes(); r.Tagged != 1 || !bytes.Contains(captured, tagged) {
		t.Errorf("%d tagged frames; the capture does not hold it as sent", r.Tagged)
	}
	if r.Bad != 2 || len(r.Violations) != 2 || !strings.Contains(r.Violations[0].Reason, "UDP checksum") ||
		!strings.Contains(r.Violations[1].Reason, "2 TOA options") {
		t.Errorf("violations: %v", r.Violations)
	}
	want := map[TOAKey][]netip.AddrPort{
		{local, server}: {c4},
		{netip.MustParseAddrPort("[fd00::1]:1000"), netip.MustParseAddrPort("[fd00::2]:80")}: {c6},
		{netip.MustParseAddrPort("10.0.0.1:1001"), server}:                                   {c4, forged},
	}
	if diff := cmp.Diff(want, s.TOA(), comparePort); diff != "" {
		t.Errorf("TOA (-want +got)\n%s", diff)
	}
	if !s.Saw(netip.MustParseAddr("10.0.0.2")) || s.Saw(netip.MustParseAddr("10.0.0.3")) {
		t.Errorf("saw %v", s.Addresses())
	}
	countPcap(t, &pcap, r.Frames)
}

func countPcap(t *testing.T, pcap *bytes.Buffer, want uint64) {
	t.Helper()
	p, err := pcapgo.NewReader(pcap)
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for {
		if _, _, err := p.ReadPacketData(); err != nil {
			break
		}
		n++
	}
	if n != want {
		t.Errorf("pcap holds %d frames of %d", n, want)
	}
}

func TestSnifferDirectionLimitEvery(t *testing.T) {
	a, b := pair(t, VethOptions{})
	ip := ipv4Layer(layers.IPProtocolTCP)
	f := build(t, ether(layers.EthernetTypeIPv4), ip, tcpLayer(ip), gopacket.Payload(make([]byte, 1000)))
	copy(f, b.MAC)
	bad := slices.Clone(f)
	bad[len(bad)-1]++
	in, out := sniff(t, a, SnifferOptions{Direction: Incoming}), sniff(t, a, SnifferOptions{Direction: Outgoing})
	limit := sniff(t, b, SnifferOptions{Direction: Incoming, Limit: 10})
	every := sniff(t, b, SnifferOptions{Direction: Incoming, Every: 5})
	syns := sniff(t, b, SnifferOptions{SYNs: true})
	var frames [][]byte
	for range 200 {
		frames = append(frames, f, bad, bad, bad, bad)
	}
	ip6 := ipv6Layer(layers.IPProtocolTCP)
	for _, ack := range []bool{true, false} {
		syn4, syn6 := tcpLayer(ip), tcpLayer(ip6)
		syn4.SYN, syn4.ACK, syn6.SYN, syn6.ACK = true, ack, true, ack
		frames = append(frames, build(t, ether(layers.EthernetTypeIPv4), ip, syn4), build(t, ether(layers.EthernetTypeIPv6), ip6, syn6))
	}
	if err := a.Inject(frames...); err != nil {
		t.Fatal(err)
	}
	// Frames of the kernel itself (ND) come in between; TCP frames are ours.
	for name, c := range map[string]struct {
		s    *Sniffer
		want func(Report) bool
	}{
		"incoming": {in, func(r Report) bool { return r.TCP == 0 }},
		"outgoing": {out, func(r Report) bool { return r.TCP == 1004 && r.Bad == 800 }},
		"limit":    {limit, func(r Report) bool { return r.Frames == 10 && r.Limited }},
		"SYNs":     {syns, func(r Report) bool { return r.Frames == 4 && r.SYNs == 4 && r.Bad == 0 }},
		"every": {every, func(r Report) bool {
			// 200 ± 5 standard deviations of a fair choice, and some ND.
			return r.TCP == 1004 && r.Checked > 130 && r.Checked < 280 && r.Bad > 100 && r.Bad < r.Checked
		}},
	} {
		if r, err := c.s.Stop(); err != nil || !c.want(r) || r.Dropped != 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// TestSnifferKeepsUp checks every frame of a bulk transfer on both ends.
func TestSnifferKeepsUp(t *testing.T) {
	top := Up(t, TopologyOptions{})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	servers, err := top.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := CloseServers(servers); err != nil {
			t.Error(err)
		}
	}()
	const size = 64 << 20
	// The buffer has room for all of it: this is about sums, not about speed,
	// which the race detector takes away.
	s := sniff(t, top.ServerDevs[0], SnifferOptions{BufferMiB: 4 * size >> 20})
	tr, err := Transfer{To: netip.AddrPortFrom(top.ServerAddr(V4, 0), PortHash), Up: size, Down: size}.Run(t.Context(), top.Client)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r, err := s.Stop()
	if err != nil || r.Bad > 0 || r.Dropped > 0 || r.Bytes < 2*size || r.Resets > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("2 x %d MiB in %s, %d frames checked, caught up %s later", size>>20, tr.Duration, r.Checked, time.Since(start))
}

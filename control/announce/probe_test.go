package announce

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// What asks is right by gopacket's word and names no address of the asker's; what
// answers is understood, and anything else is nobody's.
func TestProbeFrames(t *testing.T) {
	mac := [6]byte{2, 0, 0, 0, 0, 9}
	a4, a6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::12:3456")
	p := gopacket.NewPacket(probeFor(a4, mac), layers.LayerTypeEthernet, gopacket.Default)
	arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || arp.Operation != layers.ARPRequest || !bytes.Equal(arp.SourceProtAddress, make([]byte, 4)) ||
		!bytes.Equal(arp.DstProtAddress, a4.AsSlice()) || !bytes.Equal(arp.SourceHwAddress, mac[:]) {
		t.Errorf("%v", p)
	}
	frame := probeFor(a6, mac)
	p = gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	ns, ok2 := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
	if !ok || !ok2 || !ip.SrcIP.Equal(net.IPv6zero) || !ip.DstIP.Equal(net.ParseIP("ff02::1:ff12:3456")) || ip.HopLimit != 255 ||
		!ns.TargetAddress.Equal(a6.AsSlice()) || len(ns.Options) != 0 {
		t.Errorf("%v", p)
	}
	icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.LayerPayload())); err != nil {
		t.Fatal(err)
	}
	if want := b.Bytes()[2:4]; !bytes.Equal(frame[14+40+2:][:2], want) {
		t.Errorf("checksum %x, want %x", frame[14+40+2:][:2], want)
	}
	for name, c := range map[string]struct {
		frame []byte
		want  netip.Addr
	}{
		"an announcement":  {gratuitousARP(a4, mac), a4},
		"an advertisement": {unsolicitedNA(a6, mac), a6},
		"a probe":          {probeFor(a4, mac), netip.Addr{}},
		"a solicitation":   {frame, netip.Addr{}},
		"a short one":      {gratuitousARP(a4, mac)[:40], netip.Addr{}},
		"none at all":      {nil, netip.Addr{}},
	} {
		a, from, ok := claimIn(c.frame)
		if ok != c.want.IsValid() || ok && (a != c.want || !bytes.Equal(from, mac[:])) {
			t.Errorf("%s: %v %v %v, want %v", name, a, from, ok, c.want)
		}
	}
}

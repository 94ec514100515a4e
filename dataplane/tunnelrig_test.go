package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// tunnelKinds are all encapsulations, as they are set up in these tests.
var tunnelKinds = map[string]nat.Tunnel{
	"ipip":  {Kind: nat.IPIP},
	"gre":   {Kind: nat.GRE},
	"gue":   {Kind: nat.GUE, Port: 6080},
	"fou":   {Kind: nat.FOU, Port: 5555},
	"vxlan": {Kind: nat.VXLAN, Port: 4789, VNI: 77, MAC: [6]byte{2, 9, 9, 9, 9, 9}},
}

// tunnelSpec has VIPs of both families, each before servers of both, beyond a router.
func tunnelSpec(tn nat.Tunnel) Spec {
	s := Spec{Seed: 1}
	add := func(name, vip string, proto uint8, backends ...string) {
		svc := service(name, vip, proto, conntrack.DirectReturn, false, backends...)
		svc.Tunnel = tn
		s.Services = append(s.Services, svc)
	}
	for i, outer := range [][]string{{"10.0.5.20", "10.0.5.21"}, {"2001:db8:5::20", "2001:db8:5::21"}} {
		at := func(port uint16) (out []string) {
			for _, b := range outer {
				out = append(out, netip.AddrPortFrom(netip.MustParseAddr(b), port).String())
			}
			return out
		}
		add(fmt.Sprint("tcp4 in ", 4+2*i), fmt.Sprintf("192.0.2.2%d:80", i), packet.ProtoTCP, at(80)...)
		add(fmt.Sprint("udp4 in ", 4+2*i), fmt.Sprintf("192.0.2.2%d:5000", i), packet.ProtoUDP, at(5000)...)
		add(fmt.Sprint("tcp6 in ", 4+2*i), fmt.Sprintf("[2001:db8::2%d]:80", i), packet.ProtoTCP, at(80)...)
		add(fmt.Sprint("udp6 in ", 4+2*i), fmt.Sprintf("[2001:db8::2%d]:5000", i), packet.ProtoUDP, at(5000)...)
	}
	return s
}

// tunnelClients are clients and VIPs of each service of tunnelSpec.
var tunnelClients = []struct {
	client, vip string
	udp         bool
}{
	{"198.51.100.7:%d", "192.0.2.2%d:80", false}, {"198.51.100.7:%d", "192.0.2.2%d:5000", true},
	{"[2001:db8:c::7]:%d", "[2001:db8::2%d]:80", false}, {"[2001:db8:c::7]:%d", "[2001:db8::2%d]:5000", true},
}

// tunnelRoutes leads to servers by a router on NIC 1, and to clients by NIC 0.
func tunnelRoutes(gen uint32, mtu int) *route.Table {
	hops := []route.Hop{{}, route.NewHop(0, clientMAC, nicMAC[0], 0, 1500), route.NewHop(1, serverMAC, nicMAC[1], 0, mtu)}
	list := []route.Prefix{
		{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Hop: 1}, {Prefix: netip.MustParsePrefix("2001:db8:c::/64"), Hop: 1},
		{Prefix: netip.MustParsePrefix("10.0.5.0/24"), Hop: 2}, {Prefix: netip.MustParsePrefix("2001:db8:5::/64"), Hop: 2},
	}
	return route.New(gen, hops, list).WithPeers([]route.Peer{{}, {},
		{Addr: addr("10.0.1.254"), Own: [2]packet.Addr{addr("10.0.1.1"), addr("2001:db8:1::1")}}})
}

func newTunnelRig(t testing.TB, workers int, tn nat.Tunnel) *rig {
	r := newRigWith(t, workers, tunnelSpec(tn), func(o *Options) { o.UMEM = make([]byte, workers*1024*testFrame) })
	r.dp.PublishRoutes(tunnelRoutes(2, 1600))
	return r
}

// unwrapped is what a tunnel's frame holds.
type unwrapped struct {
	src, dst string // outer
	sport    uint16 // of UDP
	label    uint32 // of IPv6
	df       bool
	id       uint16
	tos, ttl uint8
	inner    []byte // IP packet
}

// unwrap has gopacket take the tunnel off a frame, whose outer headers must be right.
func unwrap(t testing.TB, tn *nat.Tunnel, frame []byte) (u unwrapped) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true})
	var payload []byte
	var next layers.IPProtocol
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		u = unwrapped{src: ip.SrcIP.String(), dst: ip.DstIP.String(), df: ip.Flags&layers.IPv4DontFragment != 0, id: ip.Id, tos: ip.TOS, ttl: ip.TTL}
		if payload, next = ip.Payload, ip.Protocol; int(ip.Length) != 20+len(payload) || packet.Checksum(ip.Contents, 0) != 0 {
			t.Fatalf("%+v", ip)
		}
	case *layers.IPv6:
		u = unwrapped{src: ip.SrcIP.String(), dst: ip.DstIP.String(), label: ip.FlowLabel, df: true, tos: ip.TrafficClass, ttl: ip.HopLimit}
		if payload, next = ip.Payload, ip.NextHeader; int(ip.Length) != len(payload) {
			t.Fatalf("%+v", ip)
		}
	}
	var ether layers.EthernetType
	switch next {
	case layers.IPProtocolUDP:
		udp := &layers.UDP{}
		if err := udp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback); err != nil || int(udp.Length) != len(payload) || uint16(udp.DstPort) != tn.Port {
			t.Fatalf("%v: %+v", err, udp)
		}
		verifyTunnelUDP(t, p, udp)
		if u.sport = uint16(udp.SrcPort); u.sport < 49152 {
			t.Fatalf("source port %d", u.sport)
		}
		u.inner = udp.Payload
		switch tn.Kind {
		case nat.GUE:
			proto := map[byte]byte{4: 4, 6: 41}[u.inner[4]>>4]
			if !bytes.Equal(u.inner[:4], []byte{0, proto, 0, 0}) {
				t.Fatalf("GUE header %x", u.inner[:4])
			}
			u.inner = u.inner[4:]
		case nat.VXLAN:
			v, eth := &layers.VXLAN{}, &layers.Ethernet{}
			if err := v.DecodeFromBytes(u.inner, gopacket.NilDecodeFeedback); err != nil || v.VNI != tn.VNI || !v.ValidIDFlag {
				t.Fatalf("%v: %+v", err, v)
			}
			if err := eth.DecodeFromBytes(v.Payload, gopacket.NilDecodeFeedback); err != nil || [6]byte(eth.DstMAC) != tn.MAC || [6]byte(eth.SrcMAC) != nicMAC[1] {
				t.Fatalf("%v: %+v", err, eth)
			}
			u.inner, ether = v.Payload[14:], eth.EthernetType
		}
	case layers.IPProtocolGRE:
		g := &layers.GRE{}
		if err := g.DecodeFromBytes(payload, gopacket.NilDecodeFeedback); err != nil || len(g.Contents) != 4 {
			t.Fatalf("%v: %+v", err, g)
		}
		u.inner, ether = g.Payload, g.Protocol
	case layers.IPProtocolIPv4:
		u.inner, ether = payload, layers.EthernetTypeIPv4
	case layers.IPProtocolIPv6:
		u.inner, ether = payload, layers.EthernetTypeIPv6
	default:
		t.Fatalf("protocol %v", next)
	}
	if want := map[byte]layers.EthernetType{4: layers.EthernetTypeIPv4, 6: layers.EthernetTypeIPv6}[u.inner[0]>>4]; ether != 0 && ether != want {
		t.Fatalf("%v holds a packet that begins with %x", ether, u.inner[0])
	}
	within := u.inner[8] // its TTL
	if u.inner[0]>>4 == 6 {
		within = u.inner[7]
	}
	if u.ttl != min(within, 64) {
		t.Fatalf("TTL %d in %d", within, u.ttl)
	}
	return u
}

// verifyTunnelUDP: no checksum over IPv4, a right one over IPv6.
func verifyTunnelUDP(t testing.TB, p gopacket.Packet, udp *layers.UDP) {
	t.Helper()
	ip, six := p.NetworkLayer().(*layers.IPv6)
	if !six {
		if udp.Checksum != 0 {
			t.Fatalf("checksum %#x", udp.Checksum)
		}
		return
	}
	_ = udp.SetNetworkLayerForChecksum(ip)
	got, buf := udp.Checksum, gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, udp, gopacket.Payload(udp.Payload)); err != nil {
		t.Fatal(err)
	}
	if want := binary.BigEndian.Uint16(buf.Bytes()[6:]); got != want {
		t.Fatalf("checksum %#x, gopacket says %#x", got, want)
	}
}

// routed is a packet as it is behind a router.
func routed(frame []byte) []byte {
	ip := slices.Clone(frame[14:])
	if ip[0]>>4 == 6 {
		ip[7]--
		return ip[:40+int(binary.BigEndian.Uint16(ip[4:]))] // no padding
	}
	ip = ip[:binary.BigEndian.Uint16(ip[2:])]
	ip[8]--
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:ip[0]&15*4], 0))
	return ip
}

// byTunnel delivers a client's frame and returns what left by NIC 1, which has to hold
// the packet as behind a router.
func (r *rig) byTunnel(worker int, tn *nat.Tunnel, frame []byte) unwrapped {
	r.t.Helper()
	out := r.deliver(worker, 0, frame)
	if len(out) != 1 || out[0].nic != 1 {
		r.t.Fatalf("%d frames: %+v\n%+v", len(out), out, r.counts().Verdicts)
	}
	u := unwrap(r.t, tn, out[0].bytes)
	if want := routed(frame); !bytes.Equal(u.inner, want) {
		r.t.Fatalf("sent\n%x\nholds\n%x", want, u.inner)
	}
	return u
}

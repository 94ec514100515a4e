package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

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
	tos      uint8
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
		u = unwrapped{src: ip.SrcIP.String(), dst: ip.DstIP.String(), df: ip.Flags&layers.IPv4DontFragment != 0, id: ip.Id, tos: ip.TOS}
		if payload, next = ip.Payload, ip.Protocol; ip.TTL != 64 || int(ip.Length) != 20+len(payload) || packet.Checksum(ip.Contents, 0) != 0 {
			t.Fatalf("%+v", ip)
		}
	case *layers.IPv6:
		u = unwrapped{src: ip.SrcIP.String(), dst: ip.DstIP.String(), label: ip.FlowLabel, df: true, tos: ip.TrafficClass}
		if payload, next = ip.Payload, ip.NextHeader; ip.HopLimit != 64 || int(ip.Length) != len(payload) {
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

// TestTunnel: in every encapsulation, either family in either, each flow's packets
// reach one server by any worker, with the entropy that is the flow's.
func TestTunnel(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				vip := fmt.Sprintf(k.vip, outer)
				t.Run(fmt.Sprint(name, "/", vip, " in ", 4+2*outer), func(t *testing.T) {
					const workers, flows = 2, 24
					r := newTunnelRig(t, workers, tn)
					met, ports, labels := map[string]int{}, map[uint16]bool{}, map[uint32]bool{}
					for n := range flows {
						s := seg{src: fmt.Sprintf(k.client, 4000+n), dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}
						first := r.byTunnel(0, &tn, build(t, s))
						met[first.dst]++
						ports[first.sport], labels[first.label] = true, true
						s.syn, s.ack, s.seq, s.ackNum = false, !k.udp, 1001, 9001
						for w := range workers {
							s.payload++ // odd and even
							u := r.byTunnel(w, &tn, build(t, s))
							if u.dst != first.dst || u.src != first.src || u.sport != first.sport || u.label != first.label {
								t.Fatalf("%+v, then %+v", first, u)
							}
							if own := []string{"10.0.1.1", "2001:db8:1::1"}[outer]; u.src != own || !u.df || u.id != 0 {
								t.Fatalf("%+v", u)
							}
						}
					}
					udp := tn.Kind >= nat.GUE
					if len(met) != 2 || udp && len(ports) < flows-3 || outer == 1 && len(labels) < flows-3 {
						t.Errorf("%v; %d source ports, %d flow labels", met, len(ports), len(labels))
					}
					if c := r.counts(); c.Opened != flows || c.Drops() != 0 {
						t.Errorf("%+v", c)
					}
				})
			}
		}
	}
}

// TestTunnelMarks: DSCP and ECN are copied, and so is DF, without which a packet has an
// identification of its own.
func TestTunnelMarks(t *testing.T) {
	tn := tunnelKinds["gue"]
	for outer := range 2 {
		r := newTunnelRig(t, 1, tn)
		ids := map[uint16]bool{}
		for tos := range 256 {
			for _, six := range []bool{false, true} {
				k := tunnelClients[map[bool]int{false: 1, true: 3}[six]]
				f := freely(build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: true, payload: 20}))
				if ip := f[14:]; six {
					ip[0], ip[1] = 0x60|byte(tos>>4), byte(tos<<4)|ip[1]&15
				} else {
					ip[1] = byte(tos)
					binary.BigEndian.PutUint16(ip[10:], 0)
					binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:20], 0))
				}
				u := r.byTunnel(0, &tn, f)
				if u.tos != byte(tos) {
					t.Errorf("%#x became %#x", tos, u.tos)
				}
				if outer == 0 && u.df != six {
					t.Errorf("DF %v", u.df)
				}
				if outer == 0 && !six {
					if ids[u.id] {
						t.Errorf("identification %d again", u.id)
					}
					ids[u.id] = true
				}
			}
		}
	}
}

// TestTunnelSource: outer sources come from the network that is given, one for each
// flow; without one, and without an address on the interface, nothing is sent.
func TestTunnelSource(t *testing.T) {
	tn := nat.Tunnel{Kind: nat.IPIP, Source: addr("172.16.0.0"), Spread: 16}
	r := newTunnelRig(t, 1, tn)
	seen := map[string]bool{}
	for n := range 50 {
		s := seg{src: fmt.Sprintf("198.51.100.7:%d", 4000+n), dst: "192.0.2.20:5000", udp: true}
		first, again := r.byTunnel(0, &tn, build(t, s)), r.byTunnel(0, &tn, build(t, s))
		if a := netip.MustParseAddr(first.src); !netip.MustParsePrefix("172.16.0.0/16").Contains(a) || first.src != again.src {
			t.Errorf("%s, then %s", first.src, again.src)
		}
		seen[first.src] = true
	}
	if len(seen) < 48 {
		t.Errorf("%d sources for 50 flows", len(seen))
	}
	tn = tunnelKinds["gre"]
	r = newTunnelRig(t, 1, tn)
	r.dp.PublishRoutes(tunnelRoutes(3, 1600).WithPeers(nil))
	r.refused(0, 0, DropNoSource, build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.20:80", syn: true}))
}

// TestTunnelTooBig: a packet that does not fit together with its tunnel is told to the
// client with what does fit; without DF it leaves in fragments, each in a tunnel of
// its own, which put together give the packet.
func TestTunnelTooBig(t *testing.T) {
	const mtu = 1500
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				vip := fmt.Sprintf(k.vip, outer)
				t.Run(fmt.Sprint(name, "/", vip), func(t *testing.T) {
					r := newTunnelRig(t, 1, tn)
					r.dp.PublishRoutes(tunnelRoutes(3, mtu))
					fits := mtu - tn.Overhead(outer == 0)
					of := func(size int) []byte {
						s := seg{src: fmt.Sprintf(k.client, 4000), dst: vip, udp: k.udp, ack: !k.udp, seq: 1001}
						s.payload = 1000
						s.payload += size - (len(build(t, s)) - 14)
						return build(t, s)
					}
					large := of(fits + 1)
					if k.udp { // it would open the flow, and must not
						if got := toldMTU(r.answered(0, 0, 0, DropTooBig, large)); got != fits || r.counts().Opened != 0 {
							t.Errorf("told %d, want %d; %d flows", got, fits, r.counts().Opened)
						}
					}
					r.byTunnel(0, &tn, build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}))
					r.byTunnel(0, &tn, of(fits))
					if got := toldMTU(r.answered(0, 0, 0, DropTooBig, large)); got != fits {
						t.Errorf("told %d, want %d", got, fits)
					}
					if large[14]>>4 == 6 {
						return
					}
					out := r.deliver(0, 0, freely(large))
					var inner []sentFrame
					ids := map[uint16]bool{}
					for _, f := range out {
						u := unwrap(t, &tn, f.bytes)
						ids[u.id] = true
						if len(f.bytes) > 14+mtu || u.df != (outer == 1) {
							t.Errorf("%d bytes, DF %v", len(f.bytes), u.df)
						}
						inner = append(inner, sentFrame{bytes: append(slices.Clone(large[:14]), u.inner...)})
					}
					if len(out) != 2 || r.counts().Split != 1 || outer == 0 && len(ids) != 2 {
						t.Fatalf("%d pieces, identifications %v", len(out), ids)
					}
					whole, id := whole(t, inner)
					want := plainly(append(slices.Clone(large[:14]), routed(large)...))
					if !bytes.Equal(whole, want) || id != 0xbeef {
						t.Errorf("put together, id %x\n%x\nwant\n%x", id, whole, want)
					}
				})
			}
		}
	}
}

// TestTunnelAside: ICMP errors about a server's packets, and fragments, go where the
// flow goes.
func TestTunnelAside(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			t.Run(fmt.Sprint(name, "/", 4+2*outer), func(t *testing.T) {
				const workers = 2
				r := newTunnelRig(t, workers, tn)
				for n := range 8 {
					k := tunnelClients[n%4]
					client, vip := fmt.Sprintf(k.client, 4000+n), fmt.Sprintf(k.vip, outer)
					first := r.byTunnel(0, &tn, build(t, seg{src: client, dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}))
					answer := build(t, seg{src: vip, dst: client, udp: k.udp, ack: !k.udp, seq: 9001, ackNum: 1001, payload: 900})
					router := map[bool]string{true: "203.0.113.9", false: "2001:db8:ff::9"}[answer[14]>>4 == 4]
					for w := range workers {
						u := r.byTunnel(w, &tn, complaint(t, router, answer, 1300, 64))
						if u.dst != first.dst || u.sport != first.sport {
							t.Errorf("the flow goes to %s, the error to %s", first.dst, u.dst)
						}
					}
					data := seg{src: client, dst: vip, udp: k.udp, ack: !k.udp, seq: 1001, payload: 3000}
					pieces := cut(freely(build(t, data)), uint32(100+n), 1000)
					pieces = append(pieces[2:], pieces[:2]...)
					var out []sentFrame
					for i, f := range pieces {
						out = append(out, r.deliver(i%workers, 0, f)...)
					}
					var inner []sentFrame
					for _, f := range out {
						u := unwrap(t, &tn, f.bytes)
						if u.dst != first.dst || u.sport != first.sport {
							t.Errorf("the flow goes to %s, a fragment to %s", first.dst, u.dst)
						}
						inner = append(inner, sentFrame{bytes: append(slices.Clone(f.bytes[:12]), map[byte]string{4: "\x08\x00", 6: "\x86\xdd"}[u.inner[0]>>4]...)})
						inner[len(inner)-1].bytes = append(inner[len(inner)-1].bytes, u.inner...)
					}
					if len(out) != len(pieces) {
						t.Fatalf("%d of %d pieces", len(out), len(pieces))
					}
					whole(t, inner)
				}
				if c := r.counts(); c.Drops() != 0 {
					t.Errorf("%+v", c)
				}
			})
		}
	}
}

// TestTunnelIsAHop: the TTL of what goes into a tunnel is decremented, and where it
// ends the client is told, unless l4fwd is no hop.
func TestTunnelIsAHop(t *testing.T) {
	tn := tunnelKinds["ipip"]
	for _, keep := range []bool{false, true} {
		spec := tunnelSpec(tn)
		spec.KeepTTL = keep
		r := newRig(t, 1, spec)
		r.dp.PublishRoutes(tunnelRoutes(2, 1600))
		last := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.20:80", syn: true, ttl: 1})
		if !keep {
			r.answered(0, 0, 0, DropTTL, last)
			if n := r.counts().Opened; n != 0 {
				t.Errorf("%d flows", n)
			}
			continue
		}
		out := r.deliver(0, 0, last)
		if len(out) != 1 || !bytes.HasPrefix(last[14:], unwrap(t, &tn, out[0].bytes).inner) {
			t.Errorf("%+v", out)
		}
	}
}

// TestTunnelFarewell: the server of a flow that idles out is reset by its tunnel.
func TestTunnelFarewell(t *testing.T) {
	for name, tn := range tunnelKinds {
		r := newTunnelRig(t, 1, tn)
		client := "198.51.100.7:4000"
		r.byTunnel(0, &tn, build(t, seg{src: client, dst: "192.0.2.21:80", syn: true, seq: 1000}))
		first := r.byTunnel(0, &tn, build(t, seg{src: client, dst: "192.0.2.21:80", ack: true, seq: 1001, ackNum: 5}))
		r.sent = nil
		r.now += 3 * int64(time.Hour)
		for range 100 {
			r.step()
		}
		if len(r.sent) != 1 {
			t.Fatalf("%s: %+v", name, r.sent)
		}
		u := unwrap(t, &tn, r.sent[0].bytes)
		tcp := tcpOf(verify(t, append(slices.Concat(r.sent[0].bytes[:12], []byte{8, 0}), u.inner...)))
		if u.dst != first.dst || !tcp.RST || tcp.Seq != 1001 || tcp.DstPort != 80 {
			t.Errorf("%s: %+v %+v", name, u, tcp)
		}
	}
}

// TestTunnelMSS: with mss_clamp: mtu a SYN announces no more than fits the tunnel.
func TestTunnelMSS(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				if k.udp {
					continue
				}
				spec := tunnelSpec(tn)
				for i := range spec.Services {
					spec.Services[i].MSSClamp = ClampToMTU
				}
				r := newRig(t, 1, spec)
				r.dp.PublishRoutes(tunnelRoutes(2, 1500))
				syn := build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), syn: true, opts: []layers.TCPOption{mss(1460)}})
				u := unwrap(t, &tn, r.deliver(0, 0, syn)[0].bytes)
				header := map[byte]int{4: 40, 6: 60}[u.inner[0]>>4]
				want := 1500 - tn.Overhead(outer == 0) - header
				if got := int(binary.BigEndian.Uint16(u.inner[header+2:])); got != want {
					t.Errorf("%s, %s: MSS %d, want %d", name, k.vip, got, want)
				}
			}
		}
	}
}

// TestTunnelAllocatesNothing.
func TestTunnelAllocatesNothing(t *testing.T) {
	for name, tn := range tunnelKinds {
		r := newTunnelRig(t, 1, tn)
		w := r.dp.Workers[0]
		for _, p := range r.port[0] {
			p.OnSend = nil
		}
		var frames [][]byte
		for outer := range 2 {
			for _, k := range tunnelClients {
				frames = append(frames, build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: k.udp, syn: !k.udp, payload: 100}))
				frames = append(frames, freely(build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: k.udp, ack: !k.udp, payload: 1540})))
			}
		}
		before := r.counts().Verdicts[Forwarded]
		if a := testing.AllocsPerRun(100, func() {
			r.port[0][0].Feed(frames, 1)
			w.Poll(r.now)
		}); a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
		if r.counts().Verdicts[Forwarded] == before || r.counts().Split == 0 {
			t.Errorf("%s: nothing forwarded", name)
		}
	}
}

package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

const (
	testFrame = 2048
	testRing  = len(queue{}.out) // what a round may send by one NIC
	// Frames a worker: both rings of both its ports full, and a burst to spare.
	testFrames = 4*testRing + 2*BurstSize
)

// MACs of the test network.
var (
	clientMAC = [6]byte{2, 0, 0, 0, 0, 1}
	serverMAC = [6]byte{2, 0, 0, 0, 0, 2}
	nicMAC    = [2][6]byte{{2, 0, 0, 0, 1, 0}, {2, 0, 0, 0, 1, 1}}
)

func addr(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

func endpoint(s string, proto uint8) conntrack.Endpoint {
	ap := netip.MustParseAddrPort(s)
	return conntrack.Endpoint{Addr: packet.AddrFrom(ap.Addr()), Port: ap.Port(), Proto: proto}
}

// service is a ServiceSpec with what the tests vary.
func service(name, vip string, proto uint8, mode conntrack.Mode, toa bool, backends ...string) ServiceSpec {
	s := ServiceSpec{
		Name: name, VIP: endpoint(vip, proto), Mode: mode, Scheduler: balance.RoundRobin,
		TOA: toa, TOAKind: 254, Timeouts: conntrack.DefaultTimeouts(), LogOneIn: 1, Judged: true,
	}
	if mode == conntrack.FullNAT {
		s.Timestamps = nat.TSStrip
	}
	for _, b := range backends {
		s.Backends = append(s.Backends, BackendSpec{Endpoint: endpoint(b, proto), Weight: 1})
	}
	return s
}

// proxied is a Full-NAT TCP service with PROXY headers.
func proxied(name, vip string, v nat.ProxyVersion, backends ...string) ServiceSpec {
	s := service(name, vip, packet.ProtoTCP, conntrack.FullNAT, false, backends...)
	s.Proxy = v
	return s
}

// testSpec has a service for every mode, protocol and family. Clients are in
// 198.51.100.0/24 and 2001:db8:c::/64 behind NIC 0, servers in 10.0.1.0/24 and
// 2001:db8:1::/64 behind NIC 1.
func testSpec() Spec {
	return Spec{
		Seed:   1,
		Locals: []packet.Addr{addr("10.0.1.10"), addr("10.0.1.11"), addr("2001:db8:1::10")},
		Services: []ServiceSpec{
			service("fnat4", "192.0.2.10:80", packet.ProtoTCP, conntrack.FullNAT, true, "10.0.1.20:8080", "10.0.1.21:8080"),
			service("fnat6", "[2001:db8::10]:80", packet.ProtoTCP, conntrack.FullNAT, true, "[2001:db8:1::20]:8080"),
			service("fnat4u", "192.0.2.10:5000", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:5001"),
			service("dnat4", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
			service("dnat6", "[2001:db8::11]:80", packet.ProtoTCP, conntrack.DNAT, false, "[2001:db8:1::20]:80"),
			service("nat64", "[2001:db8::64]:80", packet.ProtoTCP, conntrack.FullNAT, true, "10.0.1.20:8064"),
			service("nat64u", "[2001:db8::64]:5000", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:5064"),
			proxied("proxy1", "192.0.2.13:80", nat.ProxyV1, "10.0.1.20:8013"),
			proxied("proxy2", "[2001:db8::13]:80", nat.ProxyV2, "10.0.1.20:8013"),
			service("dnat4u", "192.0.2.11:5000", packet.ProtoUDP, conntrack.DNAT, false, "10.0.1.20:5000"),
		},
	}
}

// testRoutes leads clients out of NIC 0 and servers out of NIC 1.
func testRoutes(gen uint32) *route.Table { return testRoutesOf(gen, 1500) }

// testRoutesOf is testRoutes with another MTU.
func testRoutesOf(gen uint32, mtu uint16) *route.Table {
	hops := []route.Hop{{},
		route.NewHop(0, clientMAC, nicMAC[0], 0, int(mtu)),
		route.NewHop(1, serverMAC, nicMAC[1], 0, int(mtu)),
		{State: route.Unresolved, Port: 1, MTU: mtu}}
	p := func(s string, id route.HopID) route.Prefix {
		return route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: id}
	}
	return route.New(gen, hops, []route.Prefix{
		p("198.51.100.0/24", 1), p("2001:db8:c::/64", 1),
		p("10.0.1.0/24", 2), p("2001:db8:1::/64", 2), p("10.0.9.0/24", 3)})
}

// rig is a dataplane over memory ports: port[w][nic].
type rig struct {
	t    testing.TB
	dp   *Dataplane
	port [][2]*memport.Port
	sent []sentFrame
	now  int64
	seen *tapped // nil unless -tap
}

type sentFrame struct {
	worker, nic int
	bytes       []byte
}

func newRig(t testing.TB, workers int, spec Spec) *rig {
	t.Helper()
	return newRigWith(t, workers, spec, func(*Options) {})
}

// newRigWith lets the test change the options.
func newRigWith(t testing.TB, workers int, spec Spec, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, now: 1}
	o := Options{
		Workers: workers, UMEM: make([]byte, workers*testFrames*testFrame), FrameSize: testFrame, Flows: 1024 * workers,
		Secret: [32]byte{1}, Unpopulated: true,
	}
	change(&o)
	dp, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.dp = dp
	if *tapAll {
		r.seen = newTapped(dp)
	}
	if _, bench := t.(*testing.B); !bench {
		for _, w := range dp.Workers {
			w.LogFlows(NewFlowLog(64))
		}
	}
	t.Cleanup(func() {
		if r.seen != nil {
			r.seen.check(t)
		}
		auditLogs(t, dp)
		if err := dp.Audit(); err != nil {
			t.Errorf("frames: %v", err)
		}
		for _, w := range dp.Workers {
			c := w.Counts()
			var sum uint64
			for _, n := range c.Verdicts {
				sum += n
			}
			if sum += uint64(w.FragmentsWaiting()); sum != c.Received+c.Adopted {
				t.Errorf("worker %d: %d frames received, %d adopted, %d verdicts", w.ID(), c.Received, c.Adopted, sum)
			}
		}
		if err := dp.Close(); err != nil {
			t.Error(err)
		}
	})
	snap, err := NewRegistry(workers).Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	dp.Publish(snap)
	dp.PublishRoutes(testRoutes(1))
	for i, w := range dp.Workers {
		var ports [2]*memport.Port
		for nic := range ports {
			p := memport.New(o.UMEM, testFrame, testRing)
			p.OnSend = func(f []byte) {
				r.sent = append(r.sent, sentFrame{i, nic, append([]byte(nil), f...)})
			}
			if err := w.Attach(uint8(nic), nicMAC[nic], p); err != nil {
				t.Fatal(err)
			}
			ports[nic] = p
		}
		r.port = append(r.port, ports)
	}
	return r
}

// step polls every worker until nothing moves.
func (r *rig) step() {
	for moved := true; moved; {
		moved = false
		for _, w := range r.dp.Workers {
			moved = w.Poll(r.now) > 0 || moved
		}
		if r.seen != nil {
			r.seen.drain()
		}
	}
}

// deliver gives frames to a worker's NIC and returns what was sent in answer.
func (r *rig) deliver(worker, nic int, frames ...[]byte) []sentFrame {
	r.t.Helper()
	r.sent = nil
	r.port[worker][nic].Feed(frames, 1)
	r.step()
	return r.sent
}

// one delivers a frame and wants exactly one out of the NIC, with every
// checksum right.
func (r *rig) one(worker, nic, outNIC int, frame []byte) []byte {
	r.t.Helper()
	before := r.counts()
	out := r.deliver(worker, nic, frame)
	if len(out) != 1 || out[0].nic != outNIC {
		after := r.counts()
		for v := range NumVerdicts {
			if after.Verdicts[v] != before.Verdicts[v] {
				r.t.Logf("verdict %v: %d", v, after.Verdicts[v]-before.Verdicts[v])
			}
		}
		r.t.Fatalf("%d frames out, want 1 by NIC %d: %+v", len(out), outNIC, out)
	}
	verify(r.t, out[0].bytes)
	return out[0].bytes
}

// refused delivers a frame and wants none out, and one more count of v.
func (r *rig) refused(worker, nic int, v Verdict, frame []byte) {
	r.t.Helper()
	before := r.counts()
	out := r.deliver(worker, nic, frame)
	after := r.counts()
	if len(out) != 0 || after.Verdicts[v] != before.Verdicts[v]+1 {
		for x := range NumVerdicts {
			if after.Verdicts[x] != before.Verdicts[x] {
				r.t.Logf("verdict %v: %d", x, after.Verdicts[x]-before.Verdicts[x])
			}
		}
		r.t.Fatalf("%d frames out, want a drop by %v", len(out), v)
	}
}

func (r *rig) counts() (c Counts) {
	for _, w := range r.dp.Workers {
		n := w.Counts()
		c.Add(&n)
	}
	return c
}

// Data is data to gopacket, whatever service a local port is known for.
func init() {
	for port := range 1 << 16 {
		layers.RegisterTCPPortLayerType(layers.TCPPort(port), gopacket.LayerTypePayload)
		layers.RegisterUDPPortLayerType(layers.UDPPort(port), gopacket.LayerTypePayload)
	}
}

// verify has gopacket compute every checksum anew.
func verify(t testing.TB, frame []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v\n%x", e.Error(), frame)
	}
	buf := gopacket.NewSerializeBuffer()
	var ls []gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			network = l
		case *layers.IPv6:
			network = l
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.UDP:
			if l.Checksum == 0 { // not computed by the sender, must stay so
				return p
			}
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			_ = l.SetNetworkLayerForChecksum(network)
		}
		if s, ok := l.(gopacket.SerializableLayer); ok {
			ls = append(ls, s)
		}
	}
	if network == nil {
		return p
	}
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, ls...); err != nil {
		t.Fatalf("gopacket: %v", err)
	}
	got, want := frame, buf.Bytes()
	n := min(len(got), len(want))
	if string(got[:n]) != string(want[:n]) {
		t.Fatalf("checksum: sent\n%x\ngopacket says\n%x", got, want)
	}
	return p
}

// seg describes a packet to build.
type seg struct {
	src, dst    string // addr:port
	syn, ack    bool
	fin, rst    bool
	seq, ackNum uint32
	opts        []layers.TCPOption
	payload     int
	ttl         uint8
	udp, noCsum bool
	srcMAC      [6]byte
	vlan        uint16
}

// build makes the frame with gopacket.
func build(t testing.TB, s seg) []byte {
	t.Helper()
	src, dst := netip.MustParseAddrPort(s.src), netip.MustParseAddrPort(s.dst)
	if s.ttl == 0 {
		s.ttl = 64
	}
	eth := &layers.Ethernet{SrcMAC: s.srcMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}
	proto := layers.IPProtocolTCP
	if s.udp {
		proto = layers.IPProtocolUDP
	}
	var ls []gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	var ip gopacket.SerializableLayer
	if src.Addr().Is4() {
		l := &layers.IPv4{Version: 4, IHL: 5, TTL: s.ttl, Protocol: proto, Flags: layers.IPv4DontFragment,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, ip = l, l
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		l := &layers.IPv6{Version: 6, HopLimit: s.ttl, NextHeader: proto,
			SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		network, ip = l, l
	}
	ls = append(ls, eth)
	if s.vlan != 0 {
		ls = append(ls, &layers.Dot1Q{VLANIdentifier: s.vlan, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	ls = append(ls, ip)
	if s.udp {
		u := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
		_ = u.SetNetworkLayerForChecksum(network)
		ls = append(ls, u)
	} else {
		tcp := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()),
			SYN: s.syn, ACK: s.ack, FIN: s.fin, RST: s.rst, Seq: s.seq, Ack: s.ackNum, Window: 65000, Options: s.opts}
		_ = tcp.SetNetworkLayerForChecksum(network)
		ls = append(ls, tcp)
	}
	payload := make([]byte, s.payload)
	for i := range payload {
		payload[i] = byte(i*7 + 1)
	}
	ls = append(ls, gopacket.Payload(payload))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	b := append([]byte(nil), buf.Bytes()...)
	if s.noCsum {
		binary.BigEndian.PutUint16(b[14+20+6:], 0)
	}
	return b
}

func mss(v uint16) layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, v)}
}

func ipOf(p gopacket.Packet) (src, dst net.IP) {
	if l, ok := p.NetworkLayer().(*layers.IPv4); ok {
		return l.SrcIP, l.DstIP
	}
	l := p.NetworkLayer().(*layers.IPv6)
	return l.SrcIP, l.DstIP
}

// after is spec with the services of old that it has no more, which drain.
func (spec Spec) after(old Spec) Spec {
	kept := make(map[ServiceKey]bool)
	for i := range spec.Services {
		kept[spec.Services[i].Key()] = true
	}
	for _, s := range old.Services {
		if s.Draining = true; !kept[s.Key()] {
			spec.Services = append(spec.Services, s)
		}
	}
	return spec
}

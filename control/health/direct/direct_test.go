package direct

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

var (
	mac1, mac2 = [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	neighbour  = netip.MustParseAddr("10.0.1.20")
	beyond     = netip.MustParseAddr("10.9.0.1")
	unknown    = netip.MustParseAddr("10.0.1.21")
	own4, own6 = netip.MustParseAddr("127.0.0.5"), netip.MustParseAddr("::1") // which the namespace has
)

// table leads to a neighbour, to what is beyond it, tagged, and to one that nobody
// knows the MAC address of.
func table() *route.Table {
	tagged := route.NewHop(1, mac2, mac1, 0x8100_0007, 1500)
	unresolved := route.NewHop(0, mac2, mac1, 0, 1500)
	unresolved.State = route.Unresolved
	one := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	t := route.New(1, []route.Hop{{}, route.NewHop(0, mac2, mac1, 0, 1500), tagged, unresolved}, []route.Prefix{
		{Prefix: one(neighbour), Hop: 1}, {Prefix: one(beyond), Hop: 2}, {Prefix: one(unknown), Hop: 3},
	})
	return t.WithPeers([]route.Peer{
		{}, {Own: [2]packet.Addr{packet.AddrFrom(own4)}},
		{Addr: packet.AddrFrom(neighbour), Own: [2]packet.Addr{packet.AddrFrom(own4), packet.AddrFrom(own6)}}, {},
	})
}

// within runs f in a namespace of its own.
func within(t *testing.T, f func()) {
	t.Helper()
	ns, err := testbed.NewNamespace("direct")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := ns.Do(func() error { f(); return nil }); err != nil {
		t.Error(err)
	}
}

func options(asked *atomic.Int32) Options {
	return Options{Routes: table, Interface: func(uint16) int { return 0 }, Resolve: func(netip.Addr) { asked.Add(1) }}
}

// marked is how many rules lead into the table.
func marked(t *testing.T) (n int) {
	t.Helper()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.RuleList(family)
		if err != nil {
			t.Error(err)
		}
		for _, r := range all {
			if r.Table == Table && r.Mark == Mark {
				n++
			}
		}
	}
	return n
}

// Two at a time there cannot be; what a crash left is no hindrance; in the end nothing
// is left.
func TestOpenAndClose(t *testing.T) {
	within(t, func() {
		var asked atomic.Int32
		for _, r := range rules() { // left by a crash
			if err := netlink.RuleAdd(r); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			c, err := Open(options(&asked))
			if err != nil {
				t.Error(err)
				return
			}
			if n := marked(t); n != 2 {
				t.Errorf("%d rules", n)
			}
			if _, err := Open(options(&asked)); err == nil || !strings.Contains(err.Error(), "busy") {
				t.Errorf("a second one: %v", err)
			}
			if n := marked(t); n != 2 {
				t.Errorf("%d rules after a second one failed", n)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if n := marked(t); n != 0 {
				t.Errorf("%d rules are left", n)
			}
			if _, err := netlink.LinkByName(Device); err == nil {
				t.Error("the device is left")
			}
		}
	})
}

// TestRepair: what a crash left goes, what a living Carrier has stays.
func TestRepair(t *testing.T) {
	within(t, func() {
		repair := func(want bool, left int) {
			t.Helper()
			if removed, err := Repair(); removed != want || err != nil {
				t.Errorf("removed %v, %v", removed, err)
			}
			if n := marked(t); n != left {
				t.Errorf("%d rules, want %d", n, left)
			}
		}
		repair(false, 0)
		for _, r := range rules() {
			if err := netlink.RuleAdd(r); err != nil {
				t.Error(err)
			}
		}
		repair(true, 0)
		c, err := Open(options(new(atomic.Int32)))
		if err != nil {
			t.Error(err)
			return
		}
		repair(false, 2)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPrepare(t *testing.T) {
	within(t, func() {
		var asked atomic.Int32
		c, err := Open(options(&asked))
		if err != nil {
			t.Error(err)
			return
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		ipip := nat.Tunnel{Kind: nat.IPIP}
		for _, row := range []struct {
			name, network   string
			domain, kind    int
			tunnel          nat.Tunnel
			backend, source netip.Addr
			from            netip.Addr // where packets come from
			want            string     // the error
		}{
			{"a neighbour", "tcp4", unix.AF_INET, unix.SOCK_STREAM, nat.Tunnel{}, neighbour, netip.Addr{}, own4, ""},
			{"udp by a tunnel", "udp4", unix.AF_INET, unix.SOCK_DGRAM, ipip, beyond, netip.Addr{}, own4, ""},
			{"IPv6 in IPv4", "tcp6", unix.AF_INET6, unix.SOCK_STREAM, ipip, beyond, netip.Addr{}, own6, ""},
			{"a source of its own", "tcp4", unix.AF_INET, unix.SOCK_STREAM, ipip, beyond, netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.9"), ""},
			{"ping", "ip4:icmp", unix.AF_INET, unix.SOCK_RAW, ipip, beyond, netip.Addr{}, own4, ""},
			{"no address of the family", "tcp6", unix.AF_INET6, unix.SOCK_STREAM, nat.Tunnel{}, neighbour, netip.Addr{}, netip.Addr{}, "no address of the VIP's family"},
			{"not a host's source", "tcp4", unix.AF_INET, unix.SOCK_STREAM, ipip, beyond, netip.MustParseAddr("192.0.2.1"), netip.Addr{}, "binding to 192.0.2.1: cannot assign"},
			{"no neighbour", "tcp4", unix.AF_INET, unix.SOCK_STREAM, nat.Tunnel{}, beyond, netip.Addr{}, netip.Addr{}, "10.9.0.1 is no neighbour"},
			{"no route", "tcp4", unix.AF_INET, unix.SOCK_STREAM, ipip, netip.MustParseAddr("10.77.0.1"), netip.Addr{}, netip.Addr{}, "no way to 10.77.0.1: no_route"},
			{"nobody answers", "tcp4", unix.AF_INET, unix.SOCK_STREAM, ipip, unknown, netip.Addr{}, netip.Addr{}, "no way to 10.0.1.21: unresolved"},
		} {
			fd, err := unix.Socket(row.domain, row.kind|unix.SOCK_CLOEXEC, map[bool]int{true: unix.IPPROTO_ICMP}[row.kind == unix.SOCK_RAW])
			if err != nil {
				t.Error(err)
				return
			}
			p := c.Path(row.tunnel, row.backend, row.source)
			err = p.Prepare(row.network, fd, 4711)
			switch {
			case row.want != "":
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("%s: %v, want %q", row.name, err, row.want)
				}
			case err != nil:
				t.Errorf("%s: %v", row.name, err)
			default:
				port, err := boundPort(fd)
				if row.kind == unix.SOCK_RAW {
					port = 4711
				}
				if got := c.flows[source{netip.AddrPortFrom(row.from, port), protocolOf(row.network)}]; err != nil || got != p {
					t.Errorf("%s: %v; noted are %v", row.name, err, c.flows)
				}
				if m, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || m != Mark {
					t.Errorf("%s: mark %x, %v", row.name, m, err)
				}
			}
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
		if asked.Load() == 0 {
			t.Error("nobody asked for the MAC address that is not known")
		}
	})
}

// built is an IP packet.
func built(t *testing.T, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, l...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSourceOf(t *testing.T) {
	a4, a6 := net.IP{10, 0, 0, 1}, net.ParseIP("2001:db8::1")
	ip4 := func(p layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: a4, DstIP: net.IP{192, 0, 2, 10}}
	}
	ip6 := func(p layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p, SrcIP: a6, DstIP: net.ParseIP("2001:db8::10")}
	}
	tcp, udp := &layers.TCP{SrcPort: 1234, DstPort: 80}, &layers.UDP{SrcPort: 1235, DstPort: 53}
	for _, row := range []struct {
		name string
		ip   []byte
		want string
	}{
		{"tcp4", built(t, ip4(6), tcp), "10.0.0.1:1234/6"},
		{"udp4", built(t, ip4(17), udp), "10.0.0.1:1235/17"},
		{"tcp6", built(t, ip6(6), tcp), "[2001:db8::1]:1234/6"},
		{"udp6", built(t, ip6(17), udp), "[2001:db8::1]:1235/17"},
		{"ping4", built(t, ip4(1), &layers.ICMPv4{TypeCode: 8 << 8, Id: 4711}), "10.0.0.1:4711/1"},
		{"ping6", built(t, ip6(58), &layers.ICMPv6{TypeCode: 128 << 8}, &layers.ICMPv6Echo{Identifier: 4712}), "[2001:db8::1]:4712/58"},
		{"another protocol", built(t, ip4(47), gopacket.Payload(make([]byte, 20))), ""},
		{"hop-by-hop options", built(t, ip6(0), gopacket.Payload(make([]byte, 20))), ""},
		{"cut off", built(t, ip4(6), tcp)[:24], ""},
		{"nothing", nil, ""},
	} {
		s, ok := sourceOf(row.ip)
		got := ""
		if ok {
			got = fmt.Sprintf("%v/%d", s.addr, s.proto)
		}
		if got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

// What leaves is the packet itself behind what the table and the tunnel say, as
// gopacket reads it.
func TestWrap(t *testing.T) {
	inner := built(t, &layers.IPv4{Version: 4, TTL: 64, Protocol: 6, SrcIP: net.IP{127, 0, 0, 5}, DstIP: net.IP{192, 0, 2, 10}}, &layers.TCP{SrcPort: 1234, DstPort: 80})
	from, _ := sourceOf(inner)
	c := &Carrier{opt: options(new(atomic.Int32))}
	for _, row := range []struct {
		name    string
		tunnel  nat.Tunnel
		backend netip.Addr
		port    uint16
		layers  string
	}{
		{"neighbour", nat.Tunnel{}, neighbour, 0, "Ethernet IPv4 TCP"},
		{"ipip, tagged", nat.Tunnel{Kind: nat.IPIP}, beyond, 1, "Ethernet Dot1Q IPv4 IPv4 TCP"},
		{"vxlan, tagged", nat.Tunnel{Kind: nat.VXLAN, Port: 4789, VNI: 7, MAC: mac2}, beyond, 1, "Ethernet Dot1Q IPv4 UDP VXLAN Ethernet IPv4 TCP"},
	} {
		buf := append(make([]byte, room), inner...)
		frame, port, ok := c.Path(row.tunnel, row.backend, netip.Addr{}).wrap(table(), buf, len(buf), from)
		if !ok || port != row.port {
			t.Errorf("%s: port %d, %v", row.name, port, ok)
			continue
		}
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		var got []string
		for _, l := range p.Layers() {
			got = append(got, l.LayerType().String())
		}
		if s := strings.Join(got, " "); s != row.layers {
			t.Errorf("%s: %s, want %s", row.name, s, row.layers)
		}
		eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		if [6]byte(eth.DstMAC) != mac2 || [6]byte(eth.SrcMAC) != mac1 {
			t.Errorf("%s: from %v to %v", row.name, eth.SrcMAC, eth.DstMAC)
		}
		if ip, _ := p.NetworkLayer().(*layers.IPv4); row.tunnel.Kind != nat.NoTunnel && (ip == nil || ip.SrcIP.String() != own4.String() || ip.DstIP.String() != beyond.String()) {
			t.Errorf("%s: outer header %v", row.name, ip)
		}
		if !strings.HasSuffix(string(frame), string(inner)) {
			t.Errorf("%s: the packet is another", row.name)
		}
	}
	if _, _, ok := c.Path(nat.Tunnel{}, unknown, netip.Addr{}).wrap(table(), append(make([]byte, room), inner...), room+len(inner), from); ok {
		t.Error("sent to nobody knows whom")
	}
}

// Whatever the kernel sends by the device, nothing panics.
func FuzzCarry(f *testing.F) {
	f.Add([]byte{0x45})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 58, 64}, make([]byte, 40)...))
	c := &Carrier{opt: options(new(atomic.Int32)), flows: map[source]*Path{}}
	p := c.Path(nat.Tunnel{Kind: nat.GUE, Port: 6080}, beyond, netip.Addr{})
	f.Fuzz(func(_ *testing.T, ip []byte) {
		ip = ip[:min(len(ip), 65536)]
		if from, ok := sourceOf(ip); ok {
			c.flows = map[source]*Path{from: p}
		}
		buf := make([]byte, room+65536)
		c.carry(buf, room+copy(buf[room:], ip))
	})
}

package rs

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// patience bounds a wait on a busy machine.
const patience = 20 * time.Second

// Addresses of the network of hand-made connections. The balancer's and the
// stranger's are no kernel's, so nobody resets what is made by hand.
var (
	serverNet = map[testbed.Family]netip.Prefix{
		testbed.V4: netip.MustParsePrefix("10.0.1.20/24"), testbed.V6: netip.MustParsePrefix("2001:db8:1::20/64"),
	}
	balancer = map[testbed.Family]netip.Addr{
		testbed.V4: netip.MustParseAddr("10.0.1.10"), testbed.V6: netip.MustParseAddr("2001:db8:1::10"),
	}
	stranger = map[testbed.Family]netip.Addr{
		testbed.V4: netip.MustParseAddr("10.0.1.66"), testbed.V6: netip.MustParseAddr("2001:db8:1::66"),
	}
	balancers = []netip.Prefix{netip.MustParsePrefix("10.0.1.8/30"), netip.MustParsePrefix("2001:db8:1::10/128")}
)

// network is a server's kernel and a wire to it that is written and read by hand.
type network struct {
	t      *testing.T
	server *testbed.Namespace
	wire   *testbed.Device // our end
	out    int             // packet socket at it: to close one takes long, so not Device.Inject
	to     net.HardwareAddr

	mu   sync.Mutex
	port uint16
	udp  chan gopacket.Packet                // the server's datagrams
	from map[netip.AddrPort]chan *layers.TCP // by our address and port
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, port: 20000, from: make(map[netip.AddrPort]chan *layers.TCP), udp: make(chan gopacket.Packet, 256)}
	space := func(role string) *testbed.Namespace {
		ns, err := testbed.NewNamespace(role)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { noError(t, ns.Close()) })
		return ns
	}
	n.server = space("rs")
	ours := space("hand")
	wire, s0, err := testbed.Veth(ours, "h0", n.server, "s0", testbed.VethOptions{AddrsB: []netip.Prefix{serverNet[testbed.V4], serverNet[testbed.V6]}})
	if err != nil {
		t.Fatal(err)
	}
	n.wire, n.to = wire, s0.MAC
	for _, f := range testbed.Families {
		noError(t, s0.AddNeighbour(balancer[f], wire.MAC))
		noError(t, s0.AddNeighbour(stranger[f], wire.MAC))
	}
	must(t, ours.Do(func() (err error) {
		n.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { noError(t, unix.Close(n.out)) })
	ear, err := ours.Sniff("h0", testbed.SnifferOptions{Direction: testbed.Incoming, Watch: n.watch})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := ear.Stop()
		noError(t, err)
	})
	return n
}

// watch hands segments of the server to whom they are for, and its datagrams to udp.
func (n *network) watch(frame []byte, _ bool) {
	p := gopacket.NewPacket(append([]byte(nil), frame...), layers.LayerTypeEthernet, gopacket.NoCopy)
	tcp, ok := p.TransportLayer().(*layers.TCP)
	if _, udp := p.TransportLayer().(*layers.UDP); udp {
		select {
		case n.udp <- p:
		default: // more than any test looks at
		}
	}
	if !ok {
		return
	}
	dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
	n.mu.Lock()
	c := n.from[netip.AddrPortFrom(dst, uint16(tcp.DstPort))]
	n.mu.Unlock()
	if c != nil {
		select {
		case c <- tcp:
		default: // more than any test looks at
		}
	}
}

// hand is a connection made by hand.
type hand struct {
	n        *network
	src, dst netip.AddrPort
	in       chan *layers.TCP
	seq, ack uint32 // the next of ours, and of the server's
}

// begin sends a SYN with options and waits for the SYN-ACK.
func (n *network) begin(from netip.Addr, to netip.AddrPort, options []byte) *hand {
	n.t.Helper()
	return n.beginWith(from, to, options, nil)
}

// beginWith is begin with data on the SYN.
func (n *network) beginWith(from netip.Addr, to netip.AddrPort, options, data []byte) *hand {
	n.t.Helper()
	n.mu.Lock()
	n.port++
	h := &hand{n: n, src: netip.AddrPortFrom(from, n.port), dst: to, in: make(chan *layers.TCP, 256), seq: rand.Uint32()}
	n.from[h.src] = h.in
	n.mu.Unlock()
	h.send("S", options, data)
	h.seq++
	a := h.await("a SYN-ACK", func(s *layers.TCP) bool { return s.SYN && s.ACK })
	h.ack = a.Seq + 1
	return h
}

// send sends a segment: S a SYN, A an ACK, R a RST. options are padded with NOPs.
func (h *hand) send(flags string, options, data []byte) {
	h.n.t.Helper()
	options = append([]byte(nil), options...)
	for len(options)%4 != 0 {
		options = append(options, 1)
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(h.src.Port()), DstPort: layers.TCPPort(h.dst.Port()), Seq: h.seq, Window: 65535, Padding: options}
	switch flags {
	case "S":
		tcp.SYN = true
	case "R":
		tcp.RST = true
	default:
		tcp.ACK, tcp.Ack, tcp.PSH = true, h.ack, len(data) > 0
	}
	frame, err := serialize(h.n.wire.MAC, h.n.to, h.src.Addr(), h.dst.Addr(), tcp, gopacket.Payload(data))
	if err != nil {
		h.n.t.Fatal(err)
	}
	h.n.put(frame)
	h.seq += uint32(len(data))
}

// put sends a frame to the server.
func (n *network) put(frame []byte) {
	n.t.Helper()
	must(n.t, unix.Sendto(n.out, frame, 0, &unix.SockaddrLinklayer{Ifindex: n.wire.Index, Halen: 6}))
}

// await waits for a segment of the server.
func (h *hand) await(what string, is func(*layers.TCP) bool) *layers.TCP {
	h.n.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case s := <-h.in:
			if is(s) {
				return s
			}
		case <-limit:
			h.n.t.Fatalf("no %s from %s", what, h.dst)
		}
	}
}

// serialize builds a frame of Ethernet, IP, TCP and data.
func serialize(src, dst net.HardwareAddr, from, to netip.Addr, tcp *layers.TCP, rest ...gopacket.SerializableLayer) ([]byte, error) {
	eth := &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	if from.Is4() {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		noLayer := tcp.SetNetworkLayerForChecksum(l)
		if noLayer != nil {
			return nil, noLayer
		}
		ip = l
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		if err := tcp.SetNetworkLayerForChecksum(l); err != nil {
			return nil, err
		}
		ip = l
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		append([]gopacket.SerializableLayer{eth, ip, tcp}, rest...)...)
	return b.Bytes(), err
}

// peerOf asks the kernel for the peer of a connection, as any program would.
func peerOf(t *testing.T, c net.Conn) netip.AddrPort {
	t.Helper()
	var sa unix.Sockaddr
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		var asked error
		err = raw.Control(func(fd uintptr) { sa, asked = unix.Getpeername(int(fd)) })
		err = errors.Join(err, asked)
	}
	if err != nil {
		t.Fatal(err)
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	t.Fatalf("peer %T", sa)
	return netip.AddrPort{}
}

// remote is what accept returned.
func remote(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

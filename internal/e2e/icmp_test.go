package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Ports of UDP services: nobody listens on the first.
const (
	portClosed = 9400
	portTalk   = 9401
)

// witness notes what a host sends by TCP and UDP and the ICMP errors it gets.
type witness struct {
	mu     sync.Mutex
	sent   [][]byte // from the IP header on
	errors [][]byte
}

func (w *witness) watch(frame []byte, outgoing bool) {
	if len(frame) < ethernet {
		return
	}
	d, ok := datagramOf(frame[ethernet:])
	if !ok {
		return
	}
	ip := bytes.Clone(frame[ethernet : ethernet+d.size]) // no padding
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, isError := errorOf(d); isError && !outgoing {
		w.errors = append(w.errors, ip)
	} else if outgoing && (d.proto == protoTCP || d.proto == protoUDP) {
		w.sent = append(w.sent, ip)
	}
}

// decoded is gopacket's view of an IP packet.
func decoded(ip []byte) gopacket.Packet {
	first := layers.LayerTypeIPv4
	if ip[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(ip, first, gopacket.Default)
}

// quoted is what must be the same in a packet and in an error about it: all but
// what routers change on the way (TTL, header checksum) and what a change of
// family loses (identification, flow label).
type quoted struct {
	Src, Dst     string
	Length       uint16 // as the IP header says
	TrafficClass uint8
	Transport    []byte // the header, its checksum included
}

// quotedOf takes it out of a packet. data is what follows the transport header.
func quotedOf(p gopacket.Packet) (q quoted, data []byte) {
	switch l := p.NetworkLayer().(type) {
	case *layers.IPv4:
		q = quoted{Src: l.SrcIP.String(), Dst: l.DstIP.String(), Length: l.Length - uint16(l.IHL)*4, TrafficClass: l.TOS}
	case *layers.IPv6:
		q = quoted{Src: l.SrcIP.String(), Dst: l.DstIP.String(), Length: l.Length, TrafficClass: l.TrafficClass}
	}
	if l := p.TransportLayer(); l != nil {
		q.Transport, data = l.LayerContents(), l.LayerPayload()
		if tcp, ok := l.(*layers.TCP); ok && tcp.SYN {
			q.Transport = q.Transport[:8] // up to the sequence number: its options are not what was sent
		}
	}
	return q, data
}

// told waits for an error about a packet from self to peer, and judges it: from
// whom it is, of what type, and whether the host has sent the packet it quotes.
func (w *witness) told(self, peer netip.AddrPort, from netip.Addr, want layers.ICMPv4TypeCode, want6 layers.ICMPv6TypeCode) error {
	var ip []byte
	for deadline := time.Now().Add(limit); ip == nil; time.Sleep(5 * time.Millisecond) {
		if ip = w.about(self, peer); ip == nil && time.Now().After(deadline) {
			return fmt.Errorf("%s has not been told of its packet to %s", self, peer)
		}
	}
	p := decoded(ip)
	outer, _ := quotedOf(p)
	if outer.Src != from.String() || outer.Dst != self.Addr().String() {
		return fmt.Errorf("told by %s, want %s", outer.Src, from)
	}
	var inner []byte
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && l.TypeCode == want {
		inner = l.Payload
	}
	if l, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && l.TypeCode == want6 {
		inner = l.Payload[4:] // unused
	}
	if inner == nil {
		return fmt.Errorf("want %s or %s:\n%s", want, want6, p)
	}
	got, data := quotedOf(decoded(inner))
	nearest := "it has sent none"
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ip := range w.sent {
		was, payload := quotedOf(decoded(ip))
		diff := cmp.Diff(was, got)
		if diff == "" && bytes.HasPrefix(payload, data) {
			return nil
		}
		if was.Dst == got.Dst && len(was.Transport) >= 4 && bytes.HasPrefix(got.Transport, was.Transport[:4]) {
			nearest = diff
		}
	}
	return fmt.Errorf("%s has never sent the packet it is told of (-sent +quoted):\n%s", self, nearest)
}

// about is an error about a packet from self to peer.
func (w *witness) about(self, peer netip.AddrPort) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ip := range w.errors {
		if d, ok := datagramOf(ip); ok {
			if e, ok := errorOf(d); ok && e.about.src == self && e.about.dst == peer {
				return ip
			}
		}
	}
	return nil
}

// closeRoad has the router say that its host is unreachable, until openRoad.
func (rt *router) closeRoad() {
	rt.r.t.Helper()
	for _, f := range testbed.Families {
		dst := prefixNet(whole(rt.addrs[f]))
		nl := rt.ns.Netlink()
		if err := nl.RouteDel(&netlink.Route{LinkIndex: rt.inner.Index, Dst: dst}); err != nil {
			rt.r.t.Fatal(err)
		}
		if err := nl.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
			rt.r.t.Fatal(err)
		}
	}
}

// openRoad undoes it.
func (rt *router) openRoad() {
	rt.r.t.Helper()
	for _, f := range testbed.Families {
		if err := rt.ns.Netlink().RouteDel(&netlink.Route{Dst: prefixNet(whole(rt.addrs[f])), Type: unix.RTN_UNREACHABLE}); err != nil {
			rt.r.t.Fatal(err)
		}
	}
	rt.narrowHost(0)
}

// wantsErrors has a socket hear of ICMP errors.
func wantsErrors(c interface {
	SyscallConn() (syscall.RawConn, error)
}, f testbed.Family) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1); f == testbed.V6 {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
	return errors.Join(err, set)
}

// TestICMPErrors: what a kernel or a router on one side says of a packet arrives
// on the other as an error about the very packet that host has sent, and its
// kernel believes it.
func TestICMPErrors(t *testing.T) {
	r, client, server := routed(t, 2, testbed.SnifferOptions{})
	at := [2]*witness{{}, {}} // the client, the server
	for i, host := range []*testbed.Device{client.host, server.host} {
		sniff(t, host.NS, host.Name, testbed.SnifferOptions{Watch: at[i].watch})
		for _, key := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
			if err := host.NS.Sysctl(key, "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := append(r.allKinds(1, 0), r.pairServices()...)
	for _, k := range kinds {
		for _, port := range []uint16{portClosed, portTalk} {
			s := r.service(k, fmt.Sprint(port), port, port)
			s.Protocol, s.ClientAddress, s.Weights = "udp", "", []int{1, 0}
			all = append(all, s)
		}
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	before := d.stats()
	for _, k := range kinds {
		t.Run(k.String()+"/udp", func(t *testing.T) {
			if err := r.closedPort(k, at[0]); err != nil {
				t.Errorf("server's port: %v", err)
			}
			if err := r.clientGone(k, at[1]); err != nil {
				t.Errorf("client's port: %v", err)
			}
		})
	}
	t.Run("tcp/server unreachable", func(t *testing.T) { r.cutOff(t, server, at[0], true) })
	t.Run("tcp/client unreachable", func(t *testing.T) { r.cutOff(t, client, at[1], false) })
	lossless(t, d, before)
	d.stop()
}

// Port unreachable, and a host or network that is.
var (
	noPort4 = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)
	noPort6 = layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)
	noHost4 = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeHost)
	noHost6 = layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodeNoRouteToDst)
)

// refusedPort waits for a UDP socket to hear that nobody listens at its peer.
func refusedPort(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w, want %w", err, unix.ECONNREFUSED)
	}
	return nil
}

// closedPort has a client ask where the server does not listen.
func (r *rig) closedPort(k kind, at *witness) error {
	to := r.vip(k.client, k.vip, portClosed)
	c, err := r.Client.Dialer(limit).Dial("udp", to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("is anybody there?")); err != nil {
		return err
	}
	if err := refusedPort(c); err != nil {
		return err
	}
	return at.told(udpSelf(c), to, to.Addr(), noPort4, noPort6)
}

// udpSelf is a UDP socket's own end.
func udpSelf(c net.Conn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// clientGone has a server answer a client that has closed its socket.
func (r *rig) clientGone(k kind, at *witness) error {
	self := netip.AddrPortFrom(r.ServerAddr(k.server, 0), portTalk)
	l, err := r.Topology.Servers[0].ListenPacket("udp", self.String())
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	c, err := r.Client.Dialer(limit).Dial("udp", r.vip(k.client, k.vip, portTalk).String())
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("I shall not wait for the answer"))
	if err := errors.Join(err, l.SetReadDeadline(time.Now().Add(limit))); err != nil {
		return errors.Join(err, c.Close())
	}
	_, from, err := l.(*net.UDPConn).ReadFromUDPAddrPort(make([]byte, 100))
	if err := errors.Join(err, c.Close(), l.Close()); err != nil {
		return err
	}
	d := r.Topology.Servers[0].Dialer(limit)
	d.LocalAddr = net.UDPAddrFromAddrPort(self)
	peer := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	answer, err := d.Dial("udp", peer.String())
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	if _, err := answer.Write([]byte("too late")); err != nil {
		return err
	}
	if err := refusedPort(answer); err != nil {
		return err
	}
	teller := peer.Addr()
	if k.mode == dnat { // the client itself
		teller = r.ClientAddr(k.client, 0)
	}
	return at.told(self, peer, teller, noPort4, noPort6)
}

// cutOff makes one host unreachable. The others' ends of connections of every
// kind hear of it when they send, and go on when it is back. at is their host.
func (r *rig) cutOff(t *testing.T, rt *router, at *witness, isServer bool) {
	type end struct {
		kind
		speaks, hears net.Conn
	}
	var all []end
	for _, k := range pairKinds {
		p := r.connect(k)
		e := end{k, p.server, p.client}
		f := k.server
		if isServer {
			e, f = end{k, p.client, p.server}, k.client
		}
		if err := errors.Join(p.settle(), wantsErrors(e.speaks.(*net.TCPConn), f)); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	rt.closeRoad()
	const what = "can you hear me?"
	for _, e := range all {
		if _, err := e.speaks.Write([]byte(what)); err != nil {
			t.Fatalf("%s: %v", e, err)
		}
	}
	for _, e := range all {
		want := error(unix.EHOSTUNREACH)
		if self := endsOf(e.speaks).self; self.Addr().Is6() {
			want = unix.ENETUNREACH
		}
		if err := read(e.speaks, time.Now().Add(limit)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", e, err, want)
		}
		ends := endsOf(e.speaks)
		teller := ends.peer.Addr()
		if e.mode == dnat && !isServer {
			teller = lastByte(testbed.ClientNet[e.client].Addr(), 254) // the router
		}
		if err := at.told(ends.self, ends.peer, teller, noHost4, noHost6); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
	if isServer {
		r.cannotConnect(t, at)
	}
	rt.openRoad()
	for _, e := range all {
		in := make([]byte, len(what))
		err := e.hears.SetReadDeadline(time.Now().Add(limit))
		if err == nil {
			_, err = io.ReadFull(e.hears, in)
		}
		if err != nil || string(in) != what {
			t.Errorf("%s: %q arrives later, %v", e, in, err)
		}
	}
}

// cannotConnect: the SYN too is known again.
func (r *rig) cannotConnect(t *testing.T, at *witness) {
	for i, k := range pairKinds {
		want := error(unix.EHOSTUNREACH)
		if k.client == testbed.V6 {
			want = unix.ENETUNREACH
		}
		self, to := netip.AddrPortFrom(r.ClientAddr(k.client, 0), uint16(21000+i)), r.vip(k.client, k.vip, portPair)
		d := r.Client.Dialer(limit)
		d.LocalAddr = net.TCPAddrFromAddrPort(self)
		c, err := d.Dial("tcp", to.String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: connect: %v, want %v", k, err, want)
		} else if err := at.told(self, to, to.Addr(), noHost4, noHost6); err != nil {
			t.Errorf("%s: connect: %v", k, err)
		}
	}
}

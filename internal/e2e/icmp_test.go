package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
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
	}
	return q, data
}

// asSent is what stays of it, and of the data, if l4fwd has added to the packet.
func (q quoted) asSent() (quoted, []byte) {
	return quoted{Src: q.Src, Dst: q.Dst, TrafficClass: q.TrafficClass, Transport: q.Transport[:8]}, nil
}

// told waits for an error about a packet from self to peer, and judges it: from
// whom it is, of what type, and whether the host has sent the packet it quotes.
// changed is for packets that l4fwd has changed beyond addresses and numbers: the
// quotation is compared up to the sequence number, which is as much as RFC 792
// promises.
func (w *witness) told(self, peer netip.AddrPort, from netip.Addr, want layers.ICMPv4TypeCode, want6 layers.ICMPv6TypeCode, changed bool) error {
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
	if changed {
		got, data = got.asSent()
	}
	nearest := "it has sent none"
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ip := range w.sent {
		was, payload := quotedOf(decoded(ip))
		if changed {
			was, payload = was.asSent()
		}
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

// closeRoad has the router say that its host is unreachable, until openRoad: by
// a route in IPv6. In IPv4 the host's MAC address cannot be found out, since a
// kernel answers only a few packets for which a route says so, then one a second.
func (rt *router) closeRoad() {
	rt.r.t.Helper()
	nl := rt.ns.Netlink()
	dst := prefixNet(whole(rt.addrs[testbed.V6]))
	errs := []error{
		nl.RouteDel(&netlink.Route{LinkIndex: rt.inner.Index, Dst: dst}),
		nl.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}),
		rt.host.NS.Sysctl("net.ipv4.conf.x0.arp_ignore", "8"),
	}
	for key, value := range map[string]string{"mcast_solicit": "1", "ucast_solicit": "0", "retrans_time_ms": "10"} {
		errs = append(errs, rt.ns.Sysctl("net.ipv4.neigh.r1."+key, value))
	}
	if err := errors.Join(append(errs, nl.NeighDel(rt.neighbour()))...); err != nil {
		rt.r.t.Fatal(err)
	}
}

// neighbour is the host as the router knows it.
func (rt *router) neighbour() *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: rt.inner.Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: rt.host.Addr(testbed.V4).AsSlice(), HardwareAddr: rt.host.MAC}
}

// openRoad undoes it.
func (rt *router) openRoad() {
	rt.r.t.Helper()
	nl := rt.ns.Netlink()
	dst := prefixNet(whole(rt.addrs[testbed.V6]))
	if err := errors.Join(nl.RouteDel(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}), nl.NeighSet(rt.neighbour())); err != nil {
		rt.r.t.Fatal(err)
	}
	rt.narrowHost(0)
}

// wantsErrors has a TCP socket hear of ICMP errors, or no more, not even of one
// that has come.
func wantsErrors(c net.Conn, f testbed.Family, wants int) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set, cleared error
	err = raw.Control(func(fd uintptr) {
		if set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, wants); f == testbed.V6 {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, wants)
		}
		_, cleared = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	})
	return errors.Join(err, set, cleared)
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
	for _, k := range proxyKinds[:3] {
		s := r.service(k, "greet", portGreetsAfter, portGreetsAfter)
		s.Weights = []int{1, 0}
		all = append(all, s)
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(all))
	r.warmUp(1, 0)
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
	t.Run("tcp/header under way", func(t *testing.T) { r.cutHeader(t, server, at[0]) })
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
	return at.told(udpSelf(c), to, to.Addr(), noPort4, noPort6, false)
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
	return at.told(self, peer, teller, noPort4, noPort6, false)
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
		if err := errors.Join(p.settle(), wantsErrors(e.speaks, f, 1)); err != nil {
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
		if err := at.told(ends.self, ends.peer, teller, noHost4, noHost6, false); err != nil {
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
		} else if err := at.told(self, to, to.Addr(), noHost4, noHost6, true); err != nil {
			t.Errorf("%s: connect: %v", k, err)
		}
	}
}

// cutHeader has clients hear of packets that carry a PROXY header, or come behind
// one that the server has not got, and of which they know nothing.
func (r *rig) cutHeader(t *testing.T, rt *router, at *witness) {
	g := r.greeters()
	g.deafen(t, true)
	var all []*call
	for _, k := range proxyKinds[:3] {
		c, err := r.call(k, portGreetsAfter)
		if err == nil {
			err = wantsErrors(c.Conn, k.client, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	rt.closeRoad()
	said := strings.Repeat("x", 2000) + "\n" // more than one segment
	unreachable := func(err error) bool { return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) }
	for _, c := range all {
		_, err := c.Write([]byte(said))
		if unreachable(err) { // of the handshake's last segment
			_, err = c.Write([]byte(said))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range all {
		self := endsOf(c.Conn).self
		if err := read(c, time.Now().Add(limit)); !unreachable(err) {
			t.Errorf("%s: %v, want to hear of a router", self, err)
		}
		for told := make(map[uint32]bool); len(told) < 2; { // where the header is, and behind it
			if err := at.told(self, c.to, c.to.Addr(), noHost4, noHost6, true); err != nil {
				t.Errorf("%s, told of %d sequence numbers: %v", self, len(told), err)
				break
			}
			told[at.forget(self, c.to)] = true
		}
	}
	for _, c := range all {
		if err := wantsErrors(c.Conn, testbed.FamilyOf(c.to.Addr()), 0); err != nil {
			t.Error(err)
		}
	}
	g.deafen(t, false)
	rt.openRoad()
	for _, c := range all {
		err := errors.Join(c.SetDeadline(time.Now().Add(limit)), c.greeted())
		if err == nil {
			err = c.answered(said)
		}
		if err := errors.Join(err, c.Close()); err != nil {
			t.Error(err)
		}
	}
}

// forget drops the error that about would find, and returns the sequence number
// that it quotes.
func (w *witness) forget(self, peer netip.AddrPort) (seq uint32) {
	found := w.about(self, peer)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errors = slices.DeleteFunc(w.errors, func(ip []byte) bool { return bytes.Equal(ip, found) })
	d, _ := datagramOf(found)
	inner, _ := datagramOf(d.l4[8:])
	return binary.BigEndian.Uint32(inner.l4[4:])
}

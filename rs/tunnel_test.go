package rs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// tunneller is a balancer that tunnels: what a client sends into its device comes
// out at the other end of a wire in a tunnel. Answers go straight to the client.
type tunneller struct {
	t    *testing.T
	tun  *os.File
	wire *testbed.Device
	out  int // packet socket at the wire: to close one takes long, so not Device.Inject
	to   form

	mu   sync.Mutex
	sent map[string]uint64 // frames for VIPs by the program's counter, of one program
}

// newTunneller makes device t0 in the wire's namespace and sends to the VIPs into it.
func newTunneller(t *testing.T, wire *testbed.Device) *tunneller {
	t.Helper()
	x := &tunneller{t: t, wire: wire, sent: make(map[string]uint64)}
	fd := -1
	err := wire.NS.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		r, err := unix.NewIfreq("t0")
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		x.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return errors.Join(err, unix.IoctlIfreq(fd, unix.TUNSETIFF, r))
	})
	must(t, err)
	x.tun = os.NewFile(uintptr(fd), "t0")
	nl := wire.NS.Netlink()
	link, err := nl.LinkByName("t0")
	must(t, err)
	must(t, nl.LinkSetMTU(link, 1400)) // what is around a packet has room
	must(t, nl.LinkSetUp(link))
	dev := &testbed.Device{NS: wire.NS, Name: "t0", Index: link.Attrs().Index, Addrs: wire.Addrs}
	for _, f := range testbed.Families {
		must(t, dev.AddRoute(netip.PrefixFrom(vips[f], vips[f].BitLen()), netip.Addr{}))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.run()
	}()
	t.Cleanup(func() {
		must(t, x.tun.Close())
		<-done
		must(t, unix.Close(x.out))
	})
	return x
}

// run wraps what comes until the device is closed.
func (x *tunneller) run() {
	b := make([]byte, 2048)
	for {
		n, err := x.tun.Read(b)
		if err != nil {
			return
		}
		x.send(b[:n])
	}
}

// send wraps a packet. A connection's last segments come when they like, also after
// its test: which tunnel each took is settled, counted and sent in one.
func (x *tunneller) send(b []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.to
	if f.by == "" { // between two programs
		return
	}
	f.inner = testbed.V4
	dst, _ := netip.AddrFromSlice(b[16:20])
	if b[0]>>4 == 6 {
		f.inner = testbed.V6
		dst, _ = netip.AddrFromSlice(b[24:40])
	}
	if dst == vips[f.inner] { // else it is the device's own multicast
		x.sent[f.counter()]++
	}
	if err := unix.Sendto(x.out, f.around(x.t, b), 0, &unix.SockaddrLinklayer{Ifindex: x.wire.Index, Halen: 6}); err != nil {
		x.t.Error(err)
	}
}

// use makes it wrap in another way.
func (x *tunneller) use(f form) {
	x.mu.Lock()
	x.to = f
	x.mu.Unlock()
}

// arrived waits until the program has counted each frame as what it was sent as.
func (x *tunneller) arrived(t *testing.T, d *Decap, start []Count) {
	t.Helper()
	until(t, "all frames to be unwrapped", func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return maps.Equal(d.counted(t, start), x.sent)
	})
}

// TestTunnels: real TCP and UDP through each kind of tunnel, both families in both,
// in native and generic XDP.
func TestTunnels(t *testing.T) {
	space := func(role string) *testbed.Namespace {
		ns, err := testbed.NewNamespace(role)
		must(t, err)
		t.Cleanup(func() { must(t, ns.Close()) })
		return ns
	}
	client, server := space("client"), space("rs")
	ours := []netip.Prefix{netip.MustParsePrefix("10.0.1.100/24"), netip.MustParsePrefix("2001:db8:1::100/64")}
	c0, s0, err := testbed.Veth(client, "c0", server, "s0", testbed.VethOptions{AddrsA: ours, AddrsB: []netip.Prefix{serverNet[testbed.V4], serverNet[testbed.V6]}, StaticNeighbours: true})
	must(t, err)
	lo := &testbed.Device{NS: server, Name: "lo", Index: 1}
	for _, f := range testbed.Families {
		must(t, lo.AddAddr(netip.PrefixFrom(vips[f], vips[f].BitLen())))
	}
	srv, err := testbed.StartServer(server, testbed.ServerOptions{Addrs: []netip.Addr{vips[testbed.V4], vips[testbed.V6]}})
	must(t, err)
	t.Cleanup(func() { must(t, srv.Close()) })
	x := newTunneller(t, c0)
	for _, mode := range []steer.Mode{steer.Native, steer.Generic} {
		o := tunnels
		o.Mode = mode
		var d *Decap
		must(t, server.Do(func() (err error) {
			d, err = AttachDecap(o)
			return err
		}))
		start, err := d.Stats()
		must(t, err)
		for _, f := range forms() {
			if mode == steer.Generic && f.outer != f.inner {
				continue
			}
			f.src, f.dst, f.mac = balancer[f.outer], s0.Addr(f.outer), s0.MAC
			t.Run(mode.String()+"/"+f.String(), func(t *testing.T) { x.try(t, d, start, f, client) })
		}
		x.use(form{})
		x.arrived(t, d, start)
		must(t, d.Close())
		x.mu.Lock()
		clear(x.sent)
		x.mu.Unlock()
	}
}

// try sends through one kind of tunnel.
func (x *tunneller) try(t *testing.T, d *Decap, start []Count, f form, client *testbed.Namespace) {
	x.use(f)
	vip := vips[f.inner]
	load := testbed.HTTPLoad{To: netip.AddrPortFrom(vip, testbed.PortHTTP), Requests: 5, Timeout: patience}
	if r, err := load.Run(t.Context(), client); err != nil || r.OK != 5 || r.ByRemote[x.wire.Addr(f.inner)] != 5 {
		t.Errorf("HTTP: %v %+v", err, r)
	}
	tr := testbed.Transfer{To: netip.AddrPortFrom(vip, testbed.PortHash), Up: 300_000, Down: 300_000, Seed: 1}
	if _, err := tr.Run(t.Context(), client); err != nil {
		t.Errorf("transfer: %v", err)
	}
	e := testbed.Echo{To: netip.AddrPortFrom(vip, testbed.PortEcho), Sockets: 5, Count: 5, Timeout: patience}
	if r, err := e.Run(t.Context(), client); err != nil || r.OK != 25 {
		t.Errorf("UDP: %v %+v", err, r)
	}
	x.arrived(t, d, start)
}

// TestDecapFollows: the host's addresses as they come and go; and what is attached
// is listed, is refused a second time, and is missed when its interface is deleted.
func TestDecapFollows(t *testing.T) {
	n := newNetwork(t)
	s0, err := n.server.Netlink().LinkByName("s0")
	must(t, err)
	var d *Decap
	must(t, n.server.Do(func() (err error) {
		if d, err = AttachDecap(tunnels); err != nil {
			return err
		}
		if _, err := AttachDecap(tunnels); !errors.Is(err, steer.ErrAttached) {
			return fmt.Errorf("attached twice: %w", err)
		}
		return nil
	}))
	t.Cleanup(func() { must(t, d.Close()) })
	if got := d.Missing(); !slices.Equal(got, tunnels.VIPs) {
		t.Errorf("missing are %v", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Follow(ctx, func(err error) { t.Error(err) })
	}()
	defer func() { stop(); <-done }()
	known := func(a netip.Addr) bool {
		var v uint8
		return d.objs.Hosts.Lookup(a.As16(), &v) == nil
	}
	if !known(serverNet[testbed.V4].Addr()) || !known(serverNet[testbed.V6].Addr()) || known(vips[testbed.V4]) {
		t.Error("the addresses at the start are not known, or more are")
	}
	for _, f := range testbed.Families {
		a, err := netlink.ParseAddr(netip.PrefixFrom(vips[f], vips[f].BitLen()).String())
		must(t, err)
		must(t, n.server.Netlink().AddrAdd(s0, a))
		until(t, "the new address", func() bool { return known(vips[f]) })
		must(t, n.server.Netlink().AddrDel(s0, a))
		until(t, "the end of the address", func() bool { return !known(vips[f]) })
	}
	if s := ourDecap(t); s.Links != 1 || s.Gone != 0 || !slices.Equal(s.VIPs, tunnels.VIPs) || s.GUEPort != 6080 || len(s.Counters) != NumDecapCounters {
		t.Errorf("listed: %+v", s)
	}
	must(t, n.server.Netlink().LinkDel(s0))
	until(t, "the loss to be noticed", func() bool { return errors.Is(d.gone(), ErrGone) })
	if s := ourDecap(t); s.Gone != 1 {
		t.Errorf("listed after the end: %+v", s)
	}
}

// ourDecap is this process' program as it is listed.
func ourDecap(t *testing.T) (s Status) {
	t.Helper()
	all, err := List()
	must(t, err)
	for _, x := range all {
		if x.Program == "decap" && x.PID == os.Getpid() {
			s = x
		}
	}
	return s
}

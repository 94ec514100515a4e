package rs

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/uoa"
)

// shareable lets several sockets have one address and port.
func shareable(_, _ string, c syscall.RawConn) (err error) {
	asked := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	if asked != nil {
		return asked
	}
	return err
}

// listenUDP opens a server's socket in the server's namespace.
func (n *network) listenUDP(network, address string) *net.UDPConn {
	n.t.Helper()
	var c net.PacketConn
	must(n.t, n.server.Do(func() (err error) {
		c, err = (&net.ListenConfig{Control: shareable}).ListenPacket(context.Background(), network, address)
		return err
	}))
	n.t.Cleanup(func() { noError(n.t, c.Close()) })
	must(n.t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.UDPConn)
}

// uoaRig is a server with the programs attached.
type uoaRig struct {
	*network
	u *UOA
}

func newUOARig(t *testing.T, timeout time.Duration) *uoaRig {
	t.Helper()
	group := enter(t)
	r := &uoaRig{network: newNetwork(t)}
	must(t, r.server.Do(func() (err error) {
		r.u, err = AttachUOA(UOAOptions{Interfaces: []string{"s0"}, Cgroup: group.Path, From: balancers, Clients: 1000, Timeout: timeout, Getsockopt: true})
		return err
	}))
	t.Cleanup(func() { noError(t, r.u.Close()) })
	return r
}

// again ends the programs and attaches others.
func (r *uoaRig) again(o UOAOptions) {
	r.t.Helper()
	must(r.t, r.u.Close())
	must(r.t, r.server.Do(func() (err error) {
		r.u, err = AttachUOA(o)
		return err
	}))
}

// send sends a datagram, from a balancer or whomever.
func (r *uoaRig) send(f uoaFrame) {
	r.t.Helper()
	r.put(f.buildTo(r.t, r.to))
}

// receive is from where the next datagram comes to c, as any program learns it, and says.
func (r *uoaRig) receive(c *net.UDPConn, says string) netip.AddrPort {
	r.t.Helper()
	b := make([]byte, 2000)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != says {
		r.t.Fatalf("%q from %s, %v; want %q", b[:n], from, err, says)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// answer has c send to a client, and wants that to go to the balancer's flow.
func (r *uoaRig) answer(c *net.UDPConn, to, want netip.AddrPort) {
	r.t.Helper()
	if four, _ := c.LocalAddr().(*net.UDPAddr); four != nil && four.IP.To4() == nil && to.Addr().Is4() {
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	_, err := c.WriteToUDPAddrPort([]byte("answer to "+to.String()), to)
	must(r.t, err)
	r.sent("answer to "+to.String(), want)
}

// sent waits for a datagram of the server.
func (r *uoaRig) sent(says string, want netip.AddrPort) {
	r.t.Helper()
	select {
	case p := <-r.udp:
		udp := p.TransportLayer().(*layers.UDP)
		dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
		if got := netip.AddrPortFrom(dst, uint16(udp.DstPort)); got != want || string(udp.Payload) != says {
			r.t.Errorf("%q went to %s; want %q to %s", udp.Payload, got, says, want)
		}
	case <-time.After(patience):
		r.t.Fatalf("no %q", says)
	}
}

// TestUOALive: an unmodified server sees a client's address and answers to it, whatever
// its socket is, with UOA in whatever form, and later without.
func TestUOALive(t *testing.T) {
	r := newUOARig(t, time.Hour)
	port := uint16(5000)
	flow := uint16(20000)
	for _, s := range []struct {
		name, network, address string
		family                 testbed.Family
		client                 netip.AddrPort
		hidden                 bool // there is no way to show it
	}{
		{"v4", "udp4", "0.0.0.0", testbed.V4, client4, false},
		{"v4 bound", "udp4", serverNet[testbed.V4].Addr().String(), testbed.V4, client4, false},
		{"v6", "udp6", "[::]", testbed.V6, client6, false},
		{"v6 bound", "udp6", "[" + serverNet[testbed.V6].Addr().String() + "]", testbed.V6, client6, false},
		{"dual v4", "udp", "[::]", testbed.V4, client4, false},
		{"dual v6", "udp", "[::]", testbed.V6, client6, false},
		{"NAT64", "udp4", "0.0.0.0", testbed.V4, client6, true},
		{"dual NAT64", "udp", "[::]", testbed.V4, client6, true},
	} {
		port++
		address := netip.AddrPortFrom(netip.MustParseAddr(trim(s.address)), port)
		c := r.listenUDP(s.network, address.String())
		for _, by := range []string{"protocol", "option", "separate"} {
			if by == "option" && (s.family == testbed.V6 || s.hidden) {
				continue
			}
			t.Run(s.name+"/"+by, func(t *testing.T) {
				flow++
				f := uoaFrame{by: by, client: s.client, from: netip.AddrPortFrom(balancer[s.family], flow), to: netip.AddrPortFrom(serverNet[s.family].Addr(), port), payload: "first"}
				f.client = netip.AddrPortFrom(f.client.Addr(), flow+20000)
				want := f.client
				if s.hidden {
					want = f.from
				}
				if by == "separate" {
					f.by, f.payload, f.apart = "protocol", "", true
					r.send(f)
					f.by, f.payload = "none", "first"
				}
				before, err := r.u.Stats()
				must(t, err)
				r.send(f)
				if got := r.receive(c, "first"); got != want {
					t.Errorf("the first is from %s, want %s", got, want)
				}
				asked(t, c, want, f.client, s.hidden)
				r.answer(c, want, f.from)
				f.by, f.payload = "none", "later"
				r.send(f)
				if got := r.receive(c, "later"); got != want {
					t.Errorf("a later one is from %s, want %s", got, want)
				}
				r.answer(c, want, f.from)
				after, err := r.u.Stats()
				must(t, err)
				counts := map[string]uint64{"given": 2, "sent": 2}
				if s.hidden {
					counts = map[string]uint64{"unshowable": 2}
				}
				if by != "separate" {
					counts[by] = 1
				}
				if diff := cmp.Diff(counts, difference(before, after)); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		}
	}
}

// asked checks what package uoa says of a datagram from an address: who the client is, if
// that does not say so itself.
func asked(t *testing.T, c *net.UDPConn, from, client netip.AddrPort, hidden bool) {
	t.Helper()
	switch got, err := uoa.Client(c, from); {
	case hidden && (err != nil || got != client):
		t.Errorf("package uoa says that %s is %s, %v; it is %s", from, got, err, client)
	case !hidden && !errors.Is(err, uoa.ErrUnknown):
		t.Errorf("package uoa says that %s is %s, %v", from, got, err)
	}
}

// TestUOAAskers: many goroutines ask about one socket, each about a flow of its own.
func TestUOAAskers(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp4", ":5000")
	x := uoaFrame{by: "protocol", from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	var wg sync.WaitGroup
	for i := range uint16(8) {
		x.from = netip.AddrPortFrom(x.from.Addr(), 20001+i)
		x.client = netip.AddrPortFrom(client6.Addr(), 40001+i)
		r.send(x)
		from := r.receive(c, "x")
		want := x.client
		wg.Go(func() {
			for range 2000 {
				if got, err := uoa.Client(c, from); err != nil || got != want {
					t.Errorf("%s is %s, %v; want %s", from, got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// trim takes the brackets off an IPv6 address.
func trim(s string) string {
	if s[0] == '[' {
		return s[1 : len(s)-1]
	}
	return s
}

// TestUOAForgedLive: a stranger's UOA shows nothing, in either form; and whom a balancer
// names is named for its flow alone.
func TestUOAForgedLive(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp", "[::]:5000")
	good := uoaFrame{by: "option", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	bad := good
	bad.from = netip.AddrPortFrom(stranger[testbed.V4], 20001)
	r.send(bad)
	if got := r.receive(c, "x"); got != bad.from {
		t.Errorf("a stranger is taken for %s", got)
	}
	bad.by = "protocol"
	bad.payload = "lost" // the kernel knows no protocol 248
	r.send(bad)
	r.send(good)
	if got := r.receive(c, "x"); got != client4 {
		t.Errorf("the client is taken for %s", got)
	}
	for _, other := range []netip.AddrPort{
		netip.AddrPortFrom(balancer[testbed.V4], 20002), netip.AddrPortFrom(balancers[0].Addr().Next(), 20001), bad.from,
	} {
		f := good
		f.by, f.from = "none", other
		must(t, r.neighbour(other.Addr()))
		r.send(f)
		if got := r.receive(c, "x"); got != other {
			t.Errorf("%s is taken for %s", other, got)
		}
		r.answer(c, other, other)
	}
}

// neighbour tells the server's kernel where an address is.
func (r *uoaRig) neighbour(a netip.Addr) error {
	return r.server.Command(r.t.Context(), "ip", "neigh", "replace", a.String(), "lladdr", r.wire.MAC.String(), "dev", "s0").Run()
}

// TestUOATwoWays: a client that has come by another flow since is answered there; by the
// older one it is the balancer, which gets its answers.
func TestUOATwoWays(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp4", ":5000")
	one := uoaFrame{by: "protocol", client: client4, from: netip.AddrPortFrom(balancer[testbed.V4], 20001), to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	two := one
	two.from = netip.AddrPortFrom(balancer[testbed.V4], 20002)
	later := func(f uoaFrame) uoaFrame { f.by = "none"; return f }
	for _, step := range []struct {
		frame uoaFrame
		want  netip.AddrPort
	}{
		{one, client4}, {later(one), client4}, {two, client4}, {later(two), client4},
		{later(one), one.from}, {one, one.from}, {later(two), client4},
	} {
		r.send(step.frame)
		if got := r.receive(c, "x"); got != step.want {
			t.Fatalf("from %s, want %s", got, step.want)
		}
		asked(t, c, step.want, client4, step.want != client4)
		r.answer(c, step.want, step.frame.from)
	}
}

// TestUOAPortUsedAgain: the port of one client's flow, given to another that had one of
// its own already, is the other's latest.
func TestUOAPortUsedAgain(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp4", ":5000")
	one := uoaFrame{by: "protocol", client: client4, from: netip.AddrPortFrom(balancer[testbed.V4], 20001), to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	two := one
	two.client, two.from = other4, netip.AddrPortFrom(balancer[testbed.V4], 20002)
	again := one
	again.client = other4
	for _, f := range []uoaFrame{one, two, again} {
		r.send(f)
		if got := r.receive(c, "x"); got != f.client {
			t.Fatalf("from %s, want %s", got, f.client)
		}
		r.answer(c, f.client, f.from)
	}
}

// TestUOATwoAddresses: a socket without an address does not know which of two clients it
// is whose flows to two addresses of the host come from one port of the balancer's; one
// with an address does.
func TestUOATwoAddresses(t *testing.T) {
	r := newUOARig(t, time.Hour)
	second := netip.MustParseAddr("10.0.1.21")
	must(t, r.server.Command(t.Context(), "ip", "address", "add", second.String()+"/24", "dev", "s0").Run())
	one := uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	two := one
	two.client, two.to = other4, netip.AddrPortFrom(second, 5000)
	all := r.listenUDP("udp4", ":5000")
	r.send(one)
	if got := r.receive(all, "x"); got != client4 {
		t.Errorf("the first: %s", got)
	}
	r.send(two)
	if got := r.receive(all, "x"); got != two.from {
		t.Errorf("the second: %s", got)
	}
	one.by = "none"
	r.send(one)
	if got := r.receive(all, "x"); got != one.from {
		t.Errorf("the first again: %s", got)
	}
	bound := r.listenUDP("udp4", one.to.String())
	r.send(one)
	if got := r.receive(bound, "x"); got != client4 {
		t.Errorf("bound to the first: %s", got)
	}
	bound2 := r.listenUDP("udp4", two.to.String())
	two.by = "none"
	r.send(two)
	if got := r.receive(bound2, "x"); got != other4 {
		t.Errorf("bound to the second: %s", got)
	}
	r.answer(bound, client4, one.from)
	r.answer(bound2, other4, two.from)
}

// TestUOAConnected: a server that answers each client by a socket of its own, connected to
// it, has that connected to the balancer, and sees the client as its peer.
func TestUOAConnected(t *testing.T) {
	r := newUOARig(t, time.Hour)
	for _, f := range testbed.Families {
		client := map[testbed.Family]netip.AddrPort{testbed.V4: client4, testbed.V6: client6}[f]
		x := uoaFrame{by: "protocol", client: client, from: uoaFrom[f], to: netip.AddrPortFrom(serverNet[f].Addr(), 5000), payload: "x"}
		c := r.listenUDP("udp", x.to.String())
		r.send(x)
		if got := r.receive(c, "x"); got != client {
			t.Fatalf("%s", got)
		}
		var own net.Conn
		must(t, r.server.Do(func() (err error) {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(x.to), Control: shareable}
			own, err = d.Dial("udp", client.String())
			return err
		}))
		must(t, own.SetDeadline(time.Now().Add(patience)))
		_, err := own.Write([]byte("hello"))
		must(t, err)
		r.sent("hello", x.from)
		if got := own.RemoteAddr().(*net.UDPAddr).AddrPort(); got != client {
			t.Errorf("its peer is %s", got)
		}
		x.by, x.payload = "none", "more"
		r.send(x)
		if got := r.receive(own.(*net.UDPConn), "more"); got != client {
			t.Errorf("more from %s", got)
		}
		noError(t, own.Close())
	}
}

// TestUOATimeout: a client that is not needed for so long is forgotten.
func TestUOATimeout(t *testing.T) {
	r := newUOARig(t, time.Second)
	c := r.listenUDP("udp4", ":5000")
	x := uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	r.send(x)
	r.receive(c, "x") // the client, unless this machine is very slow
	time.Sleep(1100 * time.Millisecond)
	x.by = "none"
	r.send(x)
	if got := r.receive(c, "x"); got != x.from {
		t.Errorf("after its time it is taken for %s", got)
	}
	if _, err := c.WriteToUDPAddrPort([]byte("late"), client4); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("an answer after its time: %v", err) // the client's own address has no route here
	}
}

// TestUOAKeep: who is to keep the clients knows them when it is started again, both to
// show them and to answer them; with room for another number of them it begins afresh.
func TestUOAKeep(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp4", ":5000")
	x := uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"}
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	comes := func(when string, by string, want netip.AddrPort) {
		t.Helper()
		x.by = by
		r.send(x)
		if got := r.receive(c, "x"); got != want {
			t.Errorf("%s: from %s, want %s", when, got, want)
		}
	}
	o := r.u.opts
	comes("first", "protocol", client4)
	r.again(o)
	comes("without", "none", x.from)
	o.Keep = dir
	r.again(o)
	comes("kept", "protocol", client4)
	r.again(o)
	r.answer(c, client4, x.from)
	comes("started again", "none", client4)
	o.Clients = 500
	r.again(o)
	if len(r.u.Notes) != 2 {
		t.Errorf("%q", r.u.Notes)
	}
	comes("with less room", "none", x.from)
	comes("told again", "protocol", client4)

	o.Keep, o.Interfaces = t.TempDir(), []string{"none"}
	if _, err := AttachUOA(o); err == nil || !strings.Contains(err.Error(), "bpf filesystem") {
		t.Errorf("a directory of another file system: %v", err)
	}
}

// TestUOAStatus: what is attached can be found, and is gone afterwards.
func TestUOAStatus(t *testing.T) {
	r := newUOARig(t, time.Hour)
	c := r.listenUDP("udp4", ":5000")
	r.send(uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 5000), payload: "x"})
	r.receive(c, "x")
	mine := func() (out []Status) {
		all, err := List()
		must(t, err)
		for _, s := range all {
			if s.Program == "uoa" && s.Cgroup == r.u.opts.Cgroup {
				out = append(out, s)
			}
		}
		return out
	}
	got := mine()
	if len(got) != 1 || got[0].Links != 1 || got[0].Gone != 0 || got[0].Counters["protocol"] != 1 || got[0].Counters["given"] != 1 || len(got[0].Counts()) != NumUOACounters {
		t.Errorf("%+v", got)
	}
	if err := r.u.gone(); err != nil {
		t.Error(err)
	}
	must(t, r.u.Close())
	if got := mine(); len(got) != 0 {
		t.Errorf("still there: %+v", got)
	}
	r.again(r.u.opts) // for the end of the test to have something to close
}

package control

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/why"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/packet"
)

// frames are all that the workers and the rings have between them.
func (d *daemon) accounted() int {
	d.t.Helper()
	s, err := d.Stats(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	n := 0
	for _, w := range s.Workers {
		n += w.FreeFrames
	}
	for _, l := range s.Links {
		for _, q := range l.Queues {
			n += int(q.Filled - q.Received + q.Transmitted - q.Reclaimed)
		}
	}
	return n
}

// noneLost waits until every frame is accounted for; some are under way.
func (d *daemon) noneLost() {
	d.t.Helper()
	want := d.frames()
	got := d.accounted()
	for end := time.Now().Add(15 * time.Second); got != want && time.Now().Before(end); got = d.accounted() {
		time.Sleep(20 * time.Millisecond)
	}
	if got != want {
		d.t.Errorf("%d of %d frames are there", got, want)
	}
}

// An interface that is deleted and made again while nothing happens: netlink
// tells, although the sockets are silent. It comes back with a new index, and
// traffic flows on.
func TestInterfaceReturns(t *testing.T) {
	for _, mode := range []string{"adaptive", "busy"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, testbed.TopologyOptions{Queues: 2, VIPs: testbed.VIPOnLink})
			d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), append(small, "workers: 2", "poll_mode: "+mode)...))
			for i, dev := range []**testbed.Device{&w.LBServer, &w.LBClient} {
				for _, f := range testbed.Families {
					w.ask(w.VIP(f, 0), 10)
				}
				d.noneLost()
				check(t, (*dev).Delete())
				d.awaitN("interface is gone", i+1)
				if i == 0 { // the other one serves on
					_, err := w.Client.Ping(w.VIP(testbed.V4, 0), 56, 15*time.Second)
					check(t, err)
				}
				if i == 0 {
					check(t, w.ConnectLBServer())
				} else {
					check(t, w.ConnectLBClient())
				}
				d.awaitN("interface in service", 3+i)
			}
			for _, f := range testbed.Families {
				w.ask(w.VIP(f, 0), 10)
			}
			d.noneLost()
			if n := d.logs.FilterMessage("frames are lost").Len(); n > 0 {
				t.Errorf("frames lost\n%s", d.said())
			}
			d.end()
			w.clean()
		})
	}
}

// News of an interface whose successor is in service already, found because the
// workers met an error first.
func TestOldNewsOfAnInterface(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), small...))
	check(t, d.onLoop(t.Context(), func() {
		l := d.links[1]
		d.linkEvent(t.Context(), follow.LinkEvent{Name: l.name, Index: l.ifindex + 100, MTU: 1500, MAC: [6]byte(l.mac)})
		d.linkEvent(t.Context(), follow.LinkEvent{Name: l.name, Index: l.ifindex + 100, Gone: true})
	}))
	if n := d.logs.FilterMessage("interface is gone").Len(); n > 0 {
		t.Errorf("it was given up\n%s", d.said())
	}
	w.ask(w.VIP(testbed.V4, 0), 5)
	d.end()
	w.clean()
}

// An interface that returns before its carrier does: what was announced until then nobody
// has heard.
func TestCarrierComesLate(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...))
	announced := func() int { return d.logs.FilterMessage("announcing addresses").Len() }
	check(t, d.onLoop(t.Context(), func() {
		l := d.links[1]
		d.lose(l)
		e := follow.LinkEvent{Name: l.name, Index: l.ifindex, MTU: 1500, MAC: [6]byte(l.mac)}
		d.linkEvent(t.Context(), e)
		if !l.up || l.sample().Up || l.stats().Up {
			t.Errorf("in service: %v; said to be up without carrier: %v, %v", l.up, l.sample().Up, l.stats().Up)
		}
		before := announced()
		e.Up = true
		d.linkEvent(t.Context(), e)
		if !l.sample().Up || !l.stats().Up {
			t.Error("said to be down with carrier")
		}
		if n := announced() - before; !l.up || n != 1 {
			t.Errorf("announced %d times\n%s", n, d.said())
		}
	}))
	w.ask(w.VIP(testbed.V4, 0), 5)
	d.end()
	w.clean()
}

// An interface that is switched off and on again keeps program and sockets.
func TestInterfaceDown(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), append(small, "poll_mode: busy")...))
	w.ask(w.VIP(testbed.V4, 0), 5)
	dev, err := w.LB.Netlink().LinkByName("l1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		check(t, w.LB.Netlink().LinkSetDown(dev))
		d.awaitN("interface does not work", i+1)
		// One that is on again before anybody looked is a NIC that fails.
		d.awaitN("interface is down", i+1)
		check(t, w.LB.Netlink().LinkSetUp(dev))
		d.awaitN("interface is in use again", i+1)
		w.ask(w.VIP(testbed.V4, 0), 5)
		d.noneLost()
	}
	if n := d.logs.FilterMessage("interface in service").Len(); n != 2 {
		t.Errorf("sockets were opened anew\n%s", d.said())
	}
	d.end()
	w.clean()
}

// A new MAC address: the program compares it, workers answer with it.
func TestNewMAC(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1, VIPs: testbed.VIPOnLink})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...))
	w.ask(w.VIP(testbed.V4, 0), 5)
	dev, err := w.LB.Netlink().LinkByName("l0")
	if err != nil {
		t.Fatal(err)
	}
	check(t, w.LB.Netlink().LinkSetHardwareAddr(dev, net.HardwareAddr{2, 0, 0, 0xaa, 0xbb, 0xcc}))
	d.await("interface has a new MAC address")
	for _, f := range testbed.Families {
		w.ask(w.VIP(f, 0), 5)
	}
	d.noneLost()
	d.end()
	w.clean()
}

// A VIP that becomes the host's own is the host's but for the service, and is
// l4fwd's again afterwards.
func TestHostTakesVIP(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...))
	vip := w.VIP(testbed.V4, 0)
	ours := func() bool {
		s, err := d.Stats(t.Context())
		check(t, err)
		return slices.IndexFunc(s.Links, func(l LinkStats) bool { return l.XDP["take_service"] > 0 }) < 0
	}
	w.ask(vip, 5)
	if !ours() {
		t.Error("taken by service, not by address")
	}
	check(t, w.LBClient.AddAddr(netip.PrefixFrom(vip, 32)))
	d.await("the host has taken one of our addresses: only what is configured is taken of it now")
	w.ask(vip, 5)
	if ours() {
		t.Error("not taken by service")
	}
	addr, err := netlink.ParseAddr(vip.String() + "/32")
	if err != nil {
		t.Fatal(err)
	}
	dev, err := w.LB.Netlink().LinkByName("l0")
	if err != nil {
		t.Fatal(err)
	}
	check(t, w.LB.Netlink().AddrDel(dev, addr))
	d.await("an address is all ours again")
	w.ask(vip, 5)
	w.leases(vip)
	d.end()
	w.clean()
}

// TestHostTakesVIPLate: rules that could not follow the host's addresses do so when they can.
func TestHostTakesVIPLate(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	var fails atomic.Int32
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...), func(o *Options) {
		o.update = func(s *steer.Steer, r steer.Rules) error {
			if fails.Add(-1) >= 0 {
				return unix.ENOMEM
			}
			return s.Update(r)
		}
	})
	vip := w.VIP(testbed.V4, 0)
	fails.Store(3)
	check(t, w.LBClient.AddAddr(netip.PrefixFrom(vip, 32)))
	d.await("the host has taken one of our addresses: only what is configured is taken of it now")
	check(t, d.onLoop(t.Context(), func() {
		if d.untold != nil || !slices.Contains(d.rules.HostAddrs, vip) || slices.Contains(d.rules.Addrs, vip) {
			t.Errorf("rules: %+v", d.rules)
		}
	}))
	if n := d.logs.FilterMessageSnippet("trying again").Len(); n != 1 || fails.Load() >= 0 {
		t.Errorf("said %d times, %d failures are left\n%s", n, fails.Load(), d.said())
	}
	w.ask(vip, 5)
	d.end()
	w.clean()
}

// leases asserts that the host hears a DHCP server that offers it the address, and nothing
// else that comes to it.
func (w *world) leases(vip netip.Addr) {
	w.t.Helper()
	heard := make(chan uint16, 16)
	s, err := w.LB.Sniff(w.LBClient.Name, testbed.SnifferOptions{Direction: testbed.Incoming, Watch: func(f []byte, _ bool) {
		var p packet.Packet
		if packet.Parse(f, &p) == packet.ErrNone && p.Kind == packet.KindUDP && p.Dst.Netip() == vip {
			heard <- p.DstPort
		}
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, port := range []uint16{69, 68} {
		p := why.Packet{Protocol: packet.ProtoUDP, Source: netip.AddrPortFrom(w.ClientAddr(testbed.V4, 0), 67),
			Destination: netip.AddrPortFrom(vip, port), TTL: 64, Payload: 300}
		f, err := p.Frame([6]byte(w.LBClient.MAC), [6]byte(w.ClientDev.MAC), 0, false)
		check(w.t, err)
		check(w.t, w.ClientDev.Inject(f))
	}
	select {
	case port := <-heard:
		if port != 68 {
			w.t.Errorf("the host hears port %d of an address that is ours", port)
		}
	case <-time.After(15 * time.Second):
		w.t.Error("the host does not hear the DHCP server")
	}
	_, err = s.Stop()
	check(w.t, err)
}

// A local address that becomes the host's own is used no more.
func TestHostTakesLocal(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	text := w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...)
	const taken = "a local address has become the host's own: it is used no more, its flows are lost"
	d := w.run(text, func(o *Options) {
		o.Log = o.Log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if e.Message == taken { // what was to be done before is done, what is done after comes late
				time.Sleep(200 * time.Millisecond)
			}
			return nil
		}))
	})
	local, vip := w.LocalAddr(testbed.V4, 1), w.VIP(testbed.V4, 0)
	if r := w.ask(vip, 20); r.ByRemote[local] == 0 {
		t.Errorf("not used before: %v", r.ByRemote)
	}
	check(t, w.LBServer.AddAddr(netip.PrefixFrom(local, 32)))
	d.await(taken)
	if r := w.ask(vip, 20); r.ByRemote[local] != 0 || len(r.ByRemote) != 3 {
		t.Errorf("used: %v", r.ByRemote)
	}
	d.reload(strings.Replace(text, "weight: 1}", "weight: 2}", 1))
	if r := w.ask(vip, 20); r.ByRemote[local] != 0 || len(r.ByRemote) != 3 {
		t.Errorf("used after a reload: %v", r.ByRemote)
	}
	d.end()
	w.clean()
}

// An interface that is moved to another namespace is as good as deleted, and
// returns with the index it had.
func TestInterfaceMoves(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	away, err := testbed.NewNamespace("away")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, away.Close()) })
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "wrr"), small...))
	w.ask(w.VIP(testbed.V4, 0), 5)
	move := func(from, to *testbed.Namespace) {
		dev, err := from.Netlink().LinkByName("l0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(to.Path())
		if err != nil {
			t.Fatal(err)
		}
		check(t, from.Netlink().LinkSetNsFd(dev, int(f.Fd())))
		check(t, f.Close())
	}
	move(w.LB, away)
	d.await("interface is gone")
	d.noneLost()
	move(away, w.LB)
	dev, err := w.LB.Netlink().LinkByName("l0")
	if err != nil {
		t.Fatal(err)
	}
	check(t, w.LB.Netlink().LinkSetUp(dev))
	for _, p := range w.LBClient.Addrs {
		check(t, w.LBClient.AddAddr(p))
	}
	d.awaitN("interface in service", 3)
	w.ask(w.VIP(testbed.V4, 0), 5)
	d.noneLost()
	d.end()
	w.clean()
}

// healthySince asserts that no interface failed after a message came for the nth
// time: what workers said of the one before is not held against the next.
func (d *daemon) healthySince(message string, n int) {
	d.t.Helper()
	time.Sleep(2 * quietPeriod) // until the loop must have listened
	for _, e := range d.logs.All() {
		if e.Message == message {
			n--
		}
		if n <= 0 && e.Message == "interface does not work" {
			d.t.Errorf("%s: %v, after it came into service", e.Message, e.ContextMap())
		}
	}
}

// An interface deleted while packets are everywhere: no frame is lost, and the one
// that takes its place is not blamed.
func TestInterfaceReturnsUnderLoad(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1, Queues: 2})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), append(small, "workers: 2", "poll_mode: busy")...))
	w.ask(w.VIP(testbed.V4, 0), 5)
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		load.Go(func() {
			// Failures are expected: the way is cut.
			_, _ = testbed.Echo{
				To: netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.PortEcho), Sockets: 16, Count: 100000, Size: 1000, Timeout: 50 * time.Millisecond,
			}.Run(ctx, w.Client)
		})
		time.Sleep(200 * time.Millisecond)
		check(t, w.LBServer.Delete())
		d.awaitN("interface is gone", i+1)
		check(t, w.ConnectLBServer())
		d.awaitN("interface in service", 3+i)
		cancel()
		load.Wait()
		w.ask(w.VIP(testbed.V4, 0), 5)
		d.noneLost()
		d.healthySince("interface in service", 3+i)
	}
	d.end()
	w.clean()
}

// A host that takes all local addresses is told that they are missed, and not that they
// are used no more. They serve again when it has let go.
func TestHostTakesAllLocals(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...))
	dev, err := w.LB.Netlink().LinkByName("l1")
	check(t, err)
	var taken []*netlink.Addr
	for i := range 4 {
		a := netip.PrefixFrom(w.LocalAddr(testbed.V4, i), 32)
		check(t, w.LBServer.AddAddr(a))
		addr, err := netlink.ParseAddr(a.String())
		check(t, err)
		taken = append(taken, addr)
	}
	const missed = "local addresses have become the host's own that cannot be done without: what was in force before stays"
	d.await(missed)
	last := w.LocalAddr(testbed.V4, 3)
	for _, e := range d.logs.FilterMessageSnippet("it is used no more").All() {
		if e.ContextMap()["address"] == last.String() {
			t.Errorf("said of %s, too: %s", last, e.Message)
		}
	}
	for _, addr := range taken {
		check(t, w.LB.Netlink().AddrDel(dev, addr))
	}
	w.ask(w.VIP(testbed.V4, 0), 5)
	d.end()
	w.clean()
}

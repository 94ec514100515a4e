package e2e

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestGenericFallback: an interface whose driver has no XDP is served all the
// same, and the log says how.
func TestGenericFallback(t *testing.T) {
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	// m0 takes over from l0.
	m0 := macvlan(t, r.Topology)
	nl := r.LB.Netlink()
	l0, err := nl.LinkByName("l0")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.LBClient.Addrs {
		a := &netlink.Addr{IPNet: prefixNet(p)}
		if err := nl.AddrDel(l0, a); err != nil {
			t.Fatal(err)
		}
		if err := m0.AddAddr(p); err != nil {
			t.Fatal(err)
		}
	}
	r.LBClient = m0
	devices := []string{"l0", "l1", "m0"}
	state := conditionOf(t, r.LB, devices)
	r.toa = true
	d := program{}.start(t, r.LB, r.Config(testbed.Services(0, fullNAT, "toa", "wrr", weights...)))
	if out := d.Output(); !strings.Contains(out, "m0: no native XDP") || !strings.Contains(out, `"xdp": "generic"`) {
		t.Errorf("the log does not tell of generic XDP on m0:\n%s", out)
	}
	r.warmUp()
	for _, f := range testbed.Families {
		r.http(t, scene{workers: 1, mode: fullNAT}, f)
		r.echo(t, scene{workers: 1, mode: fullNAT}, f)
	}
	d.stop()
	untouched(t, r.LB, devices, state)
}

// stripVLANs switches on what l4fwd switches off, which in a testbed is off.
func stripVLANs(t *testing.T, r *rig) {
	t.Helper()
	for _, name := range r.LBDevices() {
		if out, err := r.LB.Command(t.Context(), "ethtool", "-K", name, "rxvlan", "on").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// TestNICPutBack: what is changed while l4fwd runs is put back when it stops,
// and by `l4fwd cleanup` or the next start after kill -9.
func TestNICPutBack(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2}, testbed.SnifferOptions{})
	// A NIC with its offloads on: l4fwd must see VLAN tags where they are.
	if _, _, err := testbed.Veth(r.LB, "x0", r.Switch, "x1", testbed.VethOptions{Queues: 2, KeepOffloads: true}); err != nil {
		t.Fatal(err)
	}
	devices := append(r.LBDevices(), "x0")
	stripVLANs(t, r)
	before := conditionOf(t, r.LB, devices)
	config := r.Config(testbed.Services(0, fullNAT, "", "wrr"))
	p := program{args: []string{"--busy-poll", "--workers", "2"}}
	for _, name := range devices {
		p.args = append(p.args, "--interface", name)
	}
	d := p.start(t, r.LB, config)
	during := conditionOf(t, r.LB, devices)
	for _, name := range devices {
		strip := name + " rx-vlan-hw-parse"
		if before[strip] != "true" || during[strip] != "false" || during[name+" xdp"] != "true" {
			t.Errorf("%s: nothing is seen of l4fwd: %v", name, during)
		}
	}
	if during["journals"] == "" {
		t.Error("no journals")
	}
	r.warmUp()
	d.stop()
	untouched(t, r.LB, devices, before)

	d = p.start(t, r.LB, config)
	d.Kill()
	if on := attached(t, r.LB, devices); len(on) > 0 {
		t.Errorf("XDP is still attached to %v after kill -9", on)
	}
	path, _, _ := p.command(t, config)
	cleanup := r.LB.Command(t.Context(), path, "cleanup")
	cleanup.PrivateSysfs = true
	out, err := cleanup.CombinedOutput()
	for _, name := range devices {
		if err != nil || !strings.Contains(string(out), name) {
			t.Errorf("cleanup: %v\n%s", err, out)
		}
	}
	untouched(t, r.LB, devices, before)

	p.start(t, r.LB, config).Kill()
	d = p.start(t, r.LB, config)
	d.stop()
	untouched(t, r.LB, devices, before)
}

// TestInterfaceReturns: an interface that is deleted under load and made again
// is forwarded on again; the process stays up, and so does the other arm.
func TestInterfaceReturns(t *testing.T) {
	type row struct {
		scene
		client bool // the client's arm goes, not the servers'
	}
	rows := []row{{scene{false, 2, fullNAT}, false}, {scene{false, 1, dnat}, true}, {scene{true, 2, fullNAT}, false}}
	for _, c := range rows {
		name := c.String() + "/servers' arm"
		if c.client {
			name = c.String() + "/client's arm"
		}
		t.Run(name, func(t *testing.T) { interfaceReturns(t, c.scene, c.client) })
	}
}

func interfaceReturns(t *testing.T, s scene, client bool) {
	// Sniffers of devices that go would fail: only the real servers' stay.
	r := &rig{Topology: testbed.Up(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}), t: t}
	for _, ns := range r.Topology.Servers {
		r.behind = append(r.behind, r.sniff(ns, "s0", testbed.SnifferOptions{}))
	}
	servers, err := r.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	r.servers = servers
	t.Cleanup(func() { _ = testbed.CloseServers(servers) })
	d := r.start(s)
	r.warmUp()
	before := conditionOf(t, r.LB, r.LBDevices())
	rounds := 3
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		stop := r.background()
		r.cut(d, client)
		if !s.oneArm && !client {
			// The other arm works: l4fwd answers there.
			for _, f := range testbed.Families {
				if _, err := r.Client.Ping(r.VIP(f, 0), 56, limit); err != nil {
					t.Errorf("the client's arm, while the other is gone: %v", err)
				}
			}
		}
		r.mend(d, client)
		stop()
		for _, f := range testbed.Families {
			l := testbed.HTTPLoad{To: r.vip(f, 0, testbed.VIPPortHTTP), Requests: 100, Timeout: limit}
			if res, err := l.Run(t.Context(), r.Client); err != nil || res.OK != l.Requests {
				t.Errorf("round %d: %d of %d requests answered, %v: %v", round, res.OK, l.Requests, err, res.Errors)
			}
		}
	}
	if strings.Contains(d.Output(), "frames are lost") {
		t.Error("frames were lost")
	}
	during := conditionOf(t, r.LB, r.LBDevices())
	for _, name := range r.LBDevices() {
		if during[name+" xdp"] != before[name+" xdp"] {
			t.Errorf("%s: XDP attached: %s", name, during[name+" xdp"])
		}
	}
	d.stop()
	if on := attached(t, r.LB, r.LBDevices()); len(on) > 0 {
		t.Errorf("XDP is still attached to %v", on)
	}
}

// background makes requests until stopped; some must fail.
func (r *rig) background() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			// What comes of it is not the question.
			_, _ = testbed.HTTPLoad{To: r.vip(testbed.V4, 0, testbed.VIPPortHTTP), Requests: 50, Concurrency: 8,
				Timeout: 200 * time.Millisecond}.Run(r.t.Context(), r.Client)
		}
	}()
	return func() { close(quit); <-done }
}

// cut deletes an arm under load and waits until l4fwd has noticed.
func (r *rig) cut(d *daemon, client bool) {
	r.t.Helper()
	dev := r.LBServer
	if client {
		dev = r.LBClient
	}
	sent := d.stats().forwarding()
	d.until("traffic", func(s stats) bool { return s.forwarding() > sent+100 })
	if err := dev.Delete(); err != nil {
		r.t.Fatal(err)
	}
	d.until(dev.Name+" to be out of service", func(s stats) bool { return !s.up(dev.Name) })
}

// mend brings the arm back and waits until it is in service.
func (r *rig) mend(d *daemon, client bool) {
	r.t.Helper()
	connect, name := r.ConnectLBServer, r.LBServer.Name
	if client {
		connect, name = r.ConnectLBClient, r.LBClient.Name
	}
	if err := connect(); err != nil {
		r.t.Fatal(err)
	}
	d.until(name+" to be in service", func(s stats) bool { return s.up(name) })
	// A kernel does not announce its own new MAC address: the client would go
	// on with the old one of its gateway for up to a minute, whatever l4fwd does.
	for _, f := range testbed.Families {
		if err := forget(r.ClientDev, r.gateway(f)); err != nil {
			r.t.Fatal(err)
		}
	}
	await(r.t, "answers", func() error {
		for _, f := range testbed.Families {
			l := testbed.HTTPLoad{To: r.vip(f, 0, testbed.VIPPortHTTP), Requests: 1, Timeout: time.Second}
			if res, err := l.Run(r.t.Context(), r.Client); err != nil || res.OK != 1 {
				return errFirst(err, res.Errors)
			}
		}
		return nil
	})
}

// up reports whether an interface is in service.
func (s stats) up(name string) bool {
	for _, i := range s.Interfaces {
		if i.Name == name {
			return i.Up
		}
	}
	return false
}

func errFirst(err error, words []string) error {
	if err == nil {
		err = errors.New(strings.Join(words, "; "))
	}
	return err
}

// prefixNet is a prefix as netlink wants it.
func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

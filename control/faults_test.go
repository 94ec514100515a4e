package control

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// dnat is a small configuration for the named interfaces, with no local address.
func dnat(extra ...string) string {
	return strings.Join(append(extra, small...), "\n") + `
services:
  - name: web
    address: 192.0.2.10:80
    protocol: tcp
    mode: dnat
    backends: [{address: "10.0.1.20:8080"}]
`
}

// Everything that is wrong before anything was changed: the message says what
// and how to mend it, and nothing is left behind.
func TestRefusals(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Queues: 2, Servers: 1})
	both := "interfaces: [{name: l0}, {name: l1}]"
	tests := map[string]struct {
		config string
		prior  func(t *testing.T) // in the load balancer's namespace
		want   []string
	}{
		"missing interfaces": {
			config: dnat("interfaces: [{name: nope0}, {name: l0}, {name: nope1}]"),
			want:   []string{"nope0", "nope1", "not found"},
		},
		"interface down": {
			config: dnat(both),
			prior: func(t *testing.T) {
				downDuring(t, w.LB, "l1")
			},
			want: []string{"l1: interface is down: switch it on with: ip link set dev l1 up"},
		},
		"no Ethernet": {
			config: dnat("interfaces: [{name: tun0}]"),
			prior: func(t *testing.T) {
				addLink(t, w.LB, &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN})
			},
			want: []string{"tun0 is no Ethernet device"},
		},
		"alternative name": {
			config: dnat("interfaces: [{name: other}]"),
			prior: func(t *testing.T) {
				dev, err := w.LB.Netlink().LinkByName("l0")
				if err == nil {
					err = w.LB.Netlink().LinkAddAltName(dev, "other")
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { check(t, w.LB.Netlink().LinkDelAltName(dev, "other")) })
			},
			want: []string{"other is an alternative name of l0"},
		},
		"management interface by another name": {
			config: dnat(both, "management_interface: mgmt"),
			prior: func(t *testing.T) {
				dev, err := w.LB.Netlink().LinkByName("l0")
				if err == nil {
					err = w.LB.Netlink().LinkAddAltName(dev, "mgmt")
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { check(t, w.LB.Netlink().LinkDelAltName(dev, "mgmt")) })
			},
			want: []string{"l0 is the management interface (mgmt)"},
		},
		"too many workers": {
			config: dnat(both, "workers: 3"),
			want:   []string{"3 workers, but l0 has no more than 2 receive queues: start with --workers 2"},
		},
		"CPU": {
			config: dnat(both, "cpus: 8191"),
			want:   []string{"cpus: 8191 is not among the"},
		},
		"MTU": {
			config: dnat("interfaces: [{name: big0}]"),
			prior: func(t *testing.T) {
				addLink(t, w.LB, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "big0", MTU: 9000, Flags: net.FlagUp}})
			},
			want: []string{"big0: MTU above the frame size", "ip link set dev big0 mtu 1774"},
		},
		"host's local address": {
			config: strings.Replace(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...),
				"local_addresses:\n", "local_addresses:\n  - 10.0.1.1\n", 1),
			want: []string{"local addresses [10.0.1.1] belong to this host", "{address: 10.0.1.1, ports:"},
		},
		"host's local address, ports of the kernel": {
			config: strings.Replace(w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...),
				"local_addresses:\n", "local_addresses:\n  - {address: 10.0.1.1, ports: 64000-65535}\n", 1),
			want: []string{"local address 10.0.1.1", "ports 64000-65535", "ip_local_port_range is 1024-65000"},
		},
		"service on a port of the host": {
			config: strings.ReplaceAll(dnat(both), "192.0.2.10:80", "198.51.100.1:22"),
			prior: func(t *testing.T) {
				l, err := w.LB.Listen("tcp", "0.0.0.0:22")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { check(t, l.Close()) })
			},
			want: []string{"service web: 198.51.100.1 is an address of this host", "tcp port 22 ("},
		},
		"queue taken": {
			config: dnat(both),
			prior:  func(t *testing.T) { takeQueue(t, w.LB, w.LBServer.Index, 1) },
			want:   []string{"l1: interface", "queue 1: ", afxdp.ErrQueueBusy.Error()},
		},
		"another program": {
			config: dnat(both),
			prior:  func(t *testing.T) { attachOther(t, w.LB, w.LBServer.Index) },
			want:   []string{"l1: another XDP program is attached", "bpftool link detach"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t, w.journal = t, t.TempDir()
			if tc.prior != nil {
				tc.prior(t)
			}
			d := w.begin(tc.config)
			d.fails(tc.want...)
			if name != "another program" {
				w.clean()
			}
		})
	}
}

// addLink makes a device for the test.
func addLink(t *testing.T, ns *testbed.Namespace, dev netlink.Link) {
	t.Helper()
	if err := ns.Do(func() error { return netlink.LinkAdd(dev) }); err != nil {
		t.Fatal(err)
	}
	if dev.Attrs().Flags&net.FlagUp != 0 {
		check(t, ns.Netlink().LinkSetUp(dev))
	}
	t.Cleanup(func() { check(t, ns.Netlink().LinkDel(dev)) })
}

// downDuring switches a device off for the test. Its routes are lost.
func downDuring(t *testing.T, ns *testbed.Namespace, name string) {
	t.Helper()
	dev, err := ns.Netlink().LinkByName(name)
	if err == nil {
		err = ns.Netlink().LinkSetDown(dev)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, ns.Netlink().LinkSetUp(dev)) })
}

// takeQueue is another program that has a queue.
func takeQueue(t *testing.T, ns *testbed.Namespace, ifindex, queue int) {
	t.Helper()
	err := ns.Do(func() error {
		u, err := afxdp.NewUMEM(afxdp.UMEMOptions{Frames: 64})
		if err != nil {
			return err
		}
		s, err := u.Open(t.Context(), ifindex, queue, afxdp.SocketOptions{RX: 64, TX: 64, Fill: 64, Completion: 64})
		if err != nil {
			return err
		}
		t.Cleanup(func() {
			check(t, s.Close())
			check(t, u.Close())
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// attachOther is another program that has XDP.
func attachOther(t *testing.T, ns *testbed.Namespace, ifindex int) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, p.Close()) })
	err = ns.Do(func() error {
		l, err := ebpflink.AttachXDP(ebpflink.XDPOptions{Program: p, Interface: ifindex})
		if err == nil {
			t.Cleanup(func() { check(t, l.Close()) })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMissingCapabilities(t *testing.T) {
	var all capabilities = 1<<63 - 1
	without := func(bits ...uint) capabilities {
		c := all
		for _, b := range bits {
			c &^= 1 << b
		}
		return c
	}
	tests := map[string]struct {
		have   capabilities
		pinned int
		want   []string
	}{
		"all":           {all, 1 << 50, nil},
		"no net admin":  {without(unix.CAP_NET_ADMIN), 0, []string{"CAP_NET_ADMIN"}},
		"no net raw":    {without(unix.CAP_NET_RAW), 0, []string{"CAP_NET_RAW"}},
		"sys admin":     {without(unix.CAP_BPF, unix.CAP_PERFMON), 0, nil},
		"no BPF at all": {without(unix.CAP_BPF, unix.CAP_SYS_ADMIN), 0, []string{"CAP_BPF"}},
		"no perfmon":    {without(unix.CAP_PERFMON, unix.CAP_SYS_ADMIN), 0, []string{"CAP_PERFMON"}},
		"no lock":       {without(unix.CAP_IPC_LOCK), 1 << 50, []string{"CAP_IPC_LOCK"}},
		"small lock":    {without(unix.CAP_IPC_LOCK), 0, nil},
		"nobody":        {0, 0, []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			errs := missingCapabilities(tc.have, tc.pinned)
			if len(errs) != len(tc.want) {
				t.Fatalf("%v", errs)
			}
			for i, e := range errs {
				if !strings.Contains(e.Error(), "missing capability "+tc.want[i]+", to ") || !strings.Contains(e.Error(), "run as root") {
					t.Error(e)
				}
			}
		})
	}
}

// A NIC whose driver has no XDP gets the generic one, and says so.
func TestGenericFallback(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	addLink(t, w.LB, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "plain0", Flags: net.FlagUp}})
	d := w.run(dnat("interfaces: [{name: plain0}]"))
	if n := d.logs.FilterMessage("XDP mode").FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
		t.Errorf("%d notes of the fallback\n%s", n, d.said())
	}
	if e := d.logs.FilterMessage("interface in service").All(); len(e) != 1 || e[0].ContextMap()["xdp"] != "generic" {
		t.Errorf("%v", e)
	}
	d.end()
	w.clean()

	d = w.begin(dnat("interfaces: [{name: plain0}]", "xdp_mode: native"))
	d.fails("plain0: native: XDP mode refused")
	d = w.begin(dnat("interfaces: [{name: plain0}]", "zero_copy: on"))
	d.fails("zero copy was asked for: plain0")
	w.clean()
}

// Told to stop at any moment of the start: no error, and nothing is left.
func TestStopWhileStarting(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond} {
		d := w.begin(w.Config(testbed.Services(0, "dnat", "", "rr"), small...))
		time.Sleep(after)
		d.end()
		w.clean()
	}
}

// A part that panics ends the daemon, in order.
func TestPanics(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Queues: 2, Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), append(small, "workers: 2")...))
	d.workers.Load().Publish(&dataplane.Snapshot{}) // fits no worker
	d.fails("worker", "panic", "index out of range")
	w.clean()
}

// What the loop has a worker do may panic: the loop is told, and takes the daemon down.
func TestJobPanics(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Queues: 2, Servers: 1})
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), append(small, "workers: 2")...))
	told, ran := make(chan error, 1), 0
	go func() {
		check(t, d.onLoop(t.Context(), func() {
			told <- d.onWorker(context.Background(), 0, func(*dataplane.Worker) {
				ran++
				panic("in a job")
			})
		}))
	}()
	select {
	case err := <-told:
		if !errors.Is(err, dataplane.ErrUnfinished) || ran != 1 {
			t.Errorf("ran %d times: %v", ran, err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the loop waits for a worker that has ended")
	}
	d.fails("worker 0", "panic", "in a job")
	w.clean()
}

// irqSettings are those that busy polling changes.
func (w *world) irqSettings() map[string]string {
	out := map[string]string{}
	for _, dev := range w.LBDevices() {
		for _, f := range []string{"napi_defer_hard_irqs", "gro_flush_timeout"} {
			v, err := sysfs(w.LB, dev, f)
			check(w.t, err)
			out[dev+" "+f] = v
		}
	}
	return out
}

// What a crash left is put back by the next start, and settings are at the end
// as they were.
func TestSettingsReturn(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	before := w.irqSettings()
	known := func(o *Options) { o.napi = func(*afxdp.Socket) (int, error) { return 4711, nil } }
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), append(small, "busy_poll: true")...), known)
	during := map[string]string{}
	for k := range before {
		during[k] = "2"
		if strings.HasSuffix(k, "timeout") {
			during[k] = "200000"
		}
	}
	if diff := cmp.Diff(during, w.irqSettings()); diff != "" {
		t.Error(diff)
	}
	w.ask(w.VIP(testbed.V4, 0), 5)
	if left, _ := filepath.Glob(filepath.Join(w.journal, "*.json")); len(left) != 2 {
		t.Errorf("journals: %v", left)
	}
	d.end()
	w.clean()
	if diff := cmp.Diff(before, w.irqSettings()); diff != "" {
		t.Error(diff)
	}
}

// Where busy polling has nothing to run, interrupts are not deferred, and that is
// said; where that shows with the first packet only, it is seen then.
func TestBusyPollIdle(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	before := w.irqSettings()
	var id atomic.Int64
	o := func(o *Options) { o.napi = func(*afxdp.Socket) (int, error) { return int(id.Load()), nil } }
	text := w.Config(testbed.Services(0, "dnat", "", "rr"), append(small, "busy_poll: true")...)
	d := w.run(text, o)
	if diff := cmp.Diff(before, w.irqSettings()); diff != "" {
		t.Error(diff)
	}
	w.ask(w.VIP(testbed.V4, 0), 5)
	d.awaitN("busy_poll does nothing on this interface, packets come by its interrupts", 2)
	if diff := cmp.Diff(before, w.irqSettings()); diff != "" {
		t.Error(diff)
	}
	d.end()

	d = w.run(text, o)
	id.Store(4711)
	d.awaitN("changed a NIC setting", 4)
	d.end()
	w.clean()
	if diff := cmp.Diff(before, w.irqSettings()); diff != "" {
		t.Error(diff)
	}
}

// sysfs reads a file of a device in a namespace, by a mount of its own.
func sysfs(ns *testbed.Namespace, device, file string) (string, error) {
	c := ns.Command(context.Background(), "cat", "/sys/class/net/"+device+"/"+file)
	c.PrivateSysfs = true
	out, err := c.Output()
	return strings.TrimSpace(string(out)), err
}

func TestNew(t *testing.T) {
	if _, err := New(nil, Options{}); err == nil {
		t.Error("took no configuration")
	}
	cfg := config.Defaults()
	cfg.CPUs = []int{3, 4}
	d, err := New(cfg, Options{})
	if err != nil || d.cfg.Workers != 2 || cfg.Workers != 0 {
		t.Error(err, d.cfg.Workers, cfg.Workers)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.Stats(ctx); err == nil {
		t.Error("stats of a daemon that does not run")
	}
	if err := Run(t.Context(), nil, Options{}); err == nil {
		t.Error("ran nothing")
	}
}

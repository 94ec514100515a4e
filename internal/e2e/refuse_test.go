package e2e

import (
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestRefusesToStart: what cannot work is said in words that name the culprit,
// and nothing is left changed.
func TestRefusesToStart(t *testing.T) {
	top := testbed.Up(t, testbed.TopologyOptions{Queues: 2})
	macvlan(t, top)
	config := top.Config(testbed.Services(0, fullNAT, "toa", "wrr"))
	for _, c := range []struct {
		name   string
		args   []string
		config string
		before func(t *testing.T)
		status int
		words  []string
	}{
		{name: "missing interface", args: []string{"--interface", "l0", "--interface", "gone0"},
			status: 1, words: []string{"gone0"}},
		{name: "queue taken", before: func(t *testing.T) { takeQueue(t, top.LBServer, 1) },
			args: []string{"--workers", "2"}, status: 1, words: []string{"l1", "queue 1", "taken by another AF_XDP socket"}},
		{name: "another XDP program", before: func(t *testing.T) { attachPass(t, top.LBServer) },
			status: 1, words: []string{"l1", "another XDP program is attached", "somebody_else"}},
		{name: "no native XDP", args: []string{"--interface", "m0", "--xdp-mode", "native"},
			status: 1, words: []string{"m0", "native", "refused"}},
		{name: "no zero copy", args: []string{"--zero-copy", "on"}, status: 1, words: []string{"zero copy", "l0"}},
		{name: "more workers than queues", args: []string{"--workers", "3"}, status: 1, words: []string{"3 workers", "l0"}},
		{name: "host's local address", config: config + "management_interface: \"\"\nlocal_port_range: 1024-65535\n",
			before: func(t *testing.T) { addAddress(t, top) }, status: 1, words: []string{top.LocalAddr(testbed.V4, 0).String(), "ports"}},
		{name: "bad configuration", config: strings.Replace(config, "mode: full-nat", "mode: half-nat", 1),
			status: 2, words: []string{"l4fwd.yaml:", "mode", "half-nat"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.config == "" {
				c.config = config
			}
			if c.before != nil {
				c.before(t)
			}
			devices := append(top.LBDevices(), "m0")
			state := conditionOf(t, top.LB, devices)
			out := program{args: c.args}.refuse(t, top.LB, c.config, c.status)
			for _, w := range c.words {
				if !strings.Contains(out, w) {
					t.Errorf("%q is not in what it says:\n%s", w, out)
				}
			}
			untouched(t, top.LB, devices, state)
		})
	}
}

// macvlan makes m0 over l0: an interface whose driver knows no XDP.
func macvlan(t *testing.T, top *testbed.Topology) *testbed.Device {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "m0", top.LBClient.Index
	nl := top.LB.Netlink()
	if err := nl.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		t.Fatal(err)
	}
	dev, err := nl.LinkByName("m0")
	if err != nil {
		t.Fatal(err)
	}
	if err := top.LB.OffloadsOff("m0"); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetUp(dev); err != nil {
		t.Fatal(err)
	}
	return &testbed.Device{NS: top.LB, Name: "m0", Index: dev.Attrs().Index, MAC: dev.Attrs().HardwareAddr}
}

// takeQueue is another program that uses AF_XDP.
func takeQueue(t *testing.T, dev *testbed.Device, queue int) {
	t.Helper()
	umem, err := afxdp.NewUMEM(afxdp.UMEMOptions{Frames: 64})
	if err != nil {
		t.Fatal(err)
	}
	var s *afxdp.Socket
	err = dev.NS.Do(func() (err error) {
		s, err = umem.Open(context.Background(), dev.Index, queue, afxdp.SocketOptions{RX: 64, TX: 64, Fill: 64, Completion: 64})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := umem.Close(); err != nil {
			t.Error(err)
		}
	})
}

// attachPass is another program that uses XDP.
func attachPass(t *testing.T, dev *testbed.Device) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}}) // XDP_PASS
	if err != nil {
		t.Fatal(err)
	}
	var l link.Link
	err = dev.NS.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := prog.Close(); err != nil {
			t.Error(err)
		}
	})
}

// addAddress gives the host a local address of l4fwd's for the test.
func addAddress(t *testing.T, top *testbed.Topology) {
	t.Helper()
	dev, err := top.LB.Netlink().LinkByName("l1")
	if err != nil {
		t.Fatal(err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: top.LocalAddr(testbed.V4, 0).AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := top.LB.Netlink().AddrAdd(dev, a); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.LB.Netlink().AddrDel(dev, a); err != nil {
			t.Error(err)
		}
	})
}

// as makes a child an unprivileged user with no capabilities but these.
// Reading the binary and the configuration, which root keeps to itself, is one.
func as(caps ...uintptr) func(*testbed.Cmd) {
	return func(c *testbed.Cmd) {
		const nobody = 65534
		c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		c.SysProcAttr.AmbientCaps = append(caps, unix.CAP_DAC_OVERRIDE)
	}
}

// TestCapabilities: an unprivileged user that lacks a capability is told which
// and what for; with those that l4fwd asks for, and no more, it runs.
func TestCapabilities(t *testing.T) {
	enough := []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_IPC_LOCK}
	for i, name := range []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"} {
		t.Run("without "+name, func(t *testing.T) {
			top := testbed.Up(t, testbed.TopologyOptions{})
			state := conditionOf(t, top.LB, top.LBDevices())
			path, args, _ := program{}.command(t, top.Config(testbed.Services(0, fullNAT, "toa", "wrr")))
			var caps []uintptr
			for k, c := range enough {
				if k != i {
					caps = append(caps, c)
				}
			}
			proc, err := top.LB.StartProcess(t.Context(), testbed.ProcessOptions{Path: path, Args: args, Prepare: as(caps...)})
			if err != nil {
				t.Fatal(err)
			}
			out := refused(t, proc, 1)
			if !strings.Contains(out, "missing capability "+name) || !strings.Contains(out, "setcap") {
				t.Errorf("it says:\n%s", out)
			}
			untouched(t, top.LB, top.LBDevices(), state)
		})
	}
	t.Run("enough", func(t *testing.T) {
		r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
		state := conditionOf(t, r.LB, r.LBDevices())
		if err := os.MkdirAll("/run/l4fwd", 0o755); err != nil {
			t.Fatal(err)
		}
		p := program{prepare: as(enough...)}
		d := p.start(t, r.LB, r.Config(testbed.Services(0, fullNAT, "", "wrr")))
		r.warmUp()
		d.stop()
		untouched(t, r.LB, r.LBDevices(), state)
	})
}

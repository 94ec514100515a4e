package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// VLANs of a Topology with a trunk.
const (
	VLANClient = 10
	VLANServer = 20
)

// Offsets in struct __sk_buff and codes of TCX (linux/bpf.h).
const (
	skbVLANPresent = 20
	skbVLANTCI     = 24
	tcxNext        = -1
)

// Trunk makes the device a cable of several VLANs, each of which a device of the same
// namespace stands for: what comes in by the trunk with its tag (IEEE 802.1Q) leaves by
// that device without, and the other way round. What has another tag, or none, is left
// to the kernel. It is made of BPF programs, as a kernel may be built without VLANs, and
// lasts until the returned Closer's or the devices' end.
func (d *Device) Trunk(vlans map[uint16]*Device) (io.Closer, error) {
	var all closers
	fail := func(err error) (io.Closer, error) {
		return nil, errors.Join(fmt.Errorf("trunk %s in %s: %w", d.Name, d.NS.role, err), all.Close())
	}
	for id, access := range vlans {
		out := asm.Instructions{
			asm.LoadImm(asm.R2, int64(onWire(unix.ETH_P_8021Q)), asm.DWord),
			asm.Mov.Imm(asm.R3, int32(id)),
			asm.FnSkbVlanPush.Call(),
		}
		if err := all.attach(access, append(out, redirect(d.Index)...)); err != nil {
			return fail(err)
		}
	}
	in := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, skbVLANPresent, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "next"),
		asm.LoadMem(asm.R2, asm.R6, skbVLANTCI, asm.Word),
		asm.And.Imm(asm.R2, 0xfff),
	}
	for id, access := range vlans {
		skip := fmt.Sprintf("not%d", id)
		in = append(in, asm.JNE.Imm(asm.R2, int32(id), skip), asm.Mov.Reg(asm.R1, asm.R6), asm.FnSkbVlanPop.Call())
		in = append(in, redirect(access.Index)...)
		in = append(in, asm.Mov.Imm(asm.R0, 0).WithSymbol(skip)) // a place to jump to
	}
	in = append(in, asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"), asm.Return())
	if err := all.attach(d, in); err != nil {
		return fail(err)
	}
	return &all, nil
}

// redirect sends the packet out by a device, and ends the program.
func redirect(ifindex int) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R1, int32(ifindex)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return()}
}

// onWire is a 16-bit number in network order.
func onWire(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// closers are closed together.
type closers []io.Closer

// attach runs a program on whatever comes in by a device.
func (c *closers) attach(d *Device, program asm.Instructions) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: program, License: "Dual BSD/GPL"})
	if err != nil {
		return fmt.Errorf("program for %s: %w", d.Name, err)
	}
	*c = append(*c, prog)
	return d.NS.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return fmt.Errorf("attaching to %s: %w", d.Name, err)
		}
		*c = append(*c, l)
		return nil
	})
}

// Close closes all.
func (c *closers) Close() error {
	var errs []error
	for _, one := range *c {
		errs = append(errs, one.Close())
	}
	*c = nil
	return errors.Join(errs...)
}

// vlanDevice makes a device that stands for a VLAN of one in the same namespace, whose
// MAC address it has, and returns its other end, for Trunk. It is a veth, which the
// kernel does not know to be a VLAN.
func (d *Device) vlanDevice(id uint16, addrs []netip.Prefix) (dev, inner *Device, err error) {
	dev, inner, err = Veth(d.NS, fmt.Sprintf("%s.%d", d.Name, id), d.NS, fmt.Sprintf("%s-%d", d.Name, id), VethOptions{})
	if err != nil {
		return nil, nil, err
	}
	if err := dev.setMAC(d.MAC); err != nil {
		return nil, nil, err
	}
	for _, p := range addrs {
		if err := dev.AddAddr(p); err != nil {
			return nil, nil, err
		}
	}
	return dev, inner, inner.mute()
}

// setMAC gives the device another MAC address.
func (d *Device) setMAC(mac net.HardwareAddr) error {
	l, err := d.NS.nl.LinkByIndex(d.Index)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	if err := d.NS.nl.LinkSetHardwareAddr(l, mac); err != nil {
		return fmt.Errorf("MAC address of %s: %w", d.Name, err)
	}
	d.MAC = mac
	return nil
}

// mute keeps the kernel from speaking IPv6 on a device by itself.
func (d *Device) mute() error { return d.NS.Sysctl("net/ipv6/conf/"+d.Name+"/disable_ipv6", "1") }

// connectTrunk wires l4fwd's only device: a trunk of the clients' and the servers' VLAN,
// which at its far end the switch takes apart again.
//
//	lb[l0.10, l0.20] ~ l0 ── lb ~ br1 (VLAN 10), br0 (VLAN 20)
func (t *Topology) connectTrunk() error {
	d, port, err := Veth(t.LB, "l0", t.Switch, "lb", VethOptions{Queues: t.Options.Queues, MTU: t.Options.MTU})
	if err != nil {
		return err
	}
	t.LBTrunk = d
	if err := errors.Join(d.mute(), port.mute()); err != nil {
		return err
	}
	inside, outside := map[uint16]*Device{}, map[uint16]*Device{}
	for _, v := range []struct {
		id     uint16
		bridge string
		nets   map[Family]netip.Prefix
		dev    **Device
	}{{VLANClient, clientBridge, ClientNet, &t.LBClient}, {VLANServer, "br0", ServerNet, &t.LBServer}} {
		if *v.dev, inside[v.id], err = d.vlanDevice(v.id, prefixesOf(v.nets, hostLB)); err != nil {
			return err
		}
		onBridge, inner, err := Veth(t.Switch, fmt.Sprintf("vlan%d", v.id), t.Switch, fmt.Sprintf("lb-%d", v.id), VethOptions{MTU: t.Options.MTU})
		if err != nil {
			return err
		}
		if err := errors.Join(onBridge.Join(v.bridge), inner.mute()); err != nil {
			return err
		}
		outside[v.id] = inner
	}
	for _, end := range []struct {
		trunk *Device
		vlans map[uint16]*Device
	}{{d, inside}, {port, outside}} {
		c, err := end.trunk.Trunk(end.vlans)
		if err != nil {
			return err
		}
		t.trunks = append(t.trunks, c)
	}
	return nil
}

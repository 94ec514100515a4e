package rs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf/rlimit"

	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// DefaultGUEPort is the UDP port that IANA has given to GUE.
const DefaultGUEPort = 6080

// DecapOptions say what is taken out of its tunnel.
type DecapOptions struct {
	// Interfaces are those that tunnels come in by; at least one.
	Interfaces []string
	// VIPs are the addresses inside. Tunnels with other packets are left alone.
	VIPs []netip.Addr
	// From are those who may send tunnels, by the outer source address; none =
	// everybody.
	From []netip.Prefix
	// GUEPort and FOUPort are UDP ports; 0 = that kind of tunnel is left alone.
	GUEPort, FOUPort uint16
	// Mode is how the program is attached.
	Mode steer.Mode
}

func (o *DecapOptions) check() error {
	if len(o.Interfaces) == 0 || len(o.VIPs) == 0 {
		return fmt.Errorf("%w: an interface and a VIP have to be named", ErrOptions)
	}
	for _, v := range o.VIPs {
		if !v.IsValid() || v.Is4In6() || v.Zone() != "" || v.IsUnspecified() || v.IsMulticast() {
			return fmt.Errorf("%w: %s is no VIP", ErrOptions, v)
		}
	}
	if o.GUEPort != 0 && o.GUEPort == o.FOUPort {
		return fmt.Errorf("%w: GUE and FOU on one port, %d", ErrOptions, o.GUEPort)
	}
	if len(o.From) == 0 {
		o.From = []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 0)} // IPv4 is mapped into it
	}
	return checkSources(o.From)
}

// maxHosts is how many addresses of its own a host may have.
const maxHosts = 65536

// Decap is the program that takes packets out of tunnels, attached to interfaces
// for as long as the process lives or until Close.
type Decap struct {
	attached
	// Notes are about how it is attached, one sentence each, for the log.
	Notes []string

	opts   DecapOptions
	objs   *decapObjects
	follow follower
}

// AttachDecap attaches it to interfaces of the calling thread's network namespace
// and learns the host's addresses; Follow keeps them up to date. It needs CAP_BPF,
// CAP_PERFMON and CAP_NET_ADMIN. An interface that has an XDP program gives steer.ErrAttached.
func AttachDecap(o DecapOptions) (*Decap, error) {
	d, err := loadDecapProgram(o)
	if err != nil {
		return nil, err
	}
	if err := d.attach(); err != nil {
		_ = d.Close() // nothing that the error does not say better
		return nil, err
	}
	return d, nil
}

// loadDecapProgram loads the program and fills all its maps but that of the host's
// addresses.
func loadDecapProgram(o DecapOptions) (*Decap, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	_ = rlimit.RemoveMemlock() // as in AttachTOA
	spec, err := loadDecap()
	if err != nil {
		return nil, fmt.Errorf("decapsulation program: %w", err)
	}
	err = errors.Join(spec.Variables[decapVarGuePort].Set(htons(o.GUEPort)), spec.Variables[decapVarFouPort].Set(htons(o.FOUPort)))
	if err != nil {
		return nil, fmt.Errorf("UDP ports: %w", err)
	}
	spec.Maps[decapMapVips].MaxEntries = uint32(len(o.VIPs))
	spec.Maps[decapMapSources].MaxEntries = uint32(len(o.From))
	spec.Maps[decapMapHosts].MaxEntries = maxHosts
	objs := new(decapObjects)
	if err := spec.LoadAndAssign(objs, nil); err != nil {
		return nil, permission(fmt.Errorf("load decapsulation program: %w", err))
	}
	d := &Decap{attached: attached{stats: objs.Stats, objs: objs}, opts: o, objs: objs}
	if err := d.fill(); err != nil {
		_ = d.Close() // as above
		return nil, err
	}
	return d, nil
}

// htons puts a port into network order.
func htons(port uint16) (v [2]byte) { return [2]byte{byte(port >> 8), byte(port)} }

// vipKey is struct vip of decap.c.
type vipKey struct {
	Addr   [16]byte
	Family uint32 // 4 or 6
}

// fill fills the maps that do not change.
func (d *Decap) fill() error {
	for _, v := range d.opts.VIPs {
		k := vipKey{v.As16(), 6}
		if v.Is4() {
			k.Family = 4
		}
		if err := d.objs.Vips.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("VIP %s: %w", v, err)
		}
	}
	return trust(d.objs.Sources, d.opts.From)
}

// attach learns the host's addresses and attaches the program, everywhere or
// nowhere.
func (d *Decap) attach() (err error) {
	if err := d.follow.open(); err != nil {
		return err
	}
	if err := d.syncHosts(); err != nil {
		return err
	}
	a := About{Program: "decap", Interfaces: d.opts.Interfaces, VIPs: d.opts.VIPs, GUEPort: d.opts.GUEPort, FOUPort: d.opts.FOUPort, From: d.opts.From}
	if d.about, err = bindAbout(d.objs.L4fwdDecap, a); err != nil {
		return err
	}
	d.Notes, err = d.attachXDP(d.objs.L4fwdDecap, d.opts.Interfaces, d.opts.Mode)
	return err
}

// Missing are the VIPs that the host has not got: what comes out of a tunnel for
// one of them goes nowhere.
func (d *Decap) Missing() []netip.Addr {
	var out []netip.Addr
	for _, v := range d.opts.VIPs {
		if !slices.Contains(d.follow.hosts, v) {
			out = append(out, v)
		}
	}
	return out
}

// Stats reads the counters, in the order of DecapCounter.
func (d *Decap) Stats() ([]Count, error) { return readCounts(d.stats, decapCounterNames[:]) }

// Close detaches the program.
func (d *Decap) Close() error {
	d.follow.close()
	return d.attached.Close()
}

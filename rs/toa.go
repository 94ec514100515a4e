package rs

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
)

// DefaultTOAKind is the option kind of DPVS's TOA module and of l4fwd.
const DefaultTOAKind = 254

// TOAOptions say where clients are named and by whom.
type TOAOptions struct {
	// Cgroup is a directory of the cgroup2 file system; what runs in it or below
	// sees clients' addresses. "" = the root.
	Cgroup string
	// From are the balancers: the local addresses that connections come from.
	// Nobody else's TOA is believed. At least one.
	From []netip.Prefix
	// Kinds are the option kinds that are TOA; none = DefaultTOAKind.
	Kinds []uint8
	// Getsockopt answers package toa too. It costs a little in every getsockopt
	// of the cgroup.
	Getsockopt bool
}

// check fills in the defaults.
func (o *TOAOptions) check() error {
	if len(o.From) == 0 {
		return fmt.Errorf("%w: whose TOA to believe has to be said", ErrOptions)
	}
	if err := checkSources(o.From); err != nil {
		return err
	}
	if len(o.Kinds) == 0 {
		o.Kinds = []uint8{DefaultTOAKind}
	}
	for _, k := range o.Kinds {
		// Those of RFC 9293, window scale, SACK, timestamps, MD5, MPTCP, Fast Open.
		if k <= 5 || k == 8 || k == 19 || k == 30 || k == 34 {
			return fmt.Errorf("%w: option kind %d has a meaning of its own", ErrOptions, k)
		}
	}
	return checkCgroup(&o.Cgroup)
}

// TOA is the programs that show clients' addresses, attached to a cgroup for as
// long as the process lives or until Close.
type TOA struct {
	attached
	opts TOAOptions
}

// AttachTOA attaches them. Connections that are open already are not changed;
// servers that run need no restart. It needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
func AttachTOA(o TOAOptions) (*TOA, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; creating them says so
	// where it cannot be raised and is too small.
	_ = rlimit.RemoveMemlock()
	spec, err := loadToa()
	if err != nil {
		return nil, fmt.Errorf("TOA programs: %w", err)
	}
	var kinds [256]uint8
	for _, k := range o.Kinds {
		kinds[k] = 1
	}
	vars := map[string]any{toaVarKinds: kinds, toaVarMptcp: uint8(0)}
	if features.HaveProgramHelper(ebpf.SockOps, asm.FnSkcToMptcpSock) == nil {
		vars[toaVarMptcp] = uint8(1)
	}
	for name, v := range vars {
		if err := spec.Variables[name].Set(v); err != nil {
			return nil, fmt.Errorf("TOA program's %s: %w", name, err)
		}
	}
	spec.Maps[toaMapSources].MaxEntries = uint32(len(o.From))
	objs := new(toaObjects)
	if err := spec.LoadAndAssign(objs, nil); err != nil {
		return nil, permission(fmt.Errorf("load TOA programs: %w", err))
	}
	t := &TOA{attached{stats: objs.Stats, objs: objs}, o}
	if err := t.attach(objs); err != nil {
		_ = t.Close() // nothing that the error does not say better
		return nil, err
	}
	return t, nil
}

// attach says what the programs are about and attaches them, the one that learns
// clients last.
func (t *TOA) attach(objs *toaObjects) (err error) {
	if err := trust(objs.Sources, t.opts.From); err != nil {
		return err
	}
	a := About{Program: "toa", Cgroup: t.opts.Cgroup, Getsockopt: t.opts.Getsockopt, From: t.opts.From}
	for _, k := range t.opts.Kinds {
		a.Kinds = append(a.Kinds, int(k))
	}
	if t.about, err = bindAbout(objs.L4fwdToaOps, a); err != nil {
		return err
	}
	hooks := []hook{
		{ebpf.AttachCgroupInet4GetPeername, objs.L4fwdToaPeer4},
		{ebpf.AttachCgroupInet6GetPeername, objs.L4fwdToaPeer6},
		{ebpf.AttachCGroupSockOps, objs.L4fwdToaOps},
	}
	if t.opts.Getsockopt {
		hooks = slices.Insert(hooks, 0, hook{ebpf.AttachCGroupGetsockopt, objs.L4fwdToaOpt})
	}
	return t.attachCgroup(t.opts.Cgroup, hooks)
}

// Stats reads the counters, in the order of TOACounter.
func (t *TOA) Stats() ([]Count, error) { return readCounts(t.stats, toaCounterNames[:]) }

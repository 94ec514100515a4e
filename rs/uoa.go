package rs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// Defaults of UOAOptions.
const (
	DefaultUOAClients = 65536
	DefaultUOATimeout = 6 * time.Minute // that of DPVS's module
)

// UOAOptions say where UDP clients are named and by whom.
type UOAOptions struct {
	// Interfaces are those that the balancers' datagrams come in by; at least one.
	Interfaces []string
	// Cgroup is as in TOAOptions.
	Cgroup string
	// From are the balancers: the local addresses that datagrams come from. Nobody
	// else's UOA is believed. At least one.
	From []netip.Prefix
	// Clients is how many are known at a time, each in about 500 bytes; 0 =
	// DefaultUOAClients. Beyond them those not needed for the longest time go.
	Clients int
	// Timeout is for how long one that is not needed stays known. It should be longer
	// than a balancer keeps a flow, and shorter than it takes to use a port again. 0 =
	// DefaultUOATimeout.
	Timeout time.Duration
	// Keep is a directory of a BPF file system in which the clients are kept, so that
	// the next UOA with the same directory knows them; without it they are forgotten
	// with this one. One directory serves one UOA at a time.
	Keep string
	// Getsockopt answers package uoa too. It costs a little in every setsockopt and
	// getsockopt of the cgroup.
	Getsockopt bool
	// Mode is how the program at the interfaces is attached.
	Mode steer.Mode
}

// maxUOAClients bounds the memory that a slip of the finger asks for.
const maxUOAClients = 1 << 24

// check fills in the defaults.
func (o *UOAOptions) check() error {
	if o.Clients == 0 {
		o.Clients = DefaultUOAClients
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultUOATimeout
	}
	switch {
	case len(o.Interfaces) == 0 || len(o.From) == 0:
		return fmt.Errorf("%w: an interface, and whose UOA to believe, have to be said", ErrOptions)
	case o.Clients < 1 || o.Clients > maxUOAClients:
		return fmt.Errorf("%w: %d clients; at least 1 and at most %d", ErrOptions, o.Clients, maxUOAClients)
	case o.Timeout < time.Second:
		return fmt.Errorf("%w: a timeout of %s; at least 1s", ErrOptions, o.Timeout)
	}
	if err := checkSources(o.From); err != nil {
		return err
	}
	return checkCgroup(&o.Cgroup)
}

// UOA is the programs that show UDP clients' addresses, attached to interfaces and a
// cgroup for as long as the process lives or until Close.
type UOA struct {
	attached
	// Notes are about how it is attached, one sentence each, for the log.
	Notes []string

	opts UOAOptions
}

// AttachUOA attaches them, in the network namespace of the calling thread. Servers that
// run need no restart. It needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN. An interface that
// has an XDP program gives steer.ErrAttached.
func AttachUOA(o UOAOptions) (*UOA, error) {
	u, objs, err := loadUOAPrograms(o)
	if err != nil {
		return nil, err
	}
	if err := u.attach(objs); err != nil {
		_ = u.Close() // nothing that the error does not say better
		return nil, err
	}
	return u, nil
}

// loadUOAPrograms loads them and fills their maps.
func loadUOAPrograms(o UOAOptions) (*UOA, *uoaObjects, error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	_ = rlimit.RemoveMemlock() // as in AttachTOA
	spec, err := loadUoa()
	if err != nil {
		return nil, nil, fmt.Errorf("UOA programs: %w", err)
	}
	if err := spec.Variables[uoaVarTimeout].Set(uint64(o.Timeout)); err != nil {
		return nil, nil, fmt.Errorf("UOA programs' timeout: %w", err)
	}
	spec.Maps[uoaMapClients].MaxEntries = 2 * uint32(o.Clients) // see note in uoa.c
	spec.Maps[uoaMapWays].MaxEntries = uint32(o.Clients)
	spec.Maps[uoaMapSources].MaxEntries = uint32(len(o.From))
	objs := new(uoaObjects)
	notes, err := o.load(spec, objs)
	if err != nil {
		return nil, nil, permission(fmt.Errorf("load UOA programs: %w", err))
	}
	u := &UOA{attached: attached{stats: objs.Stats, objs: objs}, Notes: notes, opts: o}
	if err := trust(objs.Sources, o.From); err != nil {
		return nil, nil, errors.Join(err, u.Close())
	}
	return u, objs, nil
}

// keptAs is the directory below UOAOptions.Keep: with the layout of what is kept its
// name changes.
const keptAs = "l4fwd-uoa-1"

// load loads the programs, with the maps of clients that were kept, if any are to be.
func (o *UOAOptions) load(spec *ebpf.CollectionSpec, objs *uoaObjects) (notes []string, err error) {
	if o.Keep == "" {
		return nil, spec.LoadAndAssign(objs, nil)
	}
	dir := filepath.Join(o.Keep, keptAs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep clients: %w", err)
	}
	kept := []string{uoaMapClients, uoaMapWays}
	for _, m := range kept {
		spec.Maps[m].Pinning = ebpf.PinByName
	}
	with := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}}
	if err = spec.LoadAndAssign(objs, with); !errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, err
	}
	for _, m := range kept {
		if err := os.Remove(filepath.Join(dir, m)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("clients that were kept: %w", err)
		}
	}
	notes = append(notes, "the clients that were kept are forgotten: there is to be another number of them")
	return notes, spec.LoadAndAssign(objs, with)
}

// attach says what the programs are about and attaches them: first what leads answers
// back, last what learns clients.
func (u *UOA) attach(objs *uoaObjects) (err error) {
	a := About{Program: "uoa", Cgroup: u.opts.Cgroup, Getsockopt: u.opts.Getsockopt, Interfaces: u.opts.Interfaces, From: u.opts.From}
	if u.about, err = bindAbout(objs.L4fwdUoa, a); err != nil {
		return err
	}
	hooks := []hook{
		{ebpf.AttachCGroupUDP4Sendmsg, objs.L4fwdUoaSend4},
		{ebpf.AttachCGroupUDP6Sendmsg, objs.L4fwdUoaSend6},
		{ebpf.AttachCGroupInet4Connect, objs.L4fwdUoaConn4},
		{ebpf.AttachCGroupInet6Connect, objs.L4fwdUoaConn6},
		{ebpf.AttachCgroupInet4GetPeername, objs.L4fwdUoaPeer4},
		{ebpf.AttachCgroupInet6GetPeername, objs.L4fwdUoaPeer6},
		{ebpf.AttachCGroupUDP4Recvmsg, objs.L4fwdUoaRecv4},
		{ebpf.AttachCGroupUDP6Recvmsg, objs.L4fwdUoaRecv6},
	}
	if u.opts.Getsockopt {
		hooks = append(hooks, hook{ebpf.AttachCGroupGetsockopt, objs.L4fwdUoaTell}, hook{ebpf.AttachCGroupSetsockopt, objs.L4fwdUoaAsk})
	}
	if err = u.attachCgroup(u.opts.Cgroup, hooks); err != nil {
		return err
	}
	notes, err := u.attachXDP(objs.L4fwdUoa, u.opts.Interfaces, u.opts.Mode)
	u.Notes = append(u.Notes, notes...)
	return err
}

// Stats reads the counters, in the order of UOACounter.
func (u *UOA) Stats() ([]Count, error) { return readCounts(u.stats, uoaCounterNames[:]) }

package follow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

// Options say what to follow and whom to tell. The callbacks run on Run's
// goroutine and must not block; a nil one is not called.
type Options struct {
	Links     []string       // names of the data NICs; the index here is route.Hop.Port
	VLANs     []VLAN         // beside those that the kernel's VLAN interfaces tell of
	Namespace netns.NsHandle // network namespace; zero or netns.None(): that of Run's caller
	Log       *zap.Logger    // nil: silent

	// OnRoutes gets every new table, the first before anything else changes.
	// The table is immutable and the receiver's to keep.
	OnRoutes func(*route.Table)
	// OnHostAddrs gets all addresses of all interfaces, sorted, whenever they
	// changed and once at first, before OnRoutes. The slice is the receiver's.
	OnHostAddrs func([]netip.Addr)
	// OnLink gets one event for each data NIC at first and one for each change.
	OnLink func(LinkEvent)

	Resync time.Duration // read everything again this often; 0: 30 s
	Probe  time.Duration // look after kept neighbours this often; 0: 3 s

	buffer int // bytes of notifications; 0: bufferSize
}

// VLAN says that an interface of whatever kind stands for a VLAN of a data NIC: a
// bridge over the NIC's VLAN interface, say. It goes before such an interface of the
// same VLAN.
type VLAN struct {
	Name string // of the interface
	Port int    // index in Options.Links
	ID   uint16 // IEEE 802.1Q
}

// LinkEvent is the state of a data NIC after a change.
type LinkEvent struct {
	Name  string
	Index int  // interface index; with Gone the last one, 0 if there never was one
	Up    bool // administratively up, with carrier
	Gone  bool // there is no interface of this name
	MAC   [6]byte
	MTU   int // bytes of IP packet
}

const (
	debounce    = 5 * time.Millisecond  // events come in swarms
	minInterval = 50 * time.Millisecond // between two readings
	// After a reading that took long, of a core's time, wait this many times
	// longer: a full BGP table must not keep a core busy.
	maxShare   = 10
	retryAfter = time.Second // after netlink refused
	// Losing notifications is repaired by reading all again: a large buffer
	// only makes that rare.
	bufferSize = 4 << 20
)

// What a notification makes out of date.
const (
	dirtyLinks = 1 << iota
	dirtyAddrs
	dirtyRoutes
	dirtyNeighs
	dirtyKeep // nothing of the kernel's, but the set of Keep
	dirtyAll  = 1<<iota - 1
)

// Follower follows one network namespace. Make one with New, start it with Run.
type Follower struct {
	opt   Options
	log   *zap.Logger
	dirty atomic.Uint32 // what must be read again
	wake  chan struct{} // capacity 1: dirty is not zero
	asks  chan netip.Addr

	mu     sync.Mutex
	keep   []netip.Addr
	limits map[netip.Addr]limit
	keys   []hopKey // of the last table published

	// Run's goroutine only:
	handle *netlink.Handle
	state  state
	build  *builder
	events map[string]LinkEvent // last told
	hosts  []netip.Addr         // last told
	asked  limiter
}

// New returns a Follower. It fails on a configuration that names no data NIC,
// or one twice, or more than 65535, or a VLAN of none.
func New(opt Options) (*Follower, error) {
	if len(opt.Links) == 0 || len(opt.Links) > 0xffff {
		return nil, fmt.Errorf("following routes: %d data NICs named, need 1 to 65535", len(opt.Links))
	}
	opt.Links = slices.Clone(opt.Links)
	for i, name := range opt.Links {
		if slices.Index(opt.Links, name) != i {
			return nil, fmt.Errorf("following routes: data NIC %s named twice", name)
		}
	}
	for _, v := range opt.VLANs {
		if v.Port < 0 || v.Port >= len(opt.Links) || v.ID == 0 || v.ID > 4094 || slices.Contains(opt.Links, v.Name) {
			return nil, fmt.Errorf("following routes: %+v is no VLAN of a data NIC", v)
		}
	}
	if opt.Resync <= 0 {
		opt.Resync = 30 * time.Second
	}
	if opt.Probe <= 0 {
		opt.Probe = 3 * time.Second
	}
	if opt.buffer <= 0 {
		opt.buffer = bufferSize
	}
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	return &Follower{
		opt: opt, log: opt.Log,
		wake: make(chan struct{}, 1), asks: make(chan netip.Addr, 1024),
		// Random: a flow table may outlive this process, with generations in it.
		build:  newBuilder(opt.Links, opt.VLANs, max(1, rand.Uint32())),
		events: map[string]LinkEvent{},
		limits: map[netip.Addr]limit{},
		asked:  newLimiter(),
	}, nil
}

// Run reads the kernel's state, tells it, and follows it until ctx is done,
// when it returns nil. It may be called once.
func (f *Follower) Run(ctx context.Context) error {
	handle, socket, err := f.open()
	if err != nil {
		return err
	}
	f.handle = handle
	failed := make(chan error, 1)
	var listener sync.WaitGroup
	listener.Go(func() { failed <- f.listen(socket) })
	defer handle.Close()
	defer listener.Wait()
	defer socket.Close()

	f.dirty.Store(dirtyAll)
	if err := f.sync(); err != nil {
		return err
	}
	return f.loop(ctx, failed)
}

// isHere reports whether ns is the calling thread's namespace.
func isHere(ns netns.NsHandle) bool {
	here, err := netns.Get()
	if err != nil {
		return false
	}
	defer func() { _ = here.Close() }()
	return here.Equal(ns)
}

// open subscribes before anything is read, so that no change is missed.
func (f *Follower) open() (*netlink.Handle, *nl.NetlinkSocket, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns := f.opt.Namespace
	// To enter a namespace takes CAP_SYS_ADMIN, even if one is in it already.
	if ns <= 0 || isHere(ns) {
		ns = netns.None()
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	socket, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("subscribing to netlink: %w", err)
	}
	if err := socket.SetReceiveBufferSize(f.opt.buffer, true); err != nil {
		f.log.Debug("netlink receive buffer stays small", zap.Error(err))
	}
	return handle, socket, nil
}

// listen marks what notifications are about until the socket is closed.
func (f *Follower) listen(socket *nl.NetlinkSocket) error {
	for {
		msgs, from, err := socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			f.log.Warn("netlink notifications were lost, reading everything again")
			f.mark(dirtyAll)
			continue
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("receiving netlink notifications: %w", err)
		case from.Pid != nl.PidKernel:
			continue
		}
		bits := uint32(0)
		for _, m := range msgs {
			bits |= concerns(m.Header.Type)
		}
		f.mark(bits)
	}
}

// concerns says what a notification makes out of date. Links and addresses
// take routes with them, of which the kernel does not always tell.
func concerns(msg uint16) uint32 {
	switch msg {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return dirtyLinks | dirtyRoutes
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return dirtyAddrs | dirtyRoutes
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return dirtyRoutes
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return dirtyNeighs
	}
	return 0
}

func (f *Follower) mark(bits uint32) {
	if bits == 0 {
		return
	}
	f.dirty.Or(bits)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Follower) loop(ctx context.Context, failed <-chan error) error {
	resync, probe := time.NewTicker(f.opt.Resync), time.NewTicker(f.opt.Probe)
	defer resync.Stop()
	defer probe.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	armed, earliest := false, time.Time{}
	f.probe()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-resync.C:
			f.mark(dirtyAll)
		case <-probe.C:
			f.probe()
		case a := <-f.asks:
			f.ask(a)
		case <-f.wake:
			if !armed {
				armed = true
				due.Reset(max(debounce, time.Until(earliest)))
			}
		case <-due.C:
			armed = false
			pause := minInterval
			took, err := cpuTime(f.sync)
			if err != nil {
				f.log.Warn("cannot follow the kernel's routes, trying again", zap.Error(err))
				f.mark(dirtyAll)
				pause = retryAfter
			}
			earliest = time.Now().Add(max(pause, maxShare*took))
		}
	}
}

// cpuTime runs fn and tells the core's time it took. That others had the core, as
// spinning workers may, is no reason to wait still longer.
func cpuTime(fn func() error) (took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var from, to unix.Timespec
	clock := func(ts *unix.Timespec) error { return unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, ts) }
	err = errors.Join(clock(&from), fn(), clock(&to))
	return time.Duration(to.Nano() - from.Nano()), err
}

// sync reads what is out of date and tells what changed by it.
func (f *Follower) sync() error {
	bits := f.dirty.Swap(0)
	var err error
	if bits&dirtyLinks != 0 {
		if f.state.links, err = readLinks(f.handle); err != nil {
			return err
		}
		f.tellLinks()
	}
	if bits&dirtyAddrs != 0 {
		if f.state.hosts, f.state.own, err = readHosts(f.handle); err != nil {
			return err
		}
		f.tellHosts()
	}
	if bits&dirtyRoutes != 0 {
		if f.state.routes, err = readRoutes(f.handle); err != nil {
			return err
		}
	}
	rebuild := bits&^dirtyNeighs != 0
	if bits&dirtyNeighs != 0 {
		neighs, err := readNeighs(f.handle)
		if err != nil {
			return err
		}
		rebuild = rebuild || f.neighsMatter(neighs)
		f.state.neighs = neighs
	}
	if rebuild {
		f.tellRoutes()
	}
	if bits&dirtyKeep != 0 {
		f.probe()
	}
	return nil
}

// neighsMatter reports whether a new set of neighbours means more to us than
// the passing of states, which happens every few seconds.
func (f *Follower) neighsMatter(now map[neighKey]neigh) bool {
	return f.anyNews(f.state.neighs, now) || f.anyNews(now, f.state.neighs)
}

// anyNews reports whether a has a usable neighbour that b has not, or not so.
func (f *Follower) anyNews(a, b map[neighKey]neigh) bool {
	for k, n := range a {
		if !n.usable || k.addr.IsMulticast() {
			continue
		}
		if _, ours := f.build.egress[k.link]; !ours {
			continue
		}
		if o := b[k]; !o.usable || o.mac != n.mac {
			return true
		}
	}
	return false
}

func (f *Follower) tellRoutes() {
	f.mu.Lock()
	keep := f.keep
	f.mu.Unlock()
	f.build.limits = f.limited(time.Now())
	table, changed := f.build.build(&f.state, keep)
	if f.build.reg.full {
		f.log.Warn("more than 65535 next hops: some neighbours have none of their own")
	}
	if !changed {
		return
	}
	f.mu.Lock()
	f.keys = slices.Clone(f.build.reg.keys)
	f.mu.Unlock()
	if f.opt.OnRoutes != nil {
		f.opt.OnRoutes(table)
	}
	f.probe() // of new gateways
}

func (f *Follower) tellHosts() {
	if f.hosts != nil && slices.Equal(f.hosts, f.state.hosts) {
		return
	}
	f.hosts = append([]netip.Addr{}, f.state.hosts...)
	if f.opt.OnHostAddrs != nil {
		f.opt.OnHostAddrs(slices.Clone(f.hosts))
	}
}

// tellLinks compares by name; a new index under an old name is an interface
// that went and another that came.
func (f *Follower) tellLinks() {
	now := make(map[string]LinkEvent, len(f.opt.Links))
	for _, l := range f.state.links {
		if l.tag == 0 && slices.Contains(f.opt.Links, l.name) {
			now[l.name] = LinkEvent{Name: l.name, Index: l.index, Up: l.up, MAC: l.mac, MTU: l.mtu}
		}
	}
	tell := func(e LinkEvent) {
		f.events[e.Name] = e
		if f.opt.OnLink != nil {
			f.opt.OnLink(e)
		}
	}
	for _, name := range f.opt.Links {
		old, known := f.events[name]
		e, exists := now[name]
		gone := LinkEvent{Name: name, Index: old.Index, Gone: true}
		switch {
		case !exists && (!known || !old.Gone):
			tell(gone)
		case exists && known && !old.Gone && old.Index != e.Index:
			tell(gone)
			tell(e)
		case exists && e != old:
			tell(e)
		}
	}
}

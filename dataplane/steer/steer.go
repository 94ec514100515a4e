package steer

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Options size the maps. Zero values mean the defaults.
type Options struct {
	// MaxQueues is the highest number of receive queues of any NIC; 64.
	MaxQueues int
	// MaxAddresses is how many different addresses Rules may name; 16,384.
	MaxAddresses int
	// MaxEndpoints is how many different services and backends; 65,536.
	MaxEndpoints int
	// MaxFragments is how many fragmented datagrams to addresses of the host
	// are remembered at a time; 4,096.
	MaxFragments int
}

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.MaxQueues, 64)
	def(&o.MaxAddresses, 16384)
	def(&o.MaxEndpoints, 65536)
	def(&o.MaxFragments, 4096)
	return o
}

// Steer owns the rule maps that the programs of all NICs share. Its methods
// may be called from any goroutine.
type Steer struct {
	opts Options
	spec *ebpf.CollectionSpec

	fragments *ebpf.Map

	mu        sync.Mutex
	addresses table[addressValue]
	endpoints table[uint32]
	rules     Rules
	nics      map[*NIC]struct{}
}

// Load creates the rule maps, empty. It needs CAP_BPF and CAP_NET_ADMIN (or
// CAP_SYS_ADMIN), else the error is an ErrPermission.
func Load(o Options) (*Steer, error) {
	o = o.withDefaults()
	// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK. Where it cannot be
	// raised the maps may fit all the same; if not, creating them says so.
	limit := rlimit.RemoveMemlock()
	spec, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("steering program: %w", err)
	}
	// Twice the room: while Update runs, old and new rules are both there.
	spec.Maps[steerMapAddresses].MaxEntries = 2 * uint32(o.MaxAddresses)
	spec.Maps[steerMapEndpoints].MaxEntries = 2 * uint32(o.MaxEndpoints)
	spec.Maps[steerMapFragments].MaxEntries = uint32(o.MaxFragments)
	spec.Maps[steerMapSockets].MaxEntries = uint32(o.MaxQueues)

	s := &Steer{opts: o, spec: spec, nics: make(map[*NIC]struct{})}
	for name, m := range map[string]**ebpf.Map{
		steerMapAddresses: &s.addresses.kernel,
		steerMapEndpoints: &s.endpoints.kernel,
		steerMapFragments: &s.fragments,
	} {
		if *m, err = ebpf.NewMap(spec.Maps[name]); err != nil {
			return nil, errors.Join(permission(fmt.Errorf("create map %s: %w", name, err)), limit, s.Close())
		}
	}
	s.addresses.have = make(map[endpointKey]addressValue)
	s.endpoints.have = make(map[endpointKey]uint32)
	return s, nil
}

// permission marks an error that a missing capability caused.
func permission(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: loading XDP programs needs CAP_BPF and CAP_NET_ADMIN (run as root): %w", ErrPermission, err)
	}
	return err
}

// Update puts r into force in place of the rules before, without a moment in
// which a rule that is in both does not hold. On error the rules before stay.
// An address in r.Addrs that is also in r.HostAddrs is an ErrHostAddress.
func (s *Steer) Update(r Rules) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := r.compile()
	if err != nil {
		return err
	}
	if own := next.hostOwned(); len(own) > 0 {
		return fmt.Errorf("steering rules: %w: %v", ErrHostAddress, own)
	}
	if err := s.install(next); err != nil {
		return err
	}
	s.rules = r.clone()
	return nil
}

// SetHostAddrs replaces Rules.HostAddrs alone, as the host's addresses change.
// If the host has meanwhile been given an address in Rules.Addrs, the change
// is made (l4fwd goes on taking all of that address) and an ErrHostAddress
// that names it is returned.
func (s *Steer) SetHostAddrs(addrs []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rules
	r.HostAddrs = slices.Clone(addrs)
	next, err := r.compile()
	if err != nil {
		return err
	}
	if err := s.install(next); err != nil {
		return err
	}
	s.rules = r
	if own := next.hostOwned(); len(own) > 0 {
		return fmt.Errorf("host addresses: %w: %v", ErrHostAddress, own)
	}
	return nil
}

func (r Rules) clone() Rules {
	return Rules{
		Addrs:       slices.Clone(r.Addrs),
		Services:    slices.Clone(r.Services),
		LocalRanges: slices.Clone(r.LocalRanges),
		Backends:    slices.Clone(r.Backends),
		HostAddrs:   slices.Clone(r.HostAddrs),
	}
}

// install makes the maps equal to next, or leaves them as they were.
func (s *Steer) install(next tables) error {
	if len(next.addresses) > s.opts.MaxAddresses || len(next.endpoints) > s.opts.MaxEndpoints {
		return fmt.Errorf("%w: %d addresses (at most %d), %d endpoints (at most %d)", ErrTooMany,
			len(next.addresses), s.opts.MaxAddresses, len(next.endpoints), s.opts.MaxEndpoints)
	}
	before := tables{addresses: maps.Clone(s.addresses.have), endpoints: maps.Clone(s.endpoints.have)}
	if err := s.move(next); err != nil {
		return fmt.Errorf("update steering maps: %w", errors.Join(err, s.move(before)))
	}
	return nil
}

// move turns the maps into next step by step. The order is what keeps every
// intermediate state harmless: that an address is the host's is known before
// any backend can take traffic to it, and forgotten last; an endpoint is there
// before its address says that there is one, and goes after it is needed.
func (s *Steer) move(next tables) error {
	steps := []func() error{
		func() error { return s.addresses.add(withHost(s.addresses.have, next.addresses)) },
		func() error { return s.endpoints.add(next.endpoints) },
		func() error { return s.addresses.add(withHost(next.addresses, s.addresses.have)) },
		func() error { return s.endpoints.prune(next.endpoints) },
		func() error { return s.addresses.add(next.addresses) },
		func() error { return s.addresses.prune(next.addresses) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// withHost is a, with the addresses that are the host's in b marked as such.
func withHost(a, b map[endpointKey]addressValue) map[endpointKey]addressValue {
	a = maps.Clone(a)
	for k, v := range b {
		if v.Flags&addrHost != 0 {
			v = a[k]
			v.Flags |= addrHost
			a[k] = v
		}
	}
	return a
}

// Close detaches every NIC and releases the maps.
func (s *Steer) Close() error {
	s.mu.Lock()
	nics := slices.Collect(maps.Keys(s.nics))
	s.mu.Unlock()
	var errs []error
	for _, n := range nics {
		errs = append(errs, n.Close())
	}
	for _, m := range []*ebpf.Map{s.addresses.kernel, s.endpoints.kernel, s.fragments} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// table is one hash map of the program and what is in it.
type table[V comparable] struct {
	kernel *ebpf.Map
	have   map[endpointKey]V
}

// put adds or replaces one key; the kernel replaces a value atomically.
func (t *table[V]) put(k endpointKey, v V) error {
	if err := t.kernel.Put(k, v); err != nil {
		return fmt.Errorf("put %v: %w", netip.AddrFrom16(k.Addr).Unmap(), err)
	}
	t.have[k] = v
	return nil
}

// add puts what differs in next.
func (t *table[V]) add(next map[endpointKey]V) error {
	for k, v := range next {
		if old, ok := t.have[k]; ok && old == v {
			continue
		}
		if err := t.put(k, v); err != nil {
			return err
		}
	}
	return nil
}

// prune deletes what is not in next.
func (t *table[V]) prune(next map[endpointKey]V) error {
	for k := range t.have {
		if _, ok := next[k]; ok {
			continue
		}
		if err := t.kernel.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete %v: %w", netip.AddrFrom16(k.Addr).Unmap(), err)
		}
		delete(t.have, k)
	}
	return nil
}

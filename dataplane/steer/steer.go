package steer

import (
	"errors"
	"fmt"
	"maps"
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
	def(&o.MaxFragments, 4096)
	return o
}

// Steer owns the rules that the programs of all NICs share. Its methods may be
// called from any goroutine.
type Steer struct {
	opts Options
	spec *ebpf.CollectionSpec

	slot      *ebpf.Map // the one slot that holds the rule set in force
	fragments *ebpf.Map

	mu    sync.Mutex
	rules Rules
	inUse table     // rules, compiled
	set   *ebpf.Map // inUse, in the kernel; nil until the first Update
	nics  map[*NIC]struct{}
}

// Load creates the maps, without rules. It needs CAP_BPF and CAP_NET_ADMIN (or
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
	spec.Maps[steerMapFragments].MaxEntries = uint32(o.MaxFragments)
	spec.Maps[steerMapSockets].MaxEntries = uint32(o.MaxQueues)

	s := &Steer{opts: o, spec: spec, nics: make(map[*NIC]struct{})}
	for name, m := range map[string]**ebpf.Map{
		steerMapRules:     &s.slot,
		steerMapFragments: &s.fragments,
	} {
		if *m, err = ebpf.NewMap(spec.Maps[name]); err != nil {
			return nil, errors.Join(permission(fmt.Errorf("create map %s: %w", name, err)), limit, s.Close())
		}
	}
	return s, nil
}

// permission marks an error that a missing capability caused.
func permission(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: loading XDP programs needs CAP_BPF and CAP_NET_ADMIN (run as root), in a container also a seccomp profile that permits bpf(2): %w", ErrPermission, err)
	}
	return err
}

// Update puts r into force in place of the rules before, all at once: every
// frame meets the old rules or the new, and after Update only the new. On error
// the old ones stay.
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

func (r Rules) clone() Rules {
	return Rules{
		Addrs:       slices.Clone(r.Addrs),
		Services:    slices.Clone(r.Services),
		LocalRanges: slices.Clone(r.LocalRanges),
		Backends:    slices.Clone(r.Backends),
		HostAddrs:   slices.Clone(r.HostAddrs),
	}
}

// install writes next into a new map and swaps it for the one in force. The
// kernel returns from the swap when no program looks at the old one any more.
func (s *Steer) install(next table) error {
	if s.set != nil && maps.Equal(next, s.inUse) {
		return nil
	}
	spec := s.spec.Maps[steerMapRules].InnerMap.Copy()
	spec.Name = "rule_set"
	spec.MaxEntries = max(1, uint32(len(next)))
	set, err := ebpf.NewMap(spec)
	if err != nil {
		return permission(fmt.Errorf("create map for %d steering rules: %w", len(next), err))
	}
	keys, values := make([]endpointKey, 0, len(next)), make([]ruleValue, 0, len(next))
	for k, v := range next {
		keys, values = append(keys, k), append(values, v)
	}
	if len(keys) > 0 {
		if _, err := set.BatchUpdate(keys, values, nil); err != nil {
			return errors.Join(fmt.Errorf("write %d steering rules: %w", len(keys), err), set.Close())
		}
	}
	if err := s.slot.Put(uint32(0), set); err != nil {
		return errors.Join(fmt.Errorf("put steering rules into force: %w", err), set.Close())
	}
	old := s.set
	s.set, s.inUse = set, next
	if old != nil {
		return old.Close()
	}
	return nil
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
	for _, m := range []*ebpf.Map{s.set, s.slot, s.fragments} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

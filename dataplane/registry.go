package dataplane

import (
	"maps"
	"slices"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Registry gives ids to services, backends and local addresses, and keeps them
// through all snapshots it builds: an id is not given to another while a flow may have
// it, which may live longer than the configuration that made it; see Forget. Control
// plane only, not safe for concurrent use.
type Registry struct {
	workers  int
	services registryOf[ServiceKey]
	vips     []conntrack.Endpoint // of services, by id
	last     []Service            // by id, for flows that outlive their service
	backends registryOf[backendKey]
	reals    []conntrack.Endpoint // of backends, by id
	locals   registryOf[packet.Addr]
	// What of them the last spec had, by id.
	hasService, hasBackend []bool
	ports                  []nat.PortRange // of local addresses, by id
	builds                 uint64          // snapshots so far
	left                   []uint64        // by local address id, the build whose spec has it no more; 0 while the last one has it

	kept      map[conntrack.Endpoint]keeping // by VIP
	sets      map[int]builtSet               // by service id
	loads     *balance.Loads
	quotas    []*quota     // of backends, by id; nil without limit
	templates []*templates // by worker; nil until there is persistence
	// handshakes of each service id, by worker. They stay the worker's from snapshot to
	// snapshot: too much to be copied between two bursts.
	handshakes [][]*Handshakes
}

// backendKey makes a real server that two services share two backends, so that
// each service has its own counts of it.
type backendKey struct {
	service int
	real    conntrack.Endpoint
}

// ServiceKey is what makes a service the one that flows belong to: its VIP, and whatever
// its flows must end with as they began. That are PROXY headers and timestamps that are
// translated, by which their numbers are shifted, and whether answers come back here.
type ServiceKey struct {
	vip       conntrack.Endpoint
	proxy     nat.ProxyVersion
	translate bool
	oneWay    conntrack.Mode // 0 unless it is one
	answers   bool           // ReturnOnly: another l4fwd's, or this one's, other half has the VIP
}

// Key is the service's. One that is changed and has another key then is another service,
// and this one is gone.
func (s *ServiceSpec) Key() ServiceKey {
	k := ServiceKey{vip: s.VIP, proxy: s.Proxy, translate: s.Timestamps == nat.TSTranslate, answers: s.ReturnOnly}
	if s.Mode.OneWay() {
		k.oneWay = s.Mode
	}
	return k
}

// serviceID is the id of a service.
func (r *Registry) serviceID(s *ServiceSpec) int {
	k := s.Key()
	id, added := r.services.id(k)
	if added {
		put(&r.vips, id, s.VIP)
	}
	return id
}

// backend is the id of a service's real server.
func (r *Registry) backend(service int, real conntrack.Endpoint) uint32 {
	id, added := r.backends.id(backendKey{service, real})
	if added {
		put(&r.reals, id, real)
	}
	return uint32(id)
}

// BackendID is the id of a service's real server; false if it has none.
func (r *Registry) BackendID(service ServiceKey, real conntrack.Endpoint) (uint32, bool) {
	s, ok := r.services.ids[service]
	if !ok {
		return 0, false
	}
	id, ok := r.backends.ids[backendKey{s, real}]
	return uint32(id), ok
}

// put makes v the element i of a list, which may be the one after the last.
func put[T any](list *[]T, i int, v T) {
	if i == len(*list) {
		*list = append(*list, v)
	} else {
		(*list)[i] = v
	}
}

// registryOf numbers keys.
type registryOf[K comparable] struct {
	ids  map[K]int
	list []K      // by id; the zero key for ids of nobody
	free []int    // those
	born []uint32 // by id, the how many-th key that has it
}

// id is k's; added tells that it had none.
func (r *registryOf[K]) id(k K) (id int, added bool) {
	if id, ok := r.ids[k]; ok {
		return id, false
	}
	if r.ids == nil {
		r.ids = make(map[K]int)
	}
	if n := len(r.free); n > 0 {
		id, r.free = r.free[n-1], r.free[:n-1]
		r.list[id] = k
		r.born[id]++
	} else {
		id = len(r.list)
		r.list, r.born = append(r.list, k), append(r.born, 1)
	}
	r.ids[k] = id
	return id, true
}

// forget gives up an id.
func (r *registryOf[K]) forget(id int) {
	delete(r.ids, r.list[id])
	var none K
	r.list[id] = none
	r.free = append(r.free, id)
}

// NewRegistry returns an empty registry for so many workers.
func NewRegistry(workers int) *Registry {
	return &Registry{
		workers: workers, sets: make(map[int]builtSet), loads: balance.NewLoads(workers),
		kept:       make(map[conntrack.Endpoint]keeping),
		handshakes: make([][]*Handshakes, workers),
	}
}

// unshare lets ids change hands without a change to what snapshots have.
func (r *Registry) unshare() {
	r.vips, r.reals, r.locals.list = slices.Clone(r.vips), slices.Clone(r.reals), slices.Clone(r.locals.list)
	r.services.born, r.backends.born = slices.Clone(r.services.born), slices.Clone(r.backends.born)
	for w := range r.handshakes {
		r.handshakes[w] = slices.Clone(r.handshakes[w])
	}
}

// Forget gives up the ids of services and backends that the last spec did not have and
// that no flow has any more, so that the next ones get them and snapshots do not grow
// with every change. counts are all workers' BackendCounts added up, each taken when the
// worker had, or was about to take, the last snapshot that was built.
func (r *Registry) Forget(counts []BackendCount) {
	r.unshare()
	r.last = slices.Clone(r.last)
	busy := make([]bool, len(r.services.list))
	copy(busy, r.hasService)
	for id := range r.hasBackend {
		k := r.backends.list[id]
		switch {
		case k == (backendKey{}):
		case r.hasBackend[id], id >= len(counts), counts[id].Active != 0:
			busy[k.service] = true
		default:
			r.backends.forget(id)
			r.reals[id] = conntrack.Endpoint{}
		}
	}
	for id := range r.hasService {
		if busy[id] || r.services.list[id] == (ServiceKey{}) {
			continue
		}
		r.services.forget(id)
		r.vips[id], r.last[id] = conntrack.Endpoint{}, Service{}
		for w := range r.handshakes {
			r.handshakes[w][id] = nil
		}
	}
	left := make(map[conntrack.Endpoint]bool, len(r.vips))
	for _, vip := range r.vips {
		left[vip] = true
	}
	maps.DeleteFunc(r.kept, func(vip conntrack.Endpoint, _ keeping) bool { return !left[vip] })
}

// keep notes how a service's flows are kept, beside those of what has had its VIP before.
func (r *Registry) keep(s *ServiceSpec) {
	switch {
	case s.ReturnOnly: // has none
	case s.Mode == conntrack.DNAT:
		r.kept[s.VIP] |= keptByClient
	default:
		r.kept[s.VIP] |= keptByTuple
	}
}

// note remembers what the last spec had.
func (r *Registry) note(s *Snapshot, all map[int]Service) {
	r.last = s.Services
	r.hasService, r.hasBackend = make([]bool, len(r.vips)), make([]bool, len(r.reals))
	for id := range all {
		r.hasService[id] = true
		for _, b := range s.Services[id].Backends {
			r.hasBackend[b] = true
		}
	}
}

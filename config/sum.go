package config

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Sum is a configuration and documents that are added to it one after the other. Each is
// judged as With would judge all together, and its errors are the same, but it is compared
// with those alone that it may not go together with. Otherwise each of many documents that
// are refused would cost as much as all that are not.
type Sum struct {
	base     *Config
	against  func(*Service) error
	rules    validator                  // local addresses
	files    []*member                  // services of the file
	named    map[string]*member         // them, by name
	services map[string]*member         // services of documents, by name
	ends     map[endpoint]*member       // who has a VIP and port
	vips     map[netip.Addr][]*member   // who has a VIP
	holders  map[netip.Addr][]holder    // who has a backend at an address
	sources  map[netip.Prefix][]*member // who has an encapsulation_source
	networks map[netip.Prefix]*resident // who has an address in a source that is a network
	tables   int                        // bytes of all hash tables
	looked   int                        // at services and backends so far; of tests
}

// member is a service of a Sum.
type member struct {
	place    int              // in the file; -1: it is of documents
	name     string           // of a document
	document *ServiceDocument // nil: of the file, or only backends are there yet
	service  Service          // of the file or document
	backends map[string]*BackendDocument
	first    *BackendDocument // of backends, in their order
	byAddr   map[netip.AddrPort]*BackendDocument
	byID     map[uint64]*BackendDocument
}

// holder is a backend of a Sum.
type holder struct {
	*member
	own     int // its place in the file or the service's document
	backend *BackendDocument
}

// part is what a configuration has that has not all services of another one.
type part struct {
	of     *Config
	places []int // there, of the services that come first
}

// Sum returns a valid configuration without any documents so far. against, if not nil,
// says what somebody else has against a service that is to be served, which may not have
// all of its backends.
func (c *Config) Sum(against func(*Service) error) *Sum {
	s := &Sum{
		base: c, against: against, services: make(map[string]*member), ends: make(map[endpoint]*member),
		vips: make(map[netip.Addr][]*member), holders: make(map[netip.Addr][]holder),
		named: make(map[string]*member), sources: make(map[netip.Prefix][]*member), networks: make(map[netip.Prefix]*resident),
	}
	s.rules = validator{c: c, locals: make(map[netip.Addr]int)}
	s.rules.localAddresses()
	s.rules.ranges()
	for i := range c.Services {
		m := &member{place: i, service: c.Services[i]}
		s.files, s.named[m.service.Name] = append(s.files, m), m
		s.enter(m)
	}
	return s
}

// AddService adds a service, with the backends of it that are there already; one of its
// name may not be. An error of type Errors, or that of against, changes nothing.
func (s *Sum) AddService(d *ServiceDocument) error {
	m := s.member(d.Name())
	next := *m
	next.document, next.service = d, d.service
	n := make(vicinity)
	p := n.with(&next)
	p.backends = m.backends
	vip := d.service.Address
	if p := d.service.EncapsulationSource; p.IsValid() {
		n.residents(s.residents(p))
	}
	if f := s.named[d.Name()]; f != nil {
		n.with(f)
	}
	if e := s.ends[next.end()]; e != nil {
		n.with(e)
	}
	for _, h := range s.holders[vip.Addr()] {
		n.hold(h)
	}
	n.sourced(s, vip.Addr())
	for _, b := range d.service.Backends {
		n.meet(s, &next, b.Address)
	}
	for _, b := range m.backends {
		n.meet(s, &next, b.backend.Address)
	}
	if err := s.judge(n, &next, next.count(), next.count() > 0); err != nil {
		return err
	}
	*m = next
	s.enter(m)
	return nil
}

// AddBackend adds a backend of a service, which need not be there yet; one of the same
// source may not be. An error of type Errors, or that of against, changes nothing.
func (s *Sum) AddBackend(service string, b *BackendDocument) error {
	m := s.member(service)
	if m.document != nil {
		n := make(vicinity)
		p := n.with(m)
		for _, other := range []*BackendDocument{b, m.first, m.byAddr[b.backend.Address], m.byID[b.backend.ServerID]} {
			p.take(other)
		}
		n.meet(s, m, b.backend.Address)
		if err := s.judge(n, m, m.count()+1, m.count() == 0); err != nil {
			return err
		}
		s.tables -= m.tables(m.count())
	}
	m.backends[b.source], m.byAddr[b.backend.Address], m.byID[b.backend.ServerID] = b, b, b
	if m.first == nil || b.source < m.first.source {
		m.first = b
	}
	if m.document != nil {
		s.tables += m.tables(m.count())
		s.hold(holder{m, 0, b})
	}
	return nil
}

// member returns the service of documents with a name, an empty one if there is none.
func (s *Sum) member(name string) *member {
	m := s.services[name]
	if m == nil {
		m = &member{
			place: -1, name: name, backends: make(map[string]*BackendDocument),
			byAddr: make(map[netip.AddrPort]*BackendDocument), byID: make(map[uint64]*BackendDocument),
		}
		s.services[name] = m
	}
	return m
}

// enter notes what a service has that others may not.
func (s *Sum) enter(m *member) {
	s.ends[m.end()] = m
	s.own(m)
	for i := range m.service.Backends {
		s.hold(holder{m, i, nil})
	}
	for _, b := range m.backends {
		s.hold(holder{m, 0, b})
	}
	if p := m.service.EncapsulationSource; p.IsValid() {
		s.source(p, m)
	}
	s.tables += m.tables(m.count())
}

func (m *member) count() int { return len(m.service.Backends) + len(m.backends) }

func (m *member) end() endpoint {
	return endpoint{m.service.Address, m.service.Protocol, m.service.Mode == SNAT}
}

// tables are the bytes of its hash table with so many backends.
func (m *member) tables(backends int) int {
	if !m.service.Scheduler.Hashed() {
		return 0
	}
	return tableBytes(&m.service, backends)
}

// compareMembers has the file's services first, then those that are served.
func compareMembers(a, b *member) int {
	rank := func(m *member) int {
		switch {
		case m.place >= 0:
			return 0
		case m.count() > 0:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.place, b.place), strings.Compare(a.name, b.name))
}

// vicinity are the services, and the backends of each, that something is judged with.
type vicinity map[*member]*portion

// portion is what is needed of a service.
type portion struct {
	own      int // backends of the file, so many
	backends map[string]*BackendDocument
}

func (n vicinity) with(m *member) *portion {
	p := n[m]
	if p == nil {
		p = &portion{own: 1}
		n[m] = p
	}
	return p
}

func (p *portion) take(b *BackendDocument) {
	switch {
	case b == nil:
		return
	case p.backends == nil:
		p.backends = make(map[string]*BackendDocument)
	}
	p.backends[b.source] = b
}

func (n vicinity) hold(h holder) {
	p := n.with(h.member)
	p.own = max(p.own, h.own+1)
	p.take(h.backend)
}

// meet adds what may be against a backend of m.
func (n vicinity) meet(s *Sum, m *member, b netip.AddrPort) {
	if vips := s.vips[b.Addr()]; len(vips) > 0 {
		n.with(slices.MinFunc(vips, compareMembers)) // which the error names
	}
	n.sourced(s, b.Addr())
	if m.service.Mode != SNAT {
		return
	}
	for _, h := range s.holders[b.Addr()] {
		if h.member != m && h.service.Mode == SNAT && h.service.Protocol == m.service.Protocol && h.address() == b {
			n.hold(h)
		}
	}
}

func (h *holder) address() netip.AddrPort {
	if h.backend != nil {
		return h.backend.backend.Address
	}
	return h.service.Backends[h.own].Address
}

// judge validates a vicinity, in which m is to have so many backends. asked: whether the
// other judge has to be asked of m.
func (s *Sum) judge(n vicinity, m *member, backends int, ask bool) error {
	tables := s.tables + m.tables(backends)
	if old := s.services[m.name]; old.document != nil {
		tables -= old.tables(old.count())
	}
	if tables > maxTables {
		n.with(s.firstHashed(m)) // which the error names
	}
	out := *s.base
	out.at, out.part = make(map[string]position), &part{of: s.base}
	out.Services = nil
	var found []Found
	for _, k := range slices.SortedFunc(maps.Keys(n), compareMembers) {
		p := n[k]
		if k.place >= 0 {
			service := k.service
			service.Backends = service.Backends[:min(p.own, len(service.Backends))]
			out.Services, out.part.places = append(out.Services, service), append(out.part.places, k.place)
			continue
		}
		f := Found{Service: k.document}
		for _, source := range slices.Sorted(maps.Keys(p.backends)) {
			f.Backends = append(f.Backends, p.backends[source])
		}
		if len(f.Backends) == 0 && k.first != nil {
			f.Backends = []*BackendDocument{k.first} // it is served
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Found) int { return strings.Compare(a.Service.Name(), b.Service.Name()) })
	out.join(found)
	v := s.rules
	v.c, v.vips, v.answers, v.more = &out, make(map[netip.Addr]int), make(map[endpoint]int), make(map[string]int)
	var service *Service
	for i := range out.Services {
		k := &out.Services[i]
		if k.Scheduler.Hashed() {
			tables -= tableBytes(k, len(k.Backends))
		}
		s.looked += 1 + len(k.Backends)
		if i >= len(out.part.places) && k.Name == m.name {
			service = k
			v.more[out.place(i)] = backends - len(k.Backends)
		}
	}
	v.tables = tables
	if v.together(); len(v.errs) > 0 {
		return v.errs
	}
	if ask && s.against != nil {
		return s.against(service)
	}
	return nil
}

// firstHashed is the first service with a hash table.
func (s *Sum) firstHashed(m *member) *member {
	all := slices.Concat(s.files, slices.Collect(maps.Values(s.services)), []*member{m})
	return slices.MinFunc(slices.DeleteFunc(all, func(k *member) bool {
		return !k.service.Scheduler.Hashed() || k.place < 0 && (k.document == nil || k != m && k.name == m.name)
	}), compareMembers)
}

package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Snapshot is everything the configuration tells a worker. It is immutable but
// for Locality, whose element w belongs to worker w.
type Snapshot struct {
	conntrack.Directory
	Services []Service // by service id; one that drains or is gone keeps its id with Set == nil
	// KeepTTL makes l4fwd no hop: it leaves the TTL of what it rewrites.
	KeepTTL bool
	// names: (VIP, port, protocol) → service id, removed ones too; (address, 0, 0)
	// → owned; (address, 0, serverKey) → 0.
	names nameTable
	// locals has local addresses, former ones too, but none that is a VIP.
	locals addrSet
	// resetting holds the real servers (address, port, protocol) whose segments
	// without a flow are answered by a RST.
	resetting nameTable
	dnat      bool // there is a service of this mode
	// answering: (real server, port, protocol) of services with ReturnOnly → index in
	// answerers.
	answering nameTable
	answerers []answerer
	Locality  []Locality
	loads     *balance.Loads // the backends' flows, of services whose scheduler asks
	leases    []lease        // by backend id; nil if none has a limit
	// localPorts are those of local addresses, by id; nil if the spec has none.
	localPorts []nat.PortRange
	// By id, the how many-th service or backend that has it.
	bornServices, bornBackends []uint32
}

// Service is one VIP, port and protocol.
type Service struct {
	Name     string
	Set      *balance.Set
	Policy   conntrack.Policy
	Backends []uint32 // backend ids in the order of the configuration
	ended    []uint32 // those among them whose flows are to end
	Locals   []uint16 // Full-NAT: local address ids of the backends' family
	Mode     conntrack.Mode
	v4       bool             // the backends are IPv4
	TOA      bool             // tell the client's address by TOA
	TOAOnly  bool             // nothing of the client's goes on without a TOA that it should bear
	Proxy    nat.ProxyVersion // tell it by a PROXY header; Full-NAT only, with UDP version 2
	UOA      nat.UOAForm      // tell it by UOA; Full-NAT and UDP only, without Proxy
	// UOADatagrams is how many of a flow's first datagrams bear UOA.
	UOADatagrams uint8
	TOAKind      uint8 // option kind, inserted if TOA and stripped from clients always
	// OnePacket gives every datagram of a client a flow, and so a backend, of its
	// own; UDP only.
	OnePacket bool
	// Judged has SYNs looked at, so that Signs say of backends what is true. Without it
	// clients can have any counted as Unanswered.
	Judged bool
	// ReturnOnly, with mode DNAT, makes it the other half of DNAT: only servers' answers
	// come here, and their source becomes the VIP, see answerFor.
	ReturnOnly bool
	// ResetStray answers a segment without flow by a RST instead of silence, in
	// Full-NAT also one of a backend's.
	ResetStray bool
	Timestamps nat.TSPolicy
	MSSClamp   uint16 // most that SYN and SYN-ACK may announce; 0 is no limit, see ClampToMTU
	// Tunnel carries packets to the servers, with direct return only; without one
	// they are neighbours.
	Tunnel nat.Tunnel

	// LogOneIn is how many flows there are to one whose end goes into the FlowLog; 0: none
	// does. Which ones, depends on client and VIP alone, so that all workers, and all
	// machines of a fleet, choose alike, and who chooses 1 in 100 chooses among those of 1
	// in 10.
	LogOneIn uint32

	Draining      bool // see ServiceSpec
	kept          keeping
	OnBackendDown BackendDown
	stick         stick
	quic          *quicRoutes // nil without a layout
	looks         bool        // the scheduler does, or leases have to be given back
	limited       bool        // some backend has MaxConnections
}

// ClampToMTU as Service.MSSClamp means what the MTUs of the next hops towards client
// and server leave room for.
const ClampToMTU = 1

// Locality is the part of a snapshot that one worker writes: made by the
// control plane, so that the worker need not allocate, and then the worker's.
type Locality struct {
	Schedulers []balance.State // by service id
	ways       []way           // by backend id
	heads      []directHead    // by backend id; nil without direct return
	Backends   []BackendCount  // by backend id
	Services   []ServiceCount  // by service id
	signs      []Signs         // by backend id
	former     BackendCount    // of backends whose ids are others' now
	handshakes []*Handshakes   // by service id; nil unless they come by
	templates  *templates      // nil until there is persistence
	// held is how many flows the worker may have, by backend id; if any has a limit.
	held []int64
}

// ServiceCount is what one worker has counted of one service as a whole; like
// BackendCount.
type ServiceCount struct {
	PortsExhausted uint64 // packets dropped as DropPortsExhausted
	// Datagrams that were to open a flow of a service with a QUICLayout: whose
	// connection ID names a backend, or somebody else, or nobody.
	QUICRouted, QUICUnknown, QUICNone uint64
	QUICMoved                         uint64 // flows that ended since a datagram of theirs names another backend
}

// Add sums o into c.
func (c *ServiceCount) Add(o *ServiceCount) {
	c.PortsExhausted += o.PortsExhausted
	c.QUICRouted += o.QUICRouted
	c.QUICUnknown += o.QUICUnknown
	c.QUICNone += o.QUICNone
	c.QUICMoved += o.QUICMoved
}

// BackendCount is what one worker has done for one backend. Counts are carried
// over from snapshot to snapshot, as the ids are.
type BackendCount struct {
	Flows   uint64    // opened
	Active  int64     // open now
	Packets [2]uint64 // by direction
	Bytes   [2]uint64 // IP bytes as received, by direction
}

// sent counts a packet of n IP bytes as received.
func (c *BackendCount) sent(d conntrack.Dir, n int) {
	c.Packets[d]++
	c.Bytes[d] += uint64(n)
}

// Add sums o into c.
func (c *BackendCount) Add(o *BackendCount) {
	c.Flows += o.Flows
	c.Active += o.Active
	for d := range c.Packets {
		c.Packets[d] += o.Packets[d]
		c.Bytes[d] += o.Bytes[d]
	}
}

// ServiceSpec and the other specs are the control plane's order for a
// Snapshot, already validated. Fields of Service's name mean the same there.
type ServiceSpec struct {
	Name       string
	VIP        conntrack.Endpoint
	Mode       conntrack.Mode
	Scheduler  balance.Kind
	TOA        bool
	TOAOnly    bool
	TOAKind    uint8
	Proxy      nat.ProxyVersion
	UOA        nat.UOAForm
	Timestamps nat.TSPolicy
	MSSClamp   uint16
	ResetStray bool
	ReturnOnly bool
	Timeouts   conntrack.Timeouts
	TCPChecks  conntrack.Checks
	OnePacket  bool
	Judged     bool
	Tunnel     nat.Tunnel
	Backends   []BackendSpec

	UOADatagrams uint8
	LogOneIn     uint32

	HashFields    balance.Fields // see balance.Policy
	HashSlots     int            // see balance.Policy
	OnBackendDown BackendDown
	Persistence   Persistence
	QUIC          QUICSpec // UDP, without OnePacket
	// Draining makes it one that takes no new flow, as if it were not there, while those
	// it has go on. Without a word in the spec a service is gone, and its flows are reset.
	// Where another of the same VIP does not drain, that one has the name.
	Draining bool
}

// BackendSpec is one real server of a service. One that two services share is
// two backends.
type BackendSpec struct {
	Endpoint conntrack.Endpoint
	Weight   uint32
	// MaxConnections is the most flows that it may have at a time, over all workers; 0
	// is no limit.
	MaxConnections uint32
	ServerID       uint64 // by which connection IDs name it; not for QUICDPVS
	// Down lets no new flow come to it, whatever its weight, nor by persistence or
	// connection ID; those it has go on.
	Down bool
	// End is Down, and ends those it has as OnBackendDown says.
	End bool
}

// serves reports whether it takes new flows, but for its weight.
func (b *BackendSpec) serves() bool { return !b.Down && !b.End }

// Spec is a whole configuration.
type Spec struct {
	Services []ServiceSpec
	Locals   []packet.Addr
	// FormerLocals are answered for as Locals are, and get no new flows.
	FormerLocals []packet.Addr
	// LocalPorts are the ports of each of Locals, zero is nat.DefaultPortRange; nil
	// leaves them as they are.
	LocalPorts []nat.PortRange
	KeepTTL    bool // see Snapshot
	// Templates is how many prefixes are remembered for persistence, all workers
	// together. The first Spec with persistence decides.
	Templates int
	// Seed makes scheduler positions and maglev tables; machines of one fleet
	// share it, so that they choose alike.
	Seed uint64
}

// Build makes the snapshot for spec. The error names what does not fit.
func (r *Registry) Build(spec Spec) (*Snapshot, error) {
	if len(r.services.free)+len(r.backends.free)+len(r.locals.free) > 0 {
		r.unshare()
	}
	local4, local6, err := r.addLocals(spec.Locals, spec.LocalPorts)
	if err != nil {
		return nil, err
	}
	all := make(map[int]Service, len(spec.Services))
	for i := range spec.Services {
		s := &spec.Services[i]
		id := r.serviceID(s)
		svc, err := r.service(id, s, spec.Seed)
		if err == nil && s.Mode == conntrack.FullNAT {
			if svc.Locals = local6; svc.v4 {
				svc.Locals = local4
			}
			if len(svc.Locals) == 0 && !s.Draining { // no new flow needs one
				err = errNoLocal
			}
		} else if err == nil && s.Timestamps == nat.TSTranslate {
			err = errNoClock
		}
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		all[id] = svc
		r.keep(s)
	}
	snap := &Snapshot{
		Directory: conntrack.Directory{
			Services: r.vips[:len(r.vips):len(r.vips)],
			Backends: r.reals[:len(r.reals):len(r.reals)],
			Locals:   r.locals.list[:len(r.locals.list):len(r.locals.list)],
		},
		Services: make([]Service, len(r.vips)),
		KeepTTL:  spec.KeepTTL,
	}
	for id := range r.last { // gone, unless the spec has it again
		svc := &snap.Services[id]
		*svc = r.last[id]
		svc.Set, svc.Draining, svc.OnBackendDown = nil, false, BackendDownReset
	}
	for id, svc := range all {
		snap.Services[id] = svc
		snap.dnat = snap.dnat || svc.Mode == conntrack.DNAT && !svc.ReturnOnly
	}
	for id := range snap.Services {
		snap.Services[id].kept = r.kept[snap.Directory.Services[id]]
	}
	r.note(snap, all)
	r.noteLocals(&spec)
	snap.localPorts, snap.bornServices, snap.bornBackends = r.ports, r.services.born, r.backends.born
	snap.names = snap.nameAll(slices.Concat(spec.FormerLocals, spec.Locals))
	snap.locals = snap.localsAlone()
	snap.resetting = snap.resettingServers()
	snap.answering, snap.answerers = snap.nameAnswerers()
	r.loads = r.loads.Grow(len(r.reals))
	snap.loads, snap.leases = r.loads, r.lend(&spec)
	r.makeTemplates(&spec)
	maps.DeleteFunc(r.sets, func(id int, _ builtSet) bool { return snap.Services[id].Set == nil })
	snap.Locality = r.localities(snap, spec.Seed)
	return snap, nil
}

var (
	errNoLocal = errors.New("no local address of its backends' family")
	errNoClock = errors.New("timestamps are translated in Full-NAT only")
)

// service makes one service and gives its real servers their ids.
func (r *Registry) service(id int, s *ServiceSpec, seed uint64) (svc Service, err error) {
	svc = Service{
		Name: s.Name, Mode: s.Mode, v4: s.VIP.Addr.Is4(),
		Policy: conntrack.Policy{Timeouts: s.Timeouts, Checks: s.TCPChecks},
		TOA:    s.TOA, TOAOnly: s.TOAOnly, TOAKind: s.TOAKind, Proxy: s.Proxy, UOA: s.UOA, UOADatagrams: s.UOADatagrams,
		Timestamps: s.Timestamps, MSSClamp: s.MSSClamp,
		OnePacket: s.OnePacket, ResetStray: s.ResetStray, Tunnel: s.Tunnel, ReturnOnly: s.ReturnOnly,
		LogOneIn: s.LogOneIn, Judged: s.Judged,
		Draining: s.Draining, OnBackendDown: s.OnBackendDown, stick: newStick(s.Persistence.Timeout, s.Persistence.Prefix, s.VIP.Addr.Is4()),
	}
	set := make([]balance.Backend, 0, len(s.Backends))
	for _, b := range s.Backends {
		svc.v4 = b.Endpoint.Addr.Is4()
		svc.limited = svc.limited || b.MaxConnections > 0
		bid := r.backend(id, b.Endpoint)
		svc.Backends = append(svc.Backends, bid)
		if b.End {
			svc.ended = append(svc.ended, bid)
		}
		weight := b.Weight
		if !b.serves() {
			weight = 0
		}
		set = append(set, balance.Backend{
			ID: bid, Weight: weight,
			Identity: balance.Identity(b.Endpoint.Addr, b.Endpoint.Port),
		})
	}
	p := balance.Policy{Kind: s.Scheduler, Fields: s.HashFields, Slots: s.HashSlots, Refuses: svc.limited}
	if svc.quic = newQUICRoutes(s, svc.Backends); s.Draining {
		svc.looks = svc.limited // or flows that end would keep their leases, see Worker.tell
		return svc, nil
	}
	if svc.Set, err = r.set(id, p, set, seed); err == nil {
		svc.looks = svc.Set.Looks()
	}
	return svc, err
}

// nameAll lists the services and the addresses, of which locals are answered for.
func (s *Snapshot) nameAll(locals []packet.Addr) nameTable {
	// What is out of the configuration, too: its flows live on, and whoever gets their
	// packets must know whom to hand them to.
	keys := make(map[nameKey]int32)
	for _, a := range s.Locals {
		if !a.IsZero() { // or the id is nobody's
			keys[nameKey{addr: a}] = formerLocal
		}
	}
	for id, vip := range s.Directory.Services {
		svc := &s.Services[id]
		if svc.ReturnOnly || vip == (conntrack.Endpoint{}) {
			continue // the VIP is somebody else's; or the id is nobody's
		}
		k := nameKey{vip.Addr, vip.Port, vip.Proto}
		if was, ok := keys[k]; svc.Set != nil || !ok || s.Services[was].Set == nil && !s.Services[was].Draining {
			keys[k] = int32(id)
		}
		if svc.Set != nil || svc.Draining {
			keys[nameKey{addr: vip.Addr}] = ownedVIP
		}
	}
	for _, a := range s.Locals {
		if keys[nameKey{addr: a}] == ownedVIP {
			keys[nameKey{addr: a}] = onceLocal
		}
	}
	for _, a := range locals {
		keys[nameKey{addr: a}] = ownedLocal
	}
	for _, b := range s.Directory.Backends {
		if b != (conntrack.Endpoint{}) {
			keys[nameKey{addr: b.Addr, proto: serverKey}] = 0
		}
	}
	return newNameTable(keys)
}

// localsAlone lists the local addresses that are no VIP's: all that comes to them
// belongs to flows.
func (s *Snapshot) localsAlone() addrSet {
	vips := make(map[packet.Addr]bool)
	for _, vip := range s.Directory.Services {
		vips[vip.Addr] = true
	}
	var alone []packet.Addr
	for _, a := range s.Locals {
		if !vips[a] && !a.IsZero() {
			alone = append(alone, a)
		}
	}
	return newAddrSet(alone)
}

// resettingServers lists the real servers of which every Full-NAT service that
// has them wants segments without a flow reset: what another service's flow may
// be, on another machine, is not ours to end.
func (s *Snapshot) resettingServers() nameTable {
	keys := make(map[nameKey]int32)
	for _, reset := range [...]bool{true, false} {
		for i := range s.Services {
			svc := &s.Services[i]
			if svc.Set == nil || svc.Mode != conntrack.FullNAT || svc.ResetStray != reset {
				continue
			}
			for _, id := range svc.Backends {
				b := &s.Directory.Backends[id]
				if k := (nameKey{b.Addr, b.Port, b.Proto}); reset {
					keys[k] = 0
				} else {
					delete(keys, k)
				}
			}
		}
	}
	return newNameTable(keys)
}

// locality is the part of one worker, empty, but for what depends on the Registry.
func (s *Snapshot) locality() Locality {
	backends := len(s.Directory.Backends)
	return Locality{
		Schedulers: apart[balance.State](len(s.Services)), Services: apart[ServiceCount](len(s.Services)),
		ways: apart[way](backends), Backends: apart[BackendCount](backends), signs: apart[Signs](backends),
		held: apart[int64](len(s.leases)),
	}
}

func (r *Registry) localities(s *Snapshot, seed uint64) []Locality {
	out, serves := make([]Locality, r.workers), s.serving()
	for w := range out {
		l := &out[w]
		*l = s.locality()
		for i := range l.Schedulers {
			if s.Services[i].Set != nil {
				l.Schedulers[i] = s.Services[i].Set.Start(w, r.workers, s.loads)
			}
		}
		for i := range l.ways {
			if k := &r.backends.list[i]; *k != (backendKey{}) {
				l.ways[i] = s.wayTo(uint32(i), uint32(k.service), serves[i])
			}
			l.ways[i].count = &l.Backends[i]
			if l.ways[i].marks&direct != 0 && l.heads == nil {
				l.heads = apart[directHead](len(l.ways))
			}
		}
		l.handshakes = r.handshakesOf(w)
		if r.templates != nil {
			l.templates = r.templates[w]
		}
	}
	return out
}

// apart makes n elements, none of them in a cache line with anything else, nor
// in the line next to it, which processors fetch along: a worker writes here
// with every packet. The distance is 128 bytes or more for all types used.
func apart[T any](n int) []T {
	const distance = 32
	return make([]T, distance+n+distance)[distance : distance+n : distance+n]
}

// adopt carries what worker state the old snapshot, was, held over to the new one, s.
func (l *Locality) adopt(s *Snapshot, old *Locality, was *Snapshot) {
	for i := range min(len(l.Schedulers), len(old.Schedulers)) {
		l.Schedulers[i].Carry(&old.Schedulers[i])
	}
	copy(l.Backends, old.Backends)
	copy(l.Services, old.Services)
	copy(l.signs, old.signs)
	l.former = old.former
	for id := range min(len(was.bornBackends), len(s.bornBackends)) {
		if s.bornBackends[id] != was.bornBackends[id] {
			l.former.Add(&l.Backends[id])
			l.Backends[id], l.signs[id] = BackendCount{}, Signs{}
		}
	}
	for id := range min(len(was.bornServices), len(s.bornServices)) {
		if s.bornServices[id] != was.bornServices[id] {
			l.Services[id] = ServiceCount{}
		}
	}
}

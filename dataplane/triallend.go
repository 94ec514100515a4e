package dataplane

import (
	"math/bits"
	"slices"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// lent is what one worker's part in a Trial depends on: copies, but for what nobody
// changes.
type lent struct {
	snap   *Snapshot
	routes *route.Table
	tick   uint32

	ready [MaxNICs]bool // NICs that it can send by, with their MACs
	macs  [MaxNICs][6]byte

	buckets   [5]nat.Bucket
	ipID      uint32
	learned   learned
	full      bool // its flow table is
	crowded   bool // and half-open flows are as many as there may be
	evictable bool
	begins    bool        // the packet's flow would begin here
	refused   refusedLine // of the packet, if so
	flows     []lentFlow

	services  []lentService
	backends  []lentBackend
	templates []template // the bucket in which the client's prefix is, of the service with id stuck
	prefix    packet.Addr
	stuck     uint32
}

// maxLent bounds the flows of one worker.
const maxLent = 64

// lentFlow is a flow; of is which of the tuples has led to it, otherOf without one.
type lentFlow struct {
	entry conntrack.Entry
	clock uint32
	of    int
	dir   conntrack.Dir
}

const otherOf = -1

// lentService is a service's scheduler, with loads that are still the worker's.
type lentService struct {
	id    uint32
	state balance.State
}

type lentBackend struct {
	id    uint32
	way   way
	count BackendCount
	held  int64
}

// Look copies what of a worker the trial depends on. For the worker's thread, or inside
// Do: it takes 4 µs, and where a flow would be opened 0.1 more for each backend of its
// service, and, once it is known which, 40 for the local port (BenchmarkTrialLook).
func (t *Trial) Look(w *Worker) {
	w.refresh()
	tick := uint32(t.now / nanosPerTick)
	l := lent{
		snap: w.snap, routes: w.routes, tick: tick, ipID: w.ipID, learned: w.learned,
		buckets: [...]nat.Bucket{w.errors, w.resets, w.serverResets, w.tooBigs, w.farewells},
		full:    w.table.Len() >= w.table.Cap(), crowded: w.crowded(),
	}
	for nic := range l.ready {
		if q := w.queueOf(uint8(nic)); q != nil {
			l.ready[nic], l.macs[nic] = true, q.mac
		}
	}
	ids := t.lendFlows(w, &l)
	if p := &t.parsed; p.Err == packet.ErrNone && len(t.tuples) > 0 {
		ids = append(ids, t.part(w, &l)...)
		// Asked for the line knows the time, which is all that changes.
		l.refused = *w.refusedLine(w.table.Hash(&p.Tuple), uint64(tick/refusedTime))
		if l.crowded {
			pace := w.pace
			l.evictable = w.evictable()
			w.pace = pace
		}
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		l.lendService(w, id)
	}
	for i := range t.asks {
		if a := &t.asks[i]; a.worker == w.id && !a.asked {
			a.ask(w, tick)
		}
	}
	t.lent[w.id] = l
}

// lendFlows copies the flows that matter and returns their services.
func (t *Trial) lendFlows(w *Worker, l *lent) (ids []uint32) {
	add := func(r conntrack.Ref, of int, d conntrack.Dir) {
		e := w.table.Entry(r)
		if len(l.flows) < maxLent && !slices.ContainsFunc(l.flows, func(f lentFlow) bool { return sameFlow(e, &f.entry) }) {
			l.flows = append(l.flows, lentFlow{*e, w.table.Clock(r), of, d})
			ids = append(ids, e.Service)
		}
	}
	for i := range t.tuples {
		if r, d, ok := w.table.Lookup(&t.tuples[i], &w.snap.Directory); ok {
			add(r, i, d)
		}
	}
	if r := w.table.OldestHalfOpen(); r != 0 && (l.full || l.crowded) {
		add(r, otherOf, 0)
	}
	if l.full && len(l.flows) == 0 {
		var ref [1]conntrack.Ref
		var e [1]conntrack.Entry
		if n, _ := w.table.CopyFrom(1, ref[:], e[:]); n == 1 {
			add(ref[0], otherOf, 0)
		}
	}
	return ids
}

// part is the services that matter because the packet's flow would be w's, or what holds
// its client to a backend.
func (t *Trial) part(w *Worker, l *lent) (ids []uint32) {
	p := &t.parsed
	svc := w.snap.names.find(p.Dst, p.DstPort, p.Proto)
	owned := ownedVIP
	if svc < 0 {
		owned = w.snap.names.owner(p.Dst)
	}
	l.begins = w.ownerOf(p, svc, owned, true) == w.id
	mine := l.begins || w.ownerOf(p, svc, owned, false) == w.id
	if a := w.snap.answererOf(p); a != nil {
		ids = append(ids, a.service)
	}
	if svc < 0 {
		return ids
	}
	s := &w.snap.Services[svc]
	if s.stick.timeout != 0 && s.Set != nil && w.here.templates != nil {
		l.prefix = s.stick.prefix(p.Src)
		h := w.owners.template(l.prefix, uint32(svc))
		if w.owners.templateOwner(h) == w.id {
			at, _ := bits.Mul64(h<<16, w.here.templates.buckets)
			l.templates = slices.Clone(w.here.templates.slots[at*bucketTemplates:][:bucketTemplates])
			l.stuck, mine = uint32(svc), true
		}
	}
	if mine {
		ids = append(ids, uint32(svc))
	}
	return ids
}

// lendService copies a service's scheduler and backends, those that flows have been lent
// of too.
func (l *lent) lendService(w *Worker, id uint32) {
	if st := &w.here.Schedulers[id]; w.snap.Services[id].Set != nil {
		l.services = append(l.services, lentService{id, st.Copy(w.snap.loads)})
	}
	backends := slices.Clone(w.snap.Services[id].Backends)
	for i := range l.flows {
		if e := &l.flows[i].entry; e.Service == id {
			backends = append(backends, e.Backend)
		}
	}
	slices.Sort(backends)
	for _, b := range slices.Compact(backends) {
		one := lentBackend{id: b, way: w.ways[b], count: w.here.Backends[b]}
		if int(b) < len(w.here.held) {
			one.held = w.here.held[b]
		}
		l.backends = append(l.backends, one)
	}
}

// ask looks for the port that the worker would give the flow.
func (a *portAsk) ask(w *Worker, tick uint32) {
	if int(a.service) >= len(w.snap.Services) || int(a.backend) >= len(w.snap.Directory.Backends) {
		return
	}
	ports := new(nat.Ports)
	w.ports.CopyTo(ports)
	a.asked = true
	a.local, a.port, _, a.found = ports.Pick(w.table, &w.snap.Directory, w.snap.Services[a.service].Locals, a.backend, tick)
}

// template is the one that holds the client to a backend; nil without.
func (l *lent) template() *template {
	for i := range l.templates {
		x := &l.templates[i]
		if x.service == l.stuck+1 && x.prefix == l.prefix && int32(l.tick-x.expires) < 0 &&
			x.born == uint16(l.snap.bornBackends[x.backend]) && l.snap.Services[l.stuck].Set.Contains(x.backend) {
			return x
		}
	}
	return nil
}

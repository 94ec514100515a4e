package dataplane

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"github.com/l4fwd/l4fwd/packet"
)

// Persistence keeps the clients of a prefix with one backend: what that is, a template
// remembers for some time after their last new flow. A template belongs to the
// worker at the hash of prefix and service, so there is one of it although the flows
// are different workers'. The first packet of a flow goes to the flow's owner as
// any packet does; that sends it to the template's owner, with the question noted in
// the frame's headroom, and gets it back with the answer. Nobody else's packets
// take that way.

// Persistence keeps the clients of a prefix with one backend.
type Persistence struct {
	Timeout uint32 // ticks since the last new flow; 0 is no persistence
	Prefix  int    // bits of the client's address, which is of the VIP's family
}

// stick is the persistence of a service.
type stick struct {
	mask    packet.Addr // of the clients' prefix
	timeout uint32      // ticks; 0 is no persistence
}

// newStick is the persistence by prefixes of so many bits of addresses of a VIP's
// family.
func newStick(timeout uint32, bitsOf int, v4 bool) stick {
	if v4 {
		bitsOf += 96
	}
	ones := func(n int) uint64 { return ^(^uint64(0) >> min(max(n, 0), 64)) }
	return stick{mask: packet.Addr{Hi: ones(bitsOf), Lo: ones(bitsOf - 64)}, timeout: timeout}
}

// prefix is the client's.
func (s *stick) prefix(client packet.Addr) packet.Addr {
	return packet.Addr{Hi: client.Hi & s.mask.Hi, Lo: client.Lo & s.mask.Lo}
}

// In burst.nic and packDesc's word, beside the NIC and known: the frame goes to a
// template's owner, or comes back from there. What it is about is in its headroom.
const (
	asks    = 0x40
	advised = 0x20
)

var _ [advised - MaxNICs]byte

// question is what is noted before a frame that asks, and the answer. It leaves the
// place of a fragment's note alone.
const (
	questionLen     = 32 + noteLen
	questionPrefix  = 0
	questionService = 16
	questionFrom    = 20
	questionBackend = 24
)

// templates are those of one worker: a table of buckets of eight. The worker alone
// writes it, the control plane makes it.
type templates struct {
	slots   []template
	buckets uint64
}

type template struct {
	prefix  packet.Addr
	service uint32 // id+1; 0 is no template
	backend uint32
	expires uint32 // tick
	born    uint16 // of the backend, see Snapshot.bornBackends, as far as it fits
	renewed bool   // a second flow has come
}

var _ [32 - unsafe.Sizeof(template{})]byte

const bucketTemplates = 8

// newTemplates makes room for about n templates.
func newTemplates(n int) *templates {
	buckets := max(1, n/bucketTemplates)
	return &templates{slots: make([]template, buckets*bucketTemplates), buckets: uint64(buckets)}
}

// makeTemplates makes the workers' templates if a service has persistence for the
// first time. They outlive all snapshots.
func (r *Registry) makeTemplates(spec *Spec) {
	for i := range spec.Services {
		if spec.Services[i].Persistence.Timeout == 0 || r.templates != nil {
			continue
		}
		for range r.workers {
			r.templates = append(r.templates, newTemplates(spec.Templates/r.workers))
		}
	}
}

// find returns the template of a prefix and service, whose hash is h, or one to be
// made it, and whether it is there. A new one takes the place of what is over, else
// of the oldest that nobody has come back to, else of the oldest: a flood
// of invented addresses forgets those first that come but once. evicted is whether it
// was still in force.
func (t *templates) find(h uint64, prefix packet.Addr, service, now uint32) (x *template, found, evicted bool) {
	at, _ := bits.Mul64(h<<16, t.buckets) // the owner is in the bits above
	bucket := t.slots[at*bucketTemplates:][:bucketTemplates]
	x = &bucket[0]
	for i := range bucket {
		y := &bucket[i]
		over := y.service == 0 || int32(now-y.expires) >= 0
		switch {
		case over:
			y.service = 0
		case y.service == service+1 && y.prefix == prefix:
			return y, true, false
		}
		if before(y, x) {
			x = y
		}
	}
	return x, false, x.service != 0
}

// before reports whether a is to make room rather than b.
func before(a, b *template) bool {
	switch {
	case (a.service == 0) != (b.service == 0):
		return a.service == 0
	case a.renewed != b.renewed:
		return b.renewed
	}
	return int32(a.expires-b.expires) < 0
}

// template is a hash of a prefix and service, the same on every worker.
func (o *ownership) template(prefix packet.Addr, service uint32) uint64 {
	h, l := bits.Mul64(prefix.Hi^o.k1, prefix.Lo^o.k0)
	h, l = bits.Mul64(h^l^o.k0, uint64(service)^o.k1)
	h, l = bits.Mul64(h^l^o.k1, 0xa0761d6478bd642f)
	return h ^ l
}

// templateOwner is the worker whose templates that of hash h is among: by the upper 16
// bits.
func (o *ownership) templateOwner(h uint64) int { return int((h >> 48) * uint64(o.workers) >> 16) }

// nobody is no backend.
const nobody = ^uint32(0)

// persist is the backend that the client of row i, which opens a flow of service id,
// has to go to: nobody if that is for the scheduler to say. With any other verdict
// than Forwarded the row is on its way to who knows.
func (w *Worker) persist(i int, svc *Service, id uint32) (backend uint32, v Verdict) {
	d, nic := &w.b.desc[i], &w.b.nic[i]
	note := d.Addr - questionLen
	if *nic&advised != 0 {
		*nic &^= advised
		q := w.umem[note:d.Addr:d.Addr]
		backend = binary.NativeEndian.Uint32(q[questionBackend:])
		if binary.NativeEndian.Uint32(q[questionService:]) != id || !svc.Set.Contains(backend) {
			backend = nobody // another snapshot's
		}
		return backend, Forwarded
	}
	prefix := svc.stick.prefix(w.b.pkt[i].Src)
	h := w.owners.template(prefix, id)
	owner := w.owners.templateOwner(h)
	if owner == w.id {
		return w.advice(prefix, id, h), Forwarded
	}
	if w.frags.first {
		return nobody, Forwarded // the rest of its datagram would not wait
	}
	q := w.umem[note:d.Addr:d.Addr]
	prefix.Put16(q[questionPrefix:])
	binary.NativeEndian.PutUint32(q[questionService:], id)
	binary.NativeEndian.PutUint32(q[questionFrom:], uint32(w.id))
	*nic |= asks
	return nobody, w.handOver(i, owner)
}

// advise answers the question of row i and sends it back.
func (w *Worker) advise(i int) Verdict {
	d, nic := &w.b.desc[i], &w.b.nic[i]
	*nic = *nic&^asks | advised
	q := w.umem[d.Addr-questionLen : d.Addr : d.Addr]
	prefix := packet.Addr16(q[questionPrefix:])
	id := binary.NativeEndian.Uint32(q[questionService:])
	backend := nobody
	if int(id) < len(w.snap.Services) && w.snap.Services[id].Set != nil {
		backend = w.advice(prefix, id, w.owners.template(prefix, id))
	}
	binary.NativeEndian.PutUint32(q[questionBackend:], backend)
	return w.handOver(i, int(binary.NativeEndian.Uint32(q[questionFrom:])))
}

// advice is the backend of a prefix by its template, which is this worker's and is
// renewed by it, or made. The scheduler sees the prefix in place of the client.
func (w *Worker) advice(prefix packet.Addr, id uint32, h uint64) uint32 {
	svc, t := &w.snap.Services[id], w.here.templates
	if t == nil || svc.stick.timeout == 0 {
		return nobody
	}
	x, found, evicted := t.find(h, prefix, id, w.tick)
	if !found || !svc.Set.Contains(x.backend) || x.born != uint16(w.snap.bornBackends[x.backend]) {
		st := &w.here.Schedulers[id]
		if svc.looks {
			svc.Set.Look(st, w.tick)
		}
		backend, ok := svc.Set.PickFor(st, prefix, 0, 0)
		if !ok {
			return nobody
		}
		if evicted {
			w.count.TemplatesEvicted++
		}
		*x = template{prefix: prefix, service: id + 1, backend: backend, born: uint16(w.snap.bornBackends[backend])}
	}
	x.renewed, x.expires = found, w.tick+svc.stick.timeout
	return x.backend
}

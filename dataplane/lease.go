package dataplane

import (
	"sync/atomic"

	"github.com/l4fwd/l4fwd/packet"
)

// quota is a backend's MaxConnections, which holds for all workers together, and what
// is left of it. From that a worker takes leases: the right to so many flows. It opens
// flows out of what it holds and gives back what it has too much of, so that the
// quota, which all write to, is touched once in many flows where the limit is large.
// What others hold and do not use is lost to a worker that finds nothing left: at
// most a thirty-second of the limit, and nothing where the limit is less than 128
// for each worker, since leases are of one flow then. There is no overshoot, but for
// flows that were there before the limit was, or was lowered; they go on.
type quota struct {
	left  atomic.Int64 // below 0 while there are more flows than there may be
	limit int64        // the control plane's
	_     [112]byte    // no other beside it
}

// lease is the quota of a backend, nil if it has no limit, and how many flows are taken
// from it at a time.
type lease struct {
	from  *quota
	chunk int64
}

// maxLease bounds a lease.
const maxLease = 64

// lend makes the leases by backend id, nil if nobody has a limit. A quota stays that of
// its backend as long as there is a limit.
func (r *Registry) lend(spec *Spec) []lease {
	limits := make([]uint32, len(r.reals))
	limited := false
	for i := range spec.Services {
		s := &spec.Services[i]
		id := r.serviceID(s)
		for _, b := range s.Backends {
			limits[r.backend(id, b.Endpoint)] = b.MaxConnections
			limited = limited || b.MaxConnections > 0
		}
	}
	was := r.quotas
	r.quotas = nil
	if !limited {
		return nil
	}
	r.quotas = make([]*quota, len(limits))
	out := make([]lease, len(limits))
	for id, n := range limits {
		if n == 0 {
			continue
		}
		q := &quota{}
		if id < len(was) && was[id] != nil {
			q = was[id]
		}
		q.left.Add(int64(n) - q.limit)
		q.limit = int64(n)
		r.quotas[id] = q
		out[id] = lease{q, min(max(q.limit/int64(64*r.workers), 1), maxLease)}
	}
	return out
}

// take gets the right to as many flows as one lease has, or fewer, 0 if none are left.
func (l *lease) take() int64 {
	for {
		left := l.from.left.Load()
		n := min(left, l.chunk)
		if n <= 0 {
			return 0
		}
		if l.from.left.CompareAndSwap(left, left-n) {
			return n
		}
	}
}

// hold reports whether the worker may open another flow to backend, and sees to it
// that it holds a lease then.
func (w *Worker) hold(backend uint32) bool {
	l := &w.snap.leases[backend]
	if l.from == nil {
		return true
	}
	held := &w.here.held[backend]
	if w.here.Backends[backend].Active >= *held {
		*held += l.take()
	}
	return w.here.Backends[backend].Active < *held
}

// choose is the choice-th choice of a backend for the flow of service id that p opens. What it
// finds full nobody here tries again in this tick.
func (w *Worker) choose(svc *Service, id uint32, p *packet.Packet, choice int) (backend uint32, ok bool) {
	st := &w.here.Schedulers[id]
	backend, ok = svc.Set.PickFor(st, p.Src, p.SrcPort, choice)
	for ok && svc.limited && !w.hold(backend) {
		svc.Set.Refuse(st)
		backend, ok = svc.Set.PickFor(st, p.Src, p.SrcPort, choice)
	}
	return backend, ok
}

// ended counts a flow less of backend.
func (w *Worker) ended(backend uint32) {
	w.here.Backends[backend].Active--
	if w.ways[backend].marks&told != 0 {
		w.tell(backend)
	}
}

// tell lets other workers know how many flows of backend are here, and gives back what
// is leased in vain.
func (w *Worker) tell(backend uint32) {
	n := w.here.Backends[backend].Active
	w.snap.loads.Set(w.id, backend, n)
	if int(backend) >= len(w.snap.leases) {
		return
	}
	l := &w.snap.leases[backend]
	// With room for one more lease, flows that come and go do not take and give
	// back in turn, but where the leases are of one.
	if held := &w.here.held[backend]; l.from != nil && *held-n > 2*(l.chunk-1) {
		back := min(*held-n, l.chunk)
		*held -= back
		l.from.left.Add(back)
	}
}

// retell is tell for all backends after a change of the snapshot, given the leases of
// the last one. A limit that is new finds flows there, which count.
func (w *Worker) retell(was []lease, held []int64) {
	for id := range w.ways {
		if w.ways[id].marks&told == 0 {
			continue
		}
		n := w.here.Backends[id].Active
		w.snap.loads.Set(w.id, uint32(id), n)
		if id >= len(w.snap.leases) || w.snap.leases[id].from == nil {
			continue
		}
		if id < len(was) && was[id].from == w.snap.leases[id].from {
			w.here.held[id] = held[id]
		} else {
			w.here.held[id] = n
			w.snap.leases[id].from.left.Add(-n)
		}
	}
}

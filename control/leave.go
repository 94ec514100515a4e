package control

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// lastWords is how long packets of flows that have been ended are still taken, so that
// who sends them hears of it.
const lastWords = time.Minute

// leaver is what a reload has removed: a service, one backend of one, or a local
// address. It drains until its time is over; then its flows are ended.
type leaver struct {
	key     dataplane.ServiceKey
	service *config.Service   // as it was, of a backend's with that one alone; nil for a local address
	whole   bool              // the service itself is gone
	local   config.LocalRange // one address
	until   time.Time         // its flows go on
	ended   bool
}

// backend is that of a leaver that is no whole service.
func (l *leaver) backend() netip.AddrPort { return l.service.Backends[0].Address }

// leaving are those who leave when next takes the place of old, whose leavers are was.
// Who is back is none any more.
func leaving(old, next *config.Config, was []leaver, now time.Time) []leaver {
	before, after := plan.Spec(old, nil), plan.Spec(next, nil) // services are in their places
	at := make(map[dataplane.ServiceKey]int, len(after.Services))
	for i := range after.Services {
		at[after.Services[i].Key()] = i
	}
	locals := make(map[netip.Addr]bool)
	for a := range next.Locals() {
		locals[a] = true
	}
	for i := range next.Services {
		locals[next.Services[i].Address.Addr()] = true // the name is taken
	}
	has := backendsOf(next)
	out := make([]leaver, 0, len(was))
	for _, l := range was {
		if l.service == nil {
			if !locals[l.local.First] {
				out = append(out, l)
			}
			continue
		}
		i, ok := at[l.key]
		switch {
		case ok && l.whole: // it is back, not all of its backends perhaps
			out = append(out, removed(l, i, has, l.until)...)
		case !ok || !has(i, l.backend()):
			out = append(out, l)
		}
	}
	for i := range old.Services {
		s, key := &old.Services[i], before.Services[i].Key()
		j, ok := at[key]
		if !ok {
			out = append(out, leaver{key: key, service: s, whole: true, until: now.Add(s.DrainTimeout)})
			continue
		}
		out = append(out, removed(leaver{key: key, service: s}, j, has, now.Add(next.Services[j].DrainTimeout))...)
	}
	for a, r := range old.Locals() {
		if !locals[a] {
			r.First, r.Last = a, a
			out = append(out, leaver{local: r, until: now.Add(next.DrainTimeout)})
		}
	}
	return out
}

// removed are the backends of was that the service at a place of the next configuration,
// which is the same one, has not.
func removed(was leaver, at int, has func(int, netip.AddrPort) bool, until time.Time) (out []leaver) {
	for _, b := range was.service.Backends {
		if !has(at, b.Address) {
			one := *was.service
			one.Backends = []config.Backend{b}
			out = append(out, leaver{key: was.key, service: &one, until: until, ended: was.ended})
		}
	}
	return out
}

// backendsOf answers whether the service at a place of c has a backend. It is asked of
// every one of tens of thousands.
func backendsOf(c *config.Config) func(service int, a netip.AddrPort) bool {
	const few = 16 // are looked through faster than put into a map
	sets := make(map[int]map[netip.AddrPort]bool)
	return func(service int, a netip.AddrPort) bool {
		s := &c.Services[service]
		if len(s.Backends) <= few {
			return hasBackend(s, a)
		}
		set := sets[service]
		if set == nil {
			set = make(map[netip.AddrPort]bool, len(s.Backends))
			for _, b := range s.Backends {
				set[b.Address] = true
			}
			sets[service] = set
		}
		return set[a]
	}
}

func hasBackend(s *config.Service, a netip.AddrPort) bool {
	return slices.ContainsFunc(s.Backends, func(b config.Backend) bool { return b.Address == a })
}

// end marks those whose time is over, and forgets those of whom nobody needs to hear any
// more. It tells whether anything has changed.
func end(all []leaver, now time.Time) (left []leaver, changed bool) {
	over := func(l leaver) bool { return !l.ended && !now.Before(l.until) }
	unheard := func(l leaver) bool {
		return (l.ended || over(l)) && (l.service == nil || !now.Before(l.until.Add(lastWords)))
	}
	if !slices.ContainsFunc(all, func(l leaver) bool { return over(l) || unheard(l) }) {
		return all, false // as nearly every second
	}
	left = make([]leaver, 0, len(all))
	for _, l := range all {
		if unheard(l) {
			continue
		}
		l.ended = l.ended || over(l)
		left = append(left, l)
	}
	return left, true
}

// services are those of the configuration and those that leave, backends that leave each
// as a service of it alone.
func (d *Daemon) services() iter.Seq[*config.Service] {
	return func(yield func(*config.Service) bool) {
		for i := range d.cfg.Services {
			if !yield(&d.cfg.Services[i]) {
				return
			}
		}
		for i := range d.leavers {
			if s := d.leavers[i].service; s != nil && !yield(s) {
				return
			}
		}
	}
}

// effective is the configuration and what leaves it, for all that only asks which
// addresses there are. It copies services; services does not.
func (d *Daemon) effective() *config.Config {
	if len(d.leavers) == 0 {
		return d.cfg
	}
	out := *d.cfg
	out.Services = append(make([]config.Service, 0, len(out.Services)+len(d.leavers)), out.Services...)
	out.LocalAddresses = append(make([]config.LocalRange, 0, len(out.LocalAddresses)+len(d.leavers)), out.LocalAddresses...)
	for i := range d.leavers {
		if l := &d.leavers[i]; l.service != nil {
			out.Services = append(out.Services, *l.service)
		} else {
			out.LocalAddresses = append(out.LocalAddresses, l.local)
		}
	}
	return &out
}

// drain adds those who leave, and whose flows go on, to what the data plane is to do.
func (d *Daemon) drain(spec *dataplane.Spec) {
	if len(d.leavers) == 0 {
		return
	}
	at := make(map[dataplane.ServiceKey]*dataplane.ServiceSpec, len(spec.Services))
	for i := range spec.Services {
		at[spec.Services[i].Key()] = &spec.Services[i]
	}
	var gone []dataplane.ServiceSpec
	goneAt := make(map[dataplane.ServiceKey]int)
	for i := range d.leavers {
		l := &d.leavers[i]
		switch {
		case l.ended:
		case l.service == nil:
			spec.FormerLocals = append(spec.FormerLocals, packet.AddrFrom(l.local.First))
		case l.whole:
			one := plan.Service(l.service)
			one.Draining = true
			goneAt[l.key] = len(gone)
			gone = append(gone, one)
		}
	}
	for i := range d.leavers {
		l := &d.leavers[i]
		if l.ended || l.service == nil || l.whole {
			continue
		}
		backends := plan.Service(l.service).Backends
		if j, ok := goneAt[l.key]; ok { // it had left before the service did
			gone[j].Backends = append(gone[j].Backends, backends...)
			continue
		}
		if s := at[l.key]; s != nil && s.Backends[0].Endpoint.Addr.Is4() == backends[0].Endpoint.Addr.Is4() {
			if s.HashSlots == 0 { // as on a machine that has none of those who leave: clients are to stay with theirs
				s.HashSlots = balance.Slots(len(s.Backends))
			}
			backends[0].Weight = 0
			s.Backends = append(s.Backends, backends[0])
		}
	}
	spec.Services = append(spec.Services, gone...)
}

// retire ends the flows of those whose time is over.
func (d *Daemon) retire(ctx context.Context, now time.Time) {
	left, changed := end(d.leavers, now)
	if !changed {
		return
	}
	ended := len(d.leavers) - len(left)
	d.leavers = left
	d.forget(ctx)
	if err := d.republish(); err != nil {
		d.log.Error("ending what drained", zap.Error(err))
		return
	}
	d.log.Info("what a reload removed has drained", zap.Int("forgotten", ended), zap.Int("left", len(left)))
	d.resettle()
}

// forget lets ids go to others that no flow has any more.
func (d *Daemon) forget(ctx context.Context) {
	workers, err := d.sampleWorkers(ctx)
	if err != nil {
		d.log.Debug("ids stay as they are", zap.Error(err))
		return
	}
	var counts []dataplane.BackendCount
	for i := range workers {
		counts = sum(counts, workers[i].Backends)
	}
	d.registry.Forget(counts)
}

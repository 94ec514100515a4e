package control

import (
	"context"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/metrics"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// sample is what metrics are made of. From any goroutine but that of Run, which only has
// to say what there is: the workers are asked here.
func (d *Daemon) sample(ctx context.Context) (*metrics.Sample, error) {
	s := new(metrics.Sample)
	err := d.onLoop(ctx, func() {
		s.Started, s.Loaded, s.Reloads = d.started, d.loaded, uint64(d.reloads)
		s.ReloadsRefused, s.LastRefused = d.reloadsRefused.Load(), d.lastRefused.Load()
		s.WrongTokens = metrics.WrongTokens{Web: d.gates.web.Wrong(), Admin: d.gates.admin.Wrong()}
		s.Services = d.sampleServices()
		if d.connLog != nil {
			s.ConnectionsLogged, s.ConnectionsLost = d.connLog.Counts()
		}
		s.Discovery = d.sampleDiscovery()
		for _, l := range d.links {
			s.NICs = append(s.NICs, l.sample())
		}
	})
	if err != nil {
		return nil, err
	}
	if s.Workers, err = d.sampleWorkers(ctx); err != nil {
		return nil, err
	}
	for i := range s.Workers {
		s.Workers[i].Handshakes, err = copied(ctx, d, i, 64, func(w *dataplane.Worker, at int, to []dataplane.Handshakes) int {
			from := w.Handshakes()[at:]
			for i := range min(len(to), len(from)) {
				if to[i] = (dataplane.Handshakes{}); from[i] != nil {
					to[i] = *from[i]
				}
			}
			return min(len(to), len(from))
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// sampleServices says what there is and how backends are treated now.
func (d *Daemon) sampleServices() []metrics.Service {
	effective := plan.Healthy(d.cfg, d.view, d.healthOf)
	out := make([]metrics.Service, 0, len(d.names))
	for _, n := range d.names {
		s := metrics.Service{Name: n.name, ID: n.id, QUIC: n.quic, Handshakes: n.handshakes, Answers: n.answers}
		for j, b := range n.backends {
			s.Backends = append(s.Backends, d.sampleBackend(n.name, &n.of.Backends[j], effective))
			s.Backends[j].ID = b.id
		}
		out = append(out, s)
	}
	return out
}

// sampleBackend says how a backend is treated now, and why.
func (d *Daemon) sampleBackend(service string, b *config.Backend, effective plan.View) metrics.Backend {
	now := effective(service, b)
	out := metrics.Backend{Name: b.Address.String(), Weight: now.Weight}
	status, checked := d.healthOf(health.Key{Service: service, Backend: b.Address})
	out.Judged, out.Suspect, out.Panic = checked, status.Suspect != nil, now.Panic
	if checked && !status.Observed {
		out.Checks = &metrics.Checks{Passed: status.Checks - status.Failed, Failed: status.Failed, Took: status.Took}
	}
	switch said := d.view(service, b); {
	case checked && status.State == health.Down:
		out.State = metrics.Down
	case said.Down || said.Weight == 0:
		out.State = metrics.Draining
	case now.Down || now.Weight == 0:
		out.State = metrics.Standby
	}
	return out
}

// sample is what there is to say of the NIC.
func (l *link) sample() metrics.NIC {
	s := metrics.NIC{Name: l.name, Up: l.serves()}
	if l.program != nil {
		if x, err := l.program.Stats(); err == nil {
			s.XDP = x
		}
	}
	for _, sock := range l.sockets {
		if q, err := sock.Stats(); err == nil {
			s.Queues = append(s.Queues, q)
		}
	}
	return s
}

// sampleWorkers is what every worker has counted, but for its handshakes.
func (d *Daemon) sampleWorkers(ctx context.Context) ([]metrics.Worker, error) {
	ctx, cancel := context.WithTimeout(ctx, statsPatience)
	defer cancel()
	out := make([]metrics.Worker, len(d.dp.Workers))
	for i := range out {
		s := &out[i]
		err := d.onWorker(ctx, i, func(w *dataplane.Worker) {
			s.Counts, s.Room, s.FreeFrames, s.FragmentsWaiting = w.Counts(), w.Room(), w.FreeFrames(), w.FragmentsWaiting()
			s.Former, s.AllHandshakes = w.FormerCount(), w.AllHandshakes()
			if d.stages != nil {
				for stage, nanos := range d.stages[i].Nanos {
					s.Stages[stage] = time.Duration(nanos) * stageEvery
				}
			}
		})
		if err == nil {
			s.Backends, err = copied(ctx, d, i, 1024, func(w *dataplane.Worker, at int, to []dataplane.BackendCount) int {
				return copy(to, w.BackendCounts()[at:])
			})
		}
		if err == nil {
			s.Services, err = copied(ctx, d, i, 1024, func(w *dataplane.Worker, at int, to []dataplane.ServiceCount) int {
				return copy(to, w.ServiceCounts()[at:])
			})
		}
		if err == nil {
			s.Signs, err = d.copySigns(ctx, i)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// copied is a list that worker i has, which never becomes shorter: atOnce elements, some
// tens of kilobytes, between two bursts, so that the worker stops for a few microseconds
// at a time however many backends there are. part copies from at on into memory that is
// warm, and says how many there were.
func copied[T any](ctx context.Context, d *Daemon, i, atOnce int, part func(w *dataplane.Worker, at int, to []T) int) (out []T, err error) {
	warm := make([]T, atOnce)
	for n := atOnce; n == atOnce && err == nil; out = append(out, warm[:n]...) {
		n = 0
		err = d.onWorker(ctx, i, func(w *dataplane.Worker) { n = part(w, len(out), warm) })
	}
	return out, err
}

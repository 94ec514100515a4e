package control

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// signsPeriod is how often what connections meet with is looked at, if anybody asks.
const signsPeriod = time.Second

// watchConnections has what clients' connections meet with speak about backends. On a
// goroutine of its own: with many backends it takes the workers some time to tell.
func (d *Daemon) watchConnections(ctx context.Context) {
	var watch health.Watch
	second := time.NewTicker(signsPeriod)
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
		all, err := d.observe(ctx)
		if err != nil {
			continue // a worker that is busy, or the daemon ends
		}
		findings := watch.Look(time.Now(), all)
		for i, f := range findings {
			d.follow(f, i < toldChanges)
		}
		if n := len(findings) - toldChanges; n > 0 {
			d.log.Warn("more backends are suspect, or are not any more", zap.Int("backends", n))
		}
	}
}

// observe is what connections have met with, of all backends that are judged by it.
func (d *Daemon) observe(ctx context.Context) (out []health.Observation, err error) {
	var names []serviceNames
	if err := d.onLoop(ctx, func() { names = d.names }); err != nil {
		return nil, err
	}
	for _, n := range names {
		p := plan.Passive(n.of)
		if p == nil {
			continue
		}
		for _, b := range n.backends {
			out = append(out, health.Observation{Key: health.Key{Service: n.name, Backend: b.addr}, Policy: p, ID: b.id})
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsPatience)
	defer cancel()
	var signs []dataplane.Signs
	for i := range d.dp.Workers {
		one, err := d.copySigns(ctx, i)
		if err != nil {
			return nil, err
		}
		signs = sum(signs, one)
	}
	for i := range out {
		if o := &out[i]; o.ID < len(signs) { // else no worker knows it yet
			s := &signs[o.ID]
			o.Tally = health.Tally{Answered: s.Answered, Unanswered: s.Unanswered, Refused: s.Refused, Reset: s.Reset}
		}
	}
	return out, nil
}

// copySigns is what connections have met with, of worker i.
func (d *Daemon) copySigns(ctx context.Context, i int) ([]dataplane.Signs, error) {
	return copied(ctx, d, i, 1024, func(w *dataplane.Worker, at int, to []dataplane.Signs) int {
		return copy(to, w.Signs()[at:])
	})
}

// follow has the engine do what was found.
func (d *Daemon) follow(f health.Finding, tell bool) {
	fields := []zap.Field{zap.String("service", f.Service), zap.Stringer("backend", f.Backend)}
	switch f.What {
	case health.Condemned:
		d.health.TakeDown(f.Key, f.Reason, f.For) // which is logged as other changes are
		return
	case health.Absolved:
		d.health.Absolve(f.Key)
		if tell {
			d.log.Info("backend is not suspect any more", fields...)
		}
		return
	}
	before, _ := d.health.Status(f.Key)
	d.health.Suspect(f.Key, f.Reason)
	if tell && before.Suspect == nil && before.State != health.Down {
		d.log.Warn("backend is suspect", append(fields, zap.String("reason", f.Reason))...)
	}
}

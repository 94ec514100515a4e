package control

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// How often the loop looks after what does not announce itself.
const (
	eventPeriod = 10 * time.Millisecond // words from workers
	retryPeriod = time.Second           // NICs out of service
)

// supervise is the daemon's loop.
func (d *Daemon) supervise(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	defer d.unready()
	words, second := time.NewTicker(eventPeriod), time.NewTicker(retryPeriod)
	defer words.Stop()
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			d.farewell()
			return nil
		case err := <-d.failed:
			return err
		case t := <-d.routes:
			d.dp.PublishRoutes(t)
		case host := <-d.hosts:
			d.rehost(host)
		case e := <-d.events:
			d.linkEvent(ctx, e)
		case <-words.C:
			d.listen()
		case <-second.C:
			for _, l := range d.links {
				d.regain(ctx, l)
			}
			d.writeStats(ctx)
		case <-d.opt.DumpStats:
			d.logStats(ctx)
		}
	}
}

// listen hears what the workers have to say.
func (d *Daemon) listen() {
	for _, w := range d.dp.Workers {
		for {
			e, ok := w.Event()
			if !ok {
				break
			}
			switch e.Kind {
			case dataplane.EventResolve:
				d.follower.Resolve(e.Addr.Netip())
			case dataplane.EventPortDown:
				if l := d.links[e.NIC]; l.up {
					d.log.Warn("interface is down", zap.String("interface", l.name))
					d.lose(l)
					l.retry = time.Now().Add(retryPeriod)
				}
			}
		}
	}
}

// rehost takes note of the host's addresses: what it owns is not ours to take
// whole. A bad turn changes nothing.
func (d *Daemon) rehost(host []netip.Addr) {
	if slices.Equal(host, d.host) {
		return
	}
	rules, refused := plan.Rules(d.cfg, host)
	for _, a := range refused {
		d.log.Error("a local address has become the host's own and cannot be used any more", zap.Stringer("address", a))
	}
	if err := d.steer.Update(rules); err != nil {
		d.log.Error("XDP rules", zap.Error(err))
		return
	}
	d.host, d.rules = host, rules
}

// ready tells whoever waits that traffic is being taken.
func (d *Daemon) ready() error {
	d.log.Info("ready", zap.Int("workers", len(d.dp.Workers)), zap.Int("services", len(d.cfg.Services)), zap.Int("interfaces", len(d.links)))
	if err := notify("READY=1"); err != nil {
		d.log.Warn("telling the service manager", zap.Error(err))
	}
	if d.opt.ReadyFile == "" {
		return nil
	}
	return os.WriteFile(d.opt.ReadyFile, nil, 0o644)
}

func (d *Daemon) unready() {
	if err := notify("STOPPING=1"); err != nil {
		d.log.Debug("telling the service manager", zap.Error(err))
	}
	if d.opt.ReadyFile != "" {
		if err := os.Remove(d.opt.ReadyFile); err != nil {
			d.log.Debug("ready file", zap.Error(err))
		}
	}
}

package control

import (
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// view is how a backend is treated now, health aside: as the configuration says, unless
// somebody has ordered otherwise.
func (d *Daemon) view(service string, b *config.Backend) plan.Backend { return d.ordered(service, b) }

// spec is what the data plane is to do now that backends are treated as effective says.
func (d *Daemon) spec(effective plan.View) dataplane.Spec {
	spec := plan.Spec(d.cfg, effective)
	var locals []packet.Addr
	ports := plan.PortRanges(d.cfg)
	for i, a := range spec.Locals {
		if !slices.Contains(d.refused, a.Netip()) {
			locals, spec.LocalPorts = append(locals, a), append(spec.LocalPorts, ports[i])
		}
	}
	spec.Locals = locals
	d.drain(&spec)
	return spec
}

// republish hands the workers what is effective now. Whoever has changed what view or
// spec say calls it, on the loop. With an error all stays as it was.
func (d *Daemon) republish() error {
	effective := plan.Healthy(d.cfg, d.view, d.healthOf)
	snap, err := d.registry.Build(d.spec(effective))
	if err != nil {
		return fmt.Errorf("new snapshot: %w", err)
	}
	d.names = namesOf(d.cfg, snap)
	d.dp.Publish(snap)
	d.tellPanic(effective)
	return nil
}

// tellPanic logs of which services checks are not believed now, and of which again.
func (d *Daemon) tellPanic(effective plan.View) {
	now := map[string]bool{}
	for i := range d.cfg.Services {
		s := &d.cfg.Services[i]
		for j := range s.Backends {
			if s.HealthCheck.PanicThreshold > 0 && effective(s.Name, &s.Backends[j]).Panic {
				now[s.Name] = true
			}
		}
		switch was := d.panicking[s.Name]; {
		case now[s.Name] && !was:
			d.log.Warn("too few backends are live: those that are down get new flows, too",
				zap.String("service", s.Name), zap.Int("panic_threshold", s.HealthCheck.PanicThreshold))
		case was && !now[s.Name]:
			d.log.Info("backends that are down get no new flows any more", zap.String("service", s.Name))
		}
	}
	d.panicking = now
}

package control

import (
	"fmt"
	"slices"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// view is how a backend is treated now, health aside: as the configuration says, unless
// somebody has ordered otherwise.
func (d *Daemon) view(service string, b *config.Backend) plan.Backend { return d.ordered(service, b) }

// spec is what the data plane is to do now.
func (d *Daemon) spec() dataplane.Spec {
	spec := plan.Spec(d.cfg, plan.Healthy(d.cfg, d.view, d.healthOf))
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
	snap, err := d.registry.Build(d.spec())
	if err != nil {
		return fmt.Errorf("new snapshot: %w", err)
	}
	d.names = namesOf(d.cfg, snap)
	d.dp.Publish(snap)
	return nil
}

package control

import (
	"context"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// rehost takes note of the host's addresses: what it owns is not ours to take
// whole. A bad turn changes nothing.
func (d *Daemon) rehost(host []netip.Addr) {
	rules, _ := plan.Rules(d.effective(), host)
	_, refused := plan.Rules(d.cfg, host)
	if err := d.steer.Update(rules); err != nil {
		d.log.Error("XDP rules", zap.Error(err))
		return
	}
	for _, a := range d.rules.Addrs {
		if slices.Contains(host, a) && !slices.Contains(refused, a) {
			d.log.Warn("the host has taken one of our addresses: only what is configured is taken of it now", zap.Stringer("address", a))
		}
	}
	for _, a := range rules.Addrs {
		if slices.Contains(d.host, a) {
			d.log.Info("an address is all ours again", zap.Stringer("address", a))
		}
	}
	d.host, d.rules = host, rules
	d.refuse(refused)
	if d.carrier != nil {
		d.recheck() // to its own addresses the host sends nothing
	}
	for _, l := range d.links {
		if l.voice == nil {
			continue
		}
		if err := d.speakFor(l); err != nil {
			d.log.Debug("announcing addresses", zap.String("interface", l.name), zap.Error(err))
		}
	}
}

// refuse keeps new flows off the local addresses that the host has taken, to
// which no reply would find us. Flows that use one are lost.
func (d *Daemon) refuse(refused []netip.Addr) {
	if slices.Equal(refused, d.refused) {
		return
	}
	d.refused = refused
	if err := d.republish(); err != nil {
		d.log.Error("local addresses have become the host's own that cannot be done without: what was in force before stays", zap.Stringers("addresses", refused), zap.Error(err))
		return
	}
	if err := d.onWorkers(context.Background(), func(*dataplane.Worker) {}); err != nil { // they have it
		d.log.Debug("waiting for the workers", zap.Error(err))
	}
	for _, a := range refused {
		d.log.Error("a local address has become the host's own: it is used no more, its flows are lost", zap.Stringer("address", a))
	}
}

package control

import (
	"context"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// untold are addresses of the host that XDP's rules do not know yet.
type untold struct {
	host    []netip.Addr
	trouble string // why, as it was logged
}

// rehost takes note of the host's addresses: what it owns is not ours to take
// whole. A bad turn changes nothing, and is tried again: until then an address that the
// host has now is all ours, ssh to it included.
func (d *Daemon) rehost(host []netip.Addr) {
	rules, _ := plan.Rules(d.effective(), host)
	_, refused := plan.Rules(d.cfg, host)
	if err := d.opt.update(d.steer, rules); err != nil {
		text := err.Error()
		if d.untold == nil || text != d.untold.trouble { // each second is said once
			d.log.Error("XDP rules do not know the host's addresses as they are; trying again", zap.Error(err))
		}
		d.untold = &untold{host, text}
		return
	}
	if d.untold != nil {
		d.log.Info("XDP rules know the host's addresses again")
		d.untold = nil
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

// rehostAgain is for what rehost could not do.
func (d *Daemon) rehostAgain() {
	if d.untold != nil {
		d.rehost(d.untold.host)
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

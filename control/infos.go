package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// Services lists the services as they are, and those that leave. From any goroutine but
// that of Run.
func (d *Daemon) Services(ctx context.Context) (out []admin.ServiceInfo, err error) {
	e := d.onLoop(ctx, func() { out, err = d.serviceInfos(ctx) })
	return out, errors.Join(e, err)
}

func (d *Daemon) serviceInfos(ctx context.Context) ([]admin.ServiceInfo, error) {
	all, err := d.backendInfos(ctx, func(string, netip.AddrPort) bool { return true })
	if err != nil {
		return nil, err
	}
	out := make([]admin.ServiceInfo, 0, len(d.cfg.Services))
	at := 0
	for i := range d.cfg.Services { // their backends come first, in this order
		s := &d.cfg.Services[i]
		info := infoOf(s)
		for range s.Backends {
			b := &all[at]
			if at++; b.State == admin.BackendUp || b.Panic {
				info.Taking++
			}
			info.Panic = info.Panic || b.Panic
			info.Flows, info.Active = info.Flows+b.Flows, info.Active+b.Active
		}
		out = append(out, info)
	}
	for i := range d.leavers {
		l := &d.leavers[i]
		if l.service == nil || !l.whole {
			continue
		}
		info := infoOf(l.service)
		info.Until = &l.until
		for range l.service.Backends {
			b := &all[at]
			at++
			info.Flows, info.Active = info.Flows+b.Flows, info.Active+b.Active
		}
		out = append(out, info)
	}
	return out, nil
}

func infoOf(s *config.Service) admin.ServiceInfo {
	info := admin.ServiceInfo{Name: s.Name, Address: s.Address, Protocol: s.Protocol.String(), Mode: s.Mode.String(), Backends: len(s.Backends)}
	if s.Mode != config.SNAT {
		info.Scheduler = s.Scheduler.String()
	}
	return info
}

// Backends lists the backends of a service, "" of all, and those that leave. From any
// goroutine but that of Run.
func (d *Daemon) Backends(ctx context.Context, service string) (out []admin.BackendInfo, err error) {
	e := d.onLoop(ctx, func() {
		out, err = d.backendInfos(ctx, func(s string, _ netip.AddrPort) bool { return service == "" || s == service })
	})
	if err = errors.Join(e, err); err == nil && len(out) == 0 {
		err = admin.Refusal(admin.ErrNotFound, fmt.Errorf("no service is called %s; `l4fwd services` lists them", service))
	}
	return out, err
}

// backendInfos are the backends that want wants: those of the configuration, those of
// services that leave, others that leave.
func (d *Daemon) backendInfos(ctx context.Context, want func(service string, a netip.AddrPort) bool) ([]admin.BackendInfo, error) {
	workers, err := d.sampleWorkers(ctx)
	if err != nil {
		return nil, err
	}
	var counts []dataplane.BackendCount
	for i := range workers {
		counts = sum(counts, workers[i].Backends)
	}
	var out []admin.BackendInfo
	add := func(key dataplane.ServiceKey, b admin.BackendInfo, s *config.Service) {
		if id, ok := d.registry.BackendID(key, plan.Endpoint(s, b.Address)); ok && int(id) < len(counts) {
			c := &counts[id]
			b.Flows, b.Active, b.BytesTo, b.BytesFrom = c.Flows, c.Active, c.Bytes[0], c.Bytes[1]
		}
		out = append(out, b)
	}
	spec := plan.Spec(d.cfg, nil)
	now := plan.Healthy(d.cfg, d.view, d.healthOf)
	for i := range d.cfg.Services {
		s := &d.cfg.Services[i]
		for j := range s.Backends {
			if b := &s.Backends[j]; want(s.Name, b.Address) {
				add(spec.Services[i].Key(), d.backendInfo(s, b, now(s.Name, b)), s)
			}
		}
	}
	for _, whole := range [...]bool{true, false} {
		for i := range d.leavers {
			l := &d.leavers[i]
			if l.service == nil || l.whole != whole {
				continue
			}
			state := admin.BackendLeaving
			if l.ended {
				state = admin.BackendGone
			}
			for _, b := range l.service.Backends {
				if want(l.service.Name, b.Address) {
					add(l.key, admin.BackendInfo{
						Service: l.service.Name, Address: b.Address, State: state, Configured: uint32(b.Weight), Until: &l.until,
					}, l.service)
				}
			}
		}
	}
	return out, nil
}

// backendInfo is what there is to say of a backend of the configuration, but for counts.
func (d *Daemon) backendInfo(s *config.Service, b *config.Backend, now plan.Backend) admin.BackendInfo {
	k := health.Key{Service: s.Name, Backend: b.Address}
	info := admin.BackendInfo{
		Service: s.Name, Address: b.Address, Weight: now.Weight, Configured: uint32(b.Weight),
		Health: d.healthStats(k), State: admin.BackendUp, Panic: now.Panic,
	}
	o, ok := d.orders[k]
	if ok {
		info.Ordered = &o
	}
	switch {
	case o.Action == admin.Disable:
		info.State = admin.BackendDisabled
	case info.Health != nil && info.Health.State == health.Down:
		info.State = admin.BackendDown
	case now.Down, now.Weight == 0 && d.view(s.Name, b).Weight != 0:
		info.State = admin.BackendStandby
	case now.Weight == 0:
		info.State = admin.BackendDrained
	}
	return info
}

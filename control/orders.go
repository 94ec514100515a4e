package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/plan"
)

// Order treats a backend as somebody has said. It holds over reloads, until the next one
// for the backend. From any goroutine but that of Run.
func (d *Daemon) Order(ctx context.Context, o admin.Order) (out []admin.BackendInfo, err error) {
	e := d.onLoop(ctx, func() {
		var keys []health.Key
		if keys, err = d.order(o); err == nil {
			out, err = d.backendInfos(ctx, func(s string, a netip.AddrPort) bool {
				return slices.Contains(keys, health.Key{Service: s, Backend: a})
			})
		}
	})
	return out, errors.Join(e, err)
}

// order is Order on the loop, and says which backends were meant: an address may be
// spelled in other ways than ours.
func (d *Daemon) order(o admin.Order) ([]health.Key, error) {
	const mostWeight = 65535
	switch o.Action {
	case admin.Drain, admin.Enable, admin.Disable:
	case admin.Weigh:
		if o.Weight > mostWeight {
			return nil, admin.Refusal(admin.ErrInvalid, fmt.Errorf("weight %d: expected 0 to %d", o.Weight, mostWeight))
		}
	default:
		return nil, admin.Refusal(admin.ErrInvalid, fmt.Errorf("action %q: expected drain, enable, disable or weight", o.Action))
	}
	keys, err := d.backendsCalled(o.Backend)
	if err != nil {
		return nil, err
	}
	was := make(map[health.Key]admin.Ordered)
	for _, k := range keys {
		was[k] = d.orders[k]
		delete(d.orders, k)
		if o.Action != admin.Enable {
			d.orders[k] = admin.Ordered{Action: o.Action, Weight: o.Weight, Since: time.Now()}
		}
	}
	if err := d.republish(); err != nil {
		for k, w := range was {
			if delete(d.orders, k); w.Action != "" {
				d.orders[k] = w
			}
		}
		return nil, err
	}
	d.log.Info("a backend is treated as was ordered", zap.String("action", string(o.Action)), zap.String("backend", o.Backend),
		zap.Uint32("weight", o.Weight), zap.Int("services", len(keys)))
	return keys, nil
}

// backendsCalled are the backends of the configuration that a name means.
func (d *Daemon) backendsCalled(name string) ([]health.Key, error) {
	service, address := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		service, address = name[:i], name[i+1:]
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, admin.Refusal(admin.ErrInvalid, fmt.Errorf("backend %q: expected ADDRESS:PORT or SERVICE/ADDRESS:PORT", name))
	}
	var out []health.Key
	for i := range d.cfg.Services {
		if s := &d.cfg.Services[i]; (service == "" || s.Name == service) && hasBackend(s, a) {
			out = append(out, health.Key{Service: s.Name, Backend: a})
		}
	}
	if out == nil {
		return nil, admin.Refusal(admin.ErrNotFound, fmt.Errorf("no service has the backend %s; `l4fwd backends` lists them", name))
	}
	return out, nil
}

// ordered is what the configuration and orders make of a backend.
func (d *Daemon) ordered(service string, b *config.Backend) plan.Backend {
	out := plan.AsConfigured(service, b)
	switch o := d.orders[health.Key{Service: service, Backend: b.Address}]; o.Action {
	case admin.Drain:
		out.Weight = 0
	case admin.Disable:
		out.Weight, out.Down, out.End = 0, true, true
	case admin.Weigh:
		out.Weight = o.Weight
	}
	return out
}

// outdated drops the orders for backends that the configuration has no more.
func (d *Daemon) outdated() {
	kept := make(map[health.Key]admin.Ordered)
	for i := range d.cfg.Services {
		s := &d.cfg.Services[i]
		for _, b := range s.Backends {
			k := health.Key{Service: s.Name, Backend: b.Address}
			if o, ok := d.orders[k]; ok {
				kept[k] = o
			}
		}
	}
	d.orders = kept
}

// overruled warns of weights in c that do not take effect, since somebody has ordered
// otherwise.
func (d *Daemon) overruled(c *config.Config) (out []string) {
	for i := range c.Services {
		s := &c.Services[i]
		for _, b := range s.Backends {
			o, ok := d.orders[health.Key{Service: s.Name, Backend: b.Address}]
			if !ok {
				continue
			}
			what := string(o.Action)
			if o.Action == admin.Weigh {
				what = fmt.Sprintf("weight %d", o.Weight)
			}
			out = append(out, fmt.Sprintf("service %s: the order `%s` holds for %v, not the file's weight %d, until `l4fwd enable`",
				s.Name, what, b.Address, b.Weight))
		}
	}
	return out
}

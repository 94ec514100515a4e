package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/dataplane/route"
)

// Explain says what would become of packets under a configuration, on a host as this one
// is, with its addresses, routes and neighbours, if l4fwd had just been started: without
// flows, and with all backends up. It looks in the network namespace of the calling
// thread and changes nothing. An interface of the configuration that is not there has
// no address, and nothing is led to it.
func Explain(ctx context.Context, cfg *config.Config, q admin.WhyRequest) (out []admin.Why, err error) {
	d, err := New(cfg, Options{})
	if err != nil {
		return nil, err
	}
	x := &explainer{cfg: d.cfg, now: func() int64 { return int64(time.Second) }}
	if err := x.host(ctx, d); err != nil {
		return nil, err
	}
	if err := x.workers(d.cfg); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.dp.Close()) }()
	x.look = func(f func(*dataplane.Worker)) error {
		for _, w := range x.dp.Workers {
			f(w)
		}
		return nil
	}
	x.backends = func(service string) ([]admin.BackendInfo, error) {
		var all []admin.BackendInfo
		for i := range d.cfg.Services {
			s := &d.cfg.Services[i]
			for j := range s.Backends {
				if s.Name == service {
					all = append(all, d.backendInfo(s, &s.Backends[j], plan.AsConfigured(s.Name, &s.Backends[j])))
				}
			}
		}
		return all, nil
	}
	return x.explain(&q)
}

// host learns what there is.
func (x *explainer) host(ctx context.Context, d *Daemon) error {
	ns, err := netns.Get()
	if err != nil {
		return fmt.Errorf("finding the network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	var names []string
	for _, itf := range d.cfg.Interfaces {
		n := whyNIC{name: itf.Name}
		if dev, err := netlink.LinkByName(itf.Name); err == nil && len(dev.Attrs().HardwareAddr) == len(n.mac) {
			copy(n.mac[:], dev.Attrs().HardwareAddr)
			n.up = true
		}
		x.nics, names = append(x.nics, n), append(names, itf.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, firstNews)
	defer cancel()
	var host []netip.Addr
	f, err := follow.New(follow.Options{
		Links: names, VLANs: d.vlans(), Namespace: ns,
		OnHostAddrs: func(a []netip.Addr) { host = a },
		OnRoutes: func(t *route.Table) {
			if x.routes == nil {
				x.routes = t
			}
			cancel()
		},
	})
	if err != nil {
		return err
	}
	if err := f.Run(ctx); err != nil {
		return fmt.Errorf("the kernel's routes: %w", err)
	}
	if x.routes == nil {
		return errors.New("the kernel did not tell its addresses and routes over netlink")
	}
	x.rules, _ = plan.Rules(x.cfg, host)
	return nil
}

// explainFrames is how many frames the workers have, who use none: those that try packets
// out have their own.
const explainFrames = dataplane.BurstSize

// workers makes workers that never run, for trials to look at.
func (x *explainer) workers(cfg *config.Config) error {
	registry := dataplane.NewRegistry(cfg.Workers)
	snap, err := registry.Build(plan.Spec(cfg, nil))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	o := dataplane.Options{
		Workers: cfg.Workers, UMEM: make([]byte, cfg.Workers*explainFrames*cfg.FrameSize), FrameSize: cfg.FrameSize,
		Flows: 2 * cfg.Workers, LocalPorts: plan.PortRanges(cfg), Unpopulated: true,
	}
	if x.dp, err = dataplane.New(o); err != nil {
		return err
	}
	for _, w := range x.dp.Workers {
		for i := range x.nics {
			p := memport.New(o.UMEM, cfg.FrameSize, explainFrames/2) // too small to be filled
			if err := w.Attach(uint8(i), x.nics[i].mac, p); err != nil {
				return errors.Join(err, x.dp.Close())
			}
		}
	}
	x.dp.Publish(snap)
	x.dp.PublishRoutes(x.routes)
	return nil
}

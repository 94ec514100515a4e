package control

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/health/direct"
	"github.com/l4fwd/l4fwd/control/plan"
)

// Changes of many backends come together, and a new snapshot of a large configuration
// takes long: between two lies four times what the last took, at least leastPause.
const (
	leastPause = 10 * time.Millisecond
	mostPause  = 5 * time.Second
)

// toldChanges is how many changes at a time are logged one by one.
const toldChanges = 20

// healthNews is what checks have found and the loop does not know yet.
type healthNews struct {
	mu     sync.Mutex
	events []health.Event
	wake   chan struct{}
}

func (n *healthNews) put(events []health.Event) {
	n.mu.Lock()
	n.events = append(n.events, events...)
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *healthNews) take() []health.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.events
	n.events = nil
	return e
}

// startHealth begins to check backends.
func (d *Daemon) startHealth(ctx context.Context, down *undo) error {
	enter, err := d.entrance()
	if err != nil {
		return err
	}
	news := &healthNews{wake: make(chan struct{}, 1)}
	d.health = health.New(health.Options{OnChange: news.put, OnShortage: d.logShortage, Enter: enter})
	d.recheck()
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		if err := guarded("health checks", func() error { d.health.Run(living); return nil }); err != nil {
			d.fail(err)
		}
	})
	running.Go(func() { d.hearHealth(living, news) })
	running.Go(func() { d.watchConnections(living) })
	down.add(func() error {
		cancel()
		running.Wait()
		if d.carrier == nil {
			return nil
		}
		return d.carrier.Close()
	})
	return nil
}

// entrance is what the goroutine of each check has to do first, nil for nothing: sockets
// are opened in the namespace of the thread, and Go's threads are in the process's.
func (d *Daemon) entrance() (func() error, error) {
	// Asked of a goroutine that has just begun, and so of a thread that nobody has to
	// himself. The process's first thread may be one that has gone elsewhere.
	usual, err := netns.None(), error(nil)
	var asked sync.WaitGroup
	asked.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		usual, err = netns.Get()
	})
	asked.Wait()
	if err != nil {
		return nil, fmt.Errorf("the process's network namespace: %w", err)
	}
	defer usual.Close()
	if usual.Equal(d.ns) {
		return nil, nil
	}
	return func() error {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		return netns.Set(d.ns)
	}, nil
}

// recheck tells the engine what the configuration wants checked now. Backends that were
// there before keep their state.
func (d *Daemon) recheck() {
	led := func(s config.Service) bool {
		return s.Mode.Direct() && s.HealthCheck.Type > config.CheckNone && s.HealthCheck.Type != config.CheckExec
	}
	if d.carrier == nil && slices.ContainsFunc(d.cfg.Services, led) {
		c, err := direct.Open(direct.Options{Routes: d.latest.Load, Interface: d.indexOf, Resolve: d.follower.Resolve})
		if err != nil {
			d.log.Warn("backends of direct return are checked at their own addresses, not by the way of their services' packets", zap.Error(err))
		} else {
			d.carrier = c
		}
	}
	d.health.Set(plan.Checks(d.cfg, d.wayTo))
}

// wayTo is how probes take the way of a service's packets to a backend, nil if they
// cannot: to an address of the host the kernel sends nothing.
func (d *Daemon) wayTo(s *config.Service, backend netip.Addr) health.Path {
	if d.carrier == nil || slices.Contains(d.host, s.Address.Addr()) {
		return nil
	}
	return d.carrier.Path(plan.Tunnel(s), backend, s.HealthCheck.Source)
}

// indexOf is the interface index of a data NIC, 0 if there is none. From any goroutine.
func (d *Daemon) indexOf(port uint16) int {
	if int(port) >= len(d.links) {
		return 0
	}
	return int(d.links[port].index.Load())
}

// hearHealth has the loop follow what checks have found.
func (d *Daemon) hearHealth(ctx context.Context, news *healthNews) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-news.wake:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		events := news.take()
		if err := d.onLoop(ctx, func() { d.healthChanged(events) }); err != nil {
			return // the daemon ends
		}
		pause.Reset(min(max(4*time.Since(began), leastPause), mostPause))
	}
}

// healthChanged makes effective what checks have found.
func (d *Daemon) healthChanged(events []health.Event) {
	changed, untold := false, 0
	for i, e := range events {
		// What nobody knew anything of had all of its flows before.
		if e.From != health.Unknown || e.To == health.Down {
			changed = true
		}
		if i < toldChanges {
			d.logHealth(e)
		} else if e.From != e.To {
			untold++
		}
	}
	if untold > 0 {
		d.log.Warn("more backends have gone up or down", zap.Int("changes", untold))
	}
	if !changed {
		return
	}
	if err := d.republish(); err != nil {
		d.log.Error("following health checks", zap.Error(err))
	}
}

func (d *Daemon) logHealth(e health.Event) {
	fields := []zap.Field{zap.String("service", e.Service), zap.Stringer("backend", e.Backend), zap.String("reason", e.Reason)}
	switch {
	case e.From == e.To:
		d.log.Debug("backend has more of its weight", append(fields, zap.Int("percent", e.Percent))...)
	case e.To == health.Down:
		d.log.Warn("backend is down", fields...)
	case e.From == health.Unknown:
		d.log.Debug("backend is up, says its first check", fields...)
	default:
		d.log.Info("backend is up", fields...)
	}
}

// logShortage is called from the goroutine of the checks.
func (d *Daemon) logShortage(s health.Shortage) {
	if s.Over {
		d.log.Info("health checks can be made again", zap.String("lacking", s.Reason))
		return
	}
	d.log.Warn("health checks cannot be made, for a reason of this host's: they count neither for nor against backends",
		zap.String("service", s.Service), zap.Stringer("backend", s.Backend), zap.String("reason", s.Reason))
}

// healthOf is what checks know of a backend; false where nobody checks it.
func (d *Daemon) healthOf(k health.Key) (health.Status, bool) {
	if d.health == nil { // too early
		return health.Status{}, false
	}
	return d.health.Status(k)
}

// healthStats is that for people and programs, nil where nobody checks.
func (d *Daemon) healthStats(k health.Key) *admin.BackendHealth {
	s, ok := d.healthOf(k)
	if !ok {
		return nil
	}
	return &admin.BackendHealth{
		State: s.State, Since: s.Since, Reason: s.Reason, Percent: s.Percent,
		Took: s.Took.Seconds(), Checks: s.Checks, Failed: s.Failed, Unchecked: s.Unchecked, Suspect: s.Suspect,
	}
}

// Health says what checks have found of the backends of a service, or of all services if
// that is "". From any goroutine.
func (d *Daemon) Health(ctx context.Context, service string) (out []admin.CheckedBackend, err error) {
	known := service == ""
	out = []admin.CheckedBackend{}
	err = d.onLoop(ctx, func() {
		for i := range d.cfg.Services {
			s := &d.cfg.Services[i]
			if service != "" && s.Name != service {
				continue
			}
			known = true
			for _, b := range s.Backends {
				k := health.Key{Service: s.Name, Backend: b.Address}
				if h := d.healthStats(k); h != nil {
					out = append(out, admin.CheckedBackend{Service: s.Name, Address: b.Address, Health: *h, History: d.health.History(k)})
				}
			}
		}
	})
	if err == nil && !known {
		err = admin.Refusal(admin.ErrNotFound, fmt.Errorf("there is no service %q", service))
	}
	return out, err
}

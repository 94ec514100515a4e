package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/health/direct"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// firstNews bounds the wait for the kernel's routes and addresses at start.
const firstNews = 10 * time.Second

// start brings everything up, and pushes how to take it down.
func (d *Daemon) start(ctx context.Context, down *undo) error {
	repaired, err := nic.Repair(nic.Options{Dir: d.opt.JournalDir, Log: d.log})
	if err != nil {
		level := zap.WarnLevel
		if errors.Is(err, nic.ErrUnreadable) {
			level = zap.ErrorLevel // it is not said again
		}
		d.log.Log(level, "repairing what an earlier run left", zap.Error(err))
	}
	if len(repaired) > 0 {
		d.log.Info("put back the NIC settings an earlier run left changed", zap.Strings("interfaces", repaired))
	}
	removed, err := direct.Repair()
	if err != nil {
		d.log.Warn("taking away the routing rules of an earlier run's health checks", zap.Error(err))
	}
	if removed {
		d.log.Info("took away the routing rules that an earlier run's health checks left")
	}
	for _, step := range []func(context.Context, *undo) error{
		d.startDiscovery, d.startFollower, d.checkHost, d.startDataplane, d.startSteer, d.startConnLog, d.startWorkers, d.startLinks, d.startPathMTU,
		d.startHealth, d.adoptFound, d.startAdmin, d.startMetrics, d.startWeb,
	} {
		if err := step(ctx, down); err != nil {
			return err
		}
		select {
		case err := <-d.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return nil
}

// startFollower waits until the kernel has said what there is.
func (d *Daemon) startFollower(ctx context.Context, down *undo) error {
	names := make([]string, 0, len(d.links))
	for _, l := range d.links {
		names = append(names, l.name)
	}
	f, err := follow.New(follow.Options{
		Links: names, VLANs: d.vlans(), Namespace: d.ns, Log: d.log.Named("follow"),
		OnRoutes:    d.publish,
		OnHostAddrs: func(a []netip.Addr) { tell(d, d.hosts, a) },
		OnLink:      func(e follow.LinkEvent) { tell(d, d.events, e) },
	})
	if err != nil {
		return err
	}
	d.follower = f
	f.Keep(d.backendAddrs())
	// It outlives ctx: the workers forward until they are stopped.
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := guarded("following the kernel's routes", func() error { return f.Run(living) }); err != nil {
			d.fail(fmt.Errorf("following the kernel's routes: %w", err))
		}
	}()
	down.add(func() error {
		cancel()
		<-done
		return nil
	})
	late := time.NewTimer(firstNews)
	defer late.Stop()
	for first := d.first; d.host == nil || first != nil; {
		select {
		case d.host = <-d.hosts:
		case <-first:
			first = nil
		case err := <-d.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return errors.New("the kernel did not tell its addresses and routes over netlink")
		}
	}
	return nil
}

func (d *Daemon) backendAddrs() (out []netip.Addr) {
	seen := make(map[netip.Addr]bool)
	for s := range d.services() {
		for _, b := range s.Backends {
			if a := b.Address.Addr(); !seen[a] {
				seen[a] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// frames is how many the memory must have. Every worker begins with an equal
// share, so the one with most queues counts for all.
func (d *Daemon) frames() int {
	workers, most := d.cfg.Workers, 0
	for w := range workers {
		n := 0
		for _, l := range d.links {
			n += (l.queues - w + workers - 1) / workers
		}
		most = max(most, n)
	}
	return most * workers * d.cfg.FramesPerQueue
}

// startDataplane makes memory and workers.
func (d *Daemon) startDataplane(_ context.Context, down *undo) error {
	umem, err := afxdp.NewUMEM(afxdp.UMEMOptions{Frames: d.frames(), FrameSize: d.cfg.FrameSize})
	if err != nil {
		return fmt.Errorf("packet memory: %w", err)
	}
	d.umem = umem
	down.add(umem.Close)
	o := dataplane.Options{
		Workers: d.cfg.Workers, UMEM: umem.Bytes(), FrameSize: umem.FrameSize(),
		Flows: d.cfg.MaxFlows, LocalPorts: plan.PortRanges(d.cfg), Spread: d.spread(),
	}
	if _, err := rand.Read(o.Secret[:]); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if o.ISNSecret, o.ISNEpoch, err = sequences(d.opt.JournalDir); err != nil {
		d.log.Warn("servers may refuse some connections after the next start for as long as their TIME_WAIT lasts", zap.Error(err))
	}
	if d.dp, err = dataplane.New(o); err != nil {
		return err
	}
	down.add(d.closeDataplane)
	d.clock = dataplane.Monotonic()
	d.registry = dataplane.NewRegistry(d.cfg.Workers)
	if err := d.republish(); err != nil {
		return err
	}
	// From now on the follower finds the workers; what it told before is ours to
	// pass on, until it has told nothing newer meanwhile.
	d.workers.Store(d.dp)
	for t := (*route.Table)(nil); t != d.latest.Load(); {
		t = d.latest.Load()
		d.dp.PublishRoutes(t)
	}
	d.log.Info("memory", zap.Int("frames", umem.Frames()), zap.Int("frame_size", umem.FrameSize()),
		zap.String("packets", umem.Backing()), zap.Int("flows", d.cfg.MaxFlows), zap.String("flow_table", d.dp.Backing()))
	return nil
}

// startSteer loads the XDP program's rules, with no program attached yet.
func (d *Daemon) startSteer(_ context.Context, down *undo) error {
	queues := 1
	for _, l := range d.links {
		queues = max(queues, l.queues)
	}
	s, err := steer.Load(steer.Options{MaxQueues: queues})
	if err != nil {
		return fmt.Errorf("XDP program: %w", err)
	}
	d.steer = s
	down.add(s.Close)
	rules, _ := plan.Rules(d.cfg, d.host) // what it refuses, checkHost has
	if err := s.Update(rules); err != nil {
		return fmt.Errorf("XDP rules: %w", err)
	}
	d.rules = rules
	return nil
}

// stageEvery is how many rounds there are to one whose stages are timed: some clock
// readings that are not noticed. A prime, so that it falls in with nothing.
const stageEvery = 1021

// startWorkers sets the workers running, with nothing to receive from yet.
func (d *Daemon) startWorkers(ctx context.Context, down *undo) error {
	clock := d.clock
	cpus := d.workerCPUs()
	for i, w := range d.dp.Workers {
		if d.cfg.MetricsListen.IsValid() {
			d.stages = append(d.stages, &dataplane.StageClock{Now: clock, Every: stageEvery})
			w.Time(d.stages[i])
		}
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		d.ended = append(d.ended, life)
		d.running.Go(func() {
			defer end()
			err := guarded(fmt.Sprintf("worker %d", i), func() error {
				return w.Run(dataplane.Run{CPU: cpus[i], Adaptive: d.cfg.PollMode == config.PollAdaptive, Clock: clock, Stop: &d.stop})
			})
			if err != nil {
				d.fail(err)
			}
		})
	}
	down.add(func() error {
		d.stop.Store(true)
		for _, w := range d.dp.Workers {
			w.Wake()
		}
		d.running.Wait()
		return nil
	})
	return nil
}

// startLinks takes the NICs into service. Nobody is told before all of them
// are: what comes in by one leaves by another.
func (d *Daemon) startLinks(ctx context.Context, down *undo) error {
	for _, l := range d.links {
		down.add(func() error { return d.linkDown(l) })
		if err := d.take(l); err != nil {
			return err
		}
	}
	// Down begins with XDP on all NICs: none must go on taking packets that the
	// others do not send any more.
	down.add(func() error {
		d.leaving = true
		var errs []error
		for _, l := range d.links {
			errs = append(errs, l.detach())
		}
		return errors.Join(errs...)
	})
	if err := d.chooseCopy(ctx); err != nil {
		return err
	}
	for _, l := range d.links {
		if err := d.openSockets(ctx, l); err != nil {
			return err
		}
	}
	for _, l := range d.links {
		if err := d.speak(l); err != nil {
			return err
		}
	}
	return nil
}

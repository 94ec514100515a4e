package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// Options of Run beyond the configuration.
type Options struct {
	Log *zap.Logger
	// ReadyFile, if not empty, is created when traffic is being taken and
	// removed when it is not any more.
	ReadyFile string
	// StatsFile, if not empty, holds Stats as JSON, renewed every second.
	StatsFile string
	// JournalDir is where changed NIC settings are noted; "": nic.DefaultDir.
	JournalDir string
	// DumpStats logs the stats each time something is received.
	DumpStats <-chan struct{}
}

// Daemon is a running forwarder. Its fields belong to the goroutine of Run
// unless they say otherwise.
type Daemon struct {
	cfg  *config.Config
	opt  Options
	log  *zap.Logger
	host []netip.Addr // the host's own addresses

	umem  *afxdp.UMEM
	dp    *dataplane.Dataplane
	steer *steer.Steer
	rules steer.Rules
	links []*link
	names []serviceNames

	zeroCopy afxdp.ZeroCopy
	follower *follow.Follower
	first    *route.Table // the routes at start
	routes   chan *route.Table
	hosts    chan []netip.Addr
	events   chan follow.LinkEvent
	gone     chan struct{} // closed when Run's loop does not listen any more

	stop    atomic.Bool // ends the workers
	running sync.WaitGroup
	failed  chan error // a worker that could not run, the follower's end
}

// Run forwards what cfg says until ctx is done, which is no error. Whatever
// else ends it is one, and leaves the machine as it was all the same.
func Run(ctx context.Context, cfg *config.Config, opt Options) (err error) {
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	d := &Daemon{
		cfg: cfg, opt: opt, log: opt.Log,
		routes: make(chan *route.Table, 16),
		hosts:  make(chan []netip.Addr, 16),
		events: make(chan follow.LinkEvent, 64),
		gone:   make(chan struct{}),
		failed: make(chan error, 1+max(1, cfg.Workers)),
	}
	var down undo
	defer func() { err = errors.Join(err, down.run()) }()
	if err := d.preflight(); err != nil {
		return err
	}
	if err := d.start(ctx, &down); err != nil {
		return err
	}
	return d.supervise(ctx)
}

// undo is a stack of what has to be taken back, last first.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

func (u *undo) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	*u = nil
	return errors.Join(errs...)
}

// firstNews bounds the wait for the kernel's routes and addresses at start.
const firstNews = 10 * time.Second

// start brings everything up.
func (d *Daemon) start(ctx context.Context, down *undo) error {
	if repaired, err := nic.Repair(nic.Options{Dir: d.opt.JournalDir, Log: d.log}); err != nil {
		d.log.Warn("repairing what an earlier run left", zap.Error(err))
	} else if len(repaired) > 0 {
		d.log.Info("put back the NIC settings an earlier run left changed", zap.Strings("interfaces", repaired))
	}
	if err := d.startFollower(ctx, down); err != nil {
		return err
	}
	if err := d.startDataplane(down); err != nil {
		return err
	}
	if err := d.startSteer(down); err != nil {
		return err
	}
	if err := d.startWorkers(down); err != nil {
		return err
	}
	for _, l := range d.links {
		down.add(func() error { return d.linkDown(l) })
		if err := d.linkUp(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
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
		Links: names, Log: d.log.Named("follow"),
		OnRoutes:    func(t *route.Table) { tell(d, d.routes, t) },
		OnHostAddrs: func(a []netip.Addr) { tell(d, d.hosts, a) },
		OnLink:      func(e follow.LinkEvent) { tell(d, d.events, e) },
	})
	if err != nil {
		return err
	}
	d.follower = f
	f.Keep(d.backendAddrs())
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); err != nil {
			d.failed <- fmt.Errorf("following the kernel's routes: %w", err)
		}
	}()
	down.add(func() error {
		close(d.gone)
		cancel()
		<-done
		return nil
	})
	late := time.NewTimer(firstNews)
	defer late.Stop()
	for d.host == nil || d.first == nil {
		select {
		case d.host = <-d.hosts:
		case d.first = <-d.routes:
		case err := <-d.failed:
			return err
		case <-ctx.Done():
			return nil
		case <-late.C:
			return errors.New("the kernel did not tell its addresses and routes over netlink")
		}
	}
	return nil
}

// tell hands news to the loop, unless the loop has ended.
func tell[T any](d *Daemon, c chan<- T, v T) {
	select {
	case c <- v:
	case <-d.gone:
	}
}

func (d *Daemon) backendAddrs() (out []netip.Addr) {
	seen := make(map[netip.Addr]bool)
	for _, s := range d.cfg.Services {
		for _, b := range s.Backends {
			if a := b.Address.Addr(); !seen[a] {
				seen[a] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// startDataplane makes memory and workers.
func (d *Daemon) startDataplane(down *undo) error {
	sockets := 0
	for _, l := range d.links {
		sockets += l.queues
	}
	workers := d.cfg.Workers
	// Every worker is home to an equal share, so count for the one with most
	// queues.
	perWorker := 0
	for w := range workers {
		n := 0
		for _, l := range d.links {
			n += (l.queues - w + workers - 1) / workers
		}
		perWorker = max(perWorker, n)
	}
	umem, err := afxdp.NewUMEM(afxdp.UMEMOptions{
		Frames: perWorker * workers * d.cfg.FramesPerQueue, FrameSize: d.cfg.FrameSize,
	})
	if err != nil {
		return fmt.Errorf("packet memory: %w", err)
	}
	d.umem = umem
	down.add(umem.Close)
	o := dataplane.Options{
		Workers: workers, UMEM: umem.Bytes(), FrameSize: umem.FrameSize(),
		Flows: d.cfg.MaxFlows, LocalPorts: plan.PortRanges(d.cfg), Spread: d.spread(),
	}
	if _, err := rand.Read(o.Secret[:]); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if d.dp, err = dataplane.New(o); err != nil {
		return err
	}
	down.add(d.dp.Close)
	spec := plan.Spec(d.cfg)
	registry := dataplane.NewRegistry(workers)
	snap, err := registry.Build(spec)
	if err != nil {
		return err
	}
	d.names = namesOf(d.cfg, snap)
	d.dp.Publish(snap)
	d.dp.PublishRoutes(d.first)
	d.log.Info("memory",
		zap.Int("sockets", sockets), zap.Int("frames", umem.Frames()), zap.String("packets", umem.Backing()),
		zap.Int("flows", d.cfg.MaxFlows), zap.String("flow_table", d.dp.Backing()))
	return nil
}

// startSteer loads the XDP program with its rules, attached to nothing yet.
func (d *Daemon) startSteer(down *undo) error {
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
	rules, refused := plan.Rules(d.cfg, d.host)
	if len(refused) > 0 {
		return fmt.Errorf("local addresses %v belong to this host: give each a port range of its own (local_addresses: - {address: %v, ports: 20000-29999})", refused, refused[0])
	}
	if err := s.Update(rules); err != nil {
		return fmt.Errorf("XDP rules: %w", err)
	}
	d.rules = rules
	return nil
}

// startWorkers sets the workers spinning, with nothing to receive from yet.
func (d *Daemon) startWorkers(down *undo) error {
	clock := dataplane.Monotonic()
	for i, w := range d.dp.Workers {
		cpu := -1
		if i < len(d.cfg.CPUs) {
			cpu = d.cfg.CPUs[i]
		}
		d.running.Add(1)
		go func() {
			defer d.running.Done()
			err := w.Run(dataplane.Run{CPU: cpu, Adaptive: d.cfg.PollMode == config.PollAdaptive, Clock: clock, Stop: &d.stop})
			if err != nil {
				d.failed <- err
			}
		}()
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

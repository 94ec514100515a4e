package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/control/health/direct"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// Options of New beyond the configuration.
type Options struct {
	Log *zap.Logger // nil: silent
	// ReadyFile, if not empty, is created when traffic is being taken and
	// removed when it is not any more, at the start if a killed daemon has not.
	ReadyFile string
	// StatsFile, if not empty, holds Stats as JSON, renewed every second and
	// left behind at the end.
	StatsFile string
	// JournalDir is where changed NIC settings are noted, and the secret of
	// sequence numbers is; "": nic.DefaultDir.
	JournalDir string
	// napi is what busy polling would run for a socket, 0 for nothing; nil:
	// (*afxdp.Socket).NAPI. Of tests.
	napi func(*afxdp.Socket) (int, error)
	// update is how XDP's rules follow the host's addresses; nil:
	// (*steer.Steer).Update. Of tests.
	update func(*steer.Steer, steer.Rules) error
	// Load reads the configuration anew; nil: there is nothing to reload.
	Load func() (*config.Config, error)
	// ReloadOn has the daemon reload each time something is received.
	ReloadOn <-chan os.Signal
	// SetLogLevel, if not nil, is told the level of a configuration that was reloaded.
	SetLogLevel func(config.LogLevel)
	// Confine has the whole process give up the capabilities that it does not need, once
	// it is ready. Nothing gives them back.
	Confine bool
	// DumpStats logs the stats each time something is received.
	DumpStats <-chan os.Signal
}

// Daemon is a forwarder. Make one with New, start it with Run. Its fields
// belong to the goroutine of Run unless they say otherwise.
type Daemon struct {
	cfg *config.Config
	opt Options
	log *zap.Logger
	ns  netns.NsHandle // of Run's caller

	host     []netip.Addr // the host's own addresses
	untold   *untold      // nil: the rules know them
	umem     *afxdp.UMEM
	dp       *dataplane.Dataplane
	registry *dataplane.Registry
	steer    *steer.Steer
	rules    steer.Rules
	refused  []netip.Addr // local addresses the host has taken
	leavers  []leaver
	tidied   tidying
	orders   map[health.Key]admin.Ordered // of backends, by people
	links    []*link
	names    []serviceNames

	started        time.Time
	loaded         time.Time      // the configuration
	reloads        int            // since the start
	statsTrouble   string         // what was last said of the stats file
	readyFile      *os.File       // locked; nil while there is none
	reloadsRefused atomic.Uint64  // files that were not taken; from any goroutine
	lastRefused    atomic.Bool    // the last one was not
	beside         sync.WaitGroup // goroutines that hand the loop jobs
	reloading      sync.Mutex     // held by who changes the configuration, on any goroutine
	discovery      *discovery     // nil without; settled before anybody else looks
	pathMTU        *pathmtu.Listener
	tunnelEnds     pathmtu.Ends // which it listens for
	quotes         perSecond    // by which it asks workers for flows
	zeroCopy       afxdp.ZeroCopy
	follower       *follow.Follower
	health         *health.Engine
	carrier        *direct.Carrier   // of checks of direct return, once there are any
	panicking      map[string]bool   // services whose checks are not believed; see tellPanic
	warned         []nic.CoreWarning // as it was last
	leaving        bool              // the memory goes too, so no frame needs saving

	// From other goroutines to Run's.
	hosts  chan []netip.Addr
	events chan follow.LinkEvent
	failed chan error    // a part that ended by itself
	jobs   chan func()   // of onLoop
	gone   chan struct{} // closed when the loop does not listen any more

	latest  atomic.Pointer[route.Table]
	first   chan struct{}                       // closed when latest is there
	workers atomic.Pointer[dataplane.Dataplane] // dp, for publish
	stop    atomic.Bool                         // ends the workers
	running sync.WaitGroup                      // the workers
	ended   []context.Context                   // by worker: done when it does not run any more
	inPlace sync.Mutex                          // held by who does the work of one that has ended
	closed  bool                                // dp has no memory any more; under inPlace
	clock   dataplane.Clock                     // the workers'

	gates     gates // from any goroutine
	connLog   *connLog
	capturing chan struct{}           // one is in it while a capture runs, see capture
	debugging atomic.Bool             // the process is looked at, see debug
	stages    []*dataplane.StageClock // by worker, who write them; none without metrics
}

// New returns a daemon for a configuration, which must be a valid one. Nothing
// is touched before Run.
func New(cfg *config.Config, opt Options) (*Daemon, error) {
	if cfg == nil {
		return nil, errors.New("no configuration")
	}
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	if opt.napi == nil {
		opt.napi = (*afxdp.Socket).NAPI
	}
	if opt.update == nil {
		opt.update = (*steer.Steer).Update
	}
	return &Daemon{
		cfg: withWorkers(cfg), opt: opt, log: opt.Log, gates: newGates(cfg, opt.Log),
		first:  make(chan struct{}),
		orders: make(map[health.Key]admin.Ordered),
		hosts:  make(chan []netip.Addr, 16),
		events: make(chan follow.LinkEvent, 64),
		failed: make(chan error, 16),
		jobs:   make(chan func()),
		gone:   make(chan struct{}),

		capturing: make(chan struct{}, 1),
	}, nil
}

// Run is New and Daemon.Run in one.
func Run(ctx context.Context, cfg *config.Config, opt Options) error {
	d, err := New(cfg, opt)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// withWorkers is the configuration with the number of workers settled: one for
// each CPU named, else one.
func withWorkers(c *config.Config) *config.Config {
	if c.Workers > 0 {
		return c
	}
	out := *c
	out.Workers = max(1, len(c.CPUs))
	return &out
}

// TuneRuntime sets how many threads may run Go code: one for each worker, which
// spins, and two for the rest, or the control plane would wait for a worker's
// preemption every time. GOMAXPROCS in the environment has the last word. The
// garbage collector is left alone: the heap is small, flows and packets lie
// outside.
func TuneRuntime(c *config.Config) {
	n := withWorkers(c).Workers + 2
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
}

// Run forwards until ctx is done, which is no error. Whatever else ends it is
// one, and leaves the machine as it was all the same, a panic included. It may
// be called once. It works in the network namespace of the calling thread; if
// that is not the process's, the goroutine must be locked to it.
func (d *Daemon) Run(ctx context.Context) (err error) {
	d.started = time.Now()
	d.loaded = d.started
	if d.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("finding the network namespace: %w", err)
	}
	var down undo
	down.add(func() error { return d.ns.Close() })
	defer func() { err = errors.Join(err, down.run()) }()
	defer d.beside.Wait()
	defer close(d.gone)
	if err = d.preflight(); err == nil {
		err = d.start(ctx, &down)
	}
	if err == nil {
		err = d.supervise(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // told to stop while starting
	}
	return err
}

// fail ends the loop: a part that must run does not.
func (d *Daemon) fail(err error) {
	select {
	case d.failed <- err:
	default: // the loop ends anyway
	}
}

// undo is a stack of what has to be taken back, last first.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

func (u *undo) run() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, guarded("cleaning up", (*u)[i]))
	}
	*u = nil
	return errors.Join(errs...)
}

// guarded makes a panic of one part an error, so that the others can still be
// taken down in order.
func guarded(what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", what, r, debug.Stack())
		}
	}()
	return f()
}

// tell hands news to the loop, unless the loop has ended.
func tell[T any](d *Daemon, c chan<- T, v T) {
	select {
	case c <- v:
	case <-d.gone:
	}
}

// publish takes new routes straight to the workers: they must not wait for the
// loop, which may be busy with a NIC.
func (d *Daemon) publish(t *route.Table) {
	if d.latest.Swap(t) == nil {
		close(d.first)
	}
	if dp := d.workers.Load(); dp != nil {
		dp.PublishRoutes(t)
	}
}

// onWorker runs f on a worker's thread between two bursts, or here if the
// worker does not run any more, when nobody else does. From any goroutine; f must
// not call it. With an error f has not run and will not, unless it has panicked on the
// worker (dataplane.ErrUnfinished): that ends the daemon.
func (d *Daemon) onWorker(ctx context.Context, i int, f func(*dataplane.Worker)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.ended[i], cancel)()
	err := d.dp.Workers[i].Do(ctx, f)
	if err == nil || errors.Is(err, dataplane.ErrUnfinished) || d.ended[i].Err() == nil {
		return err
	}
	d.inPlace.Lock()
	defer d.inPlace.Unlock()
	if d.closed { // a request that outlasts the daemon
		return errNotRunning
	}
	f(d.dp.Workers[i])
	return nil
}

// closeDataplane gives the workers' memory back, after which nobody looks at it.
func (d *Daemon) closeDataplane() error {
	d.inPlace.Lock()
	defer d.inPlace.Unlock()
	d.closed = true
	return d.dp.Close()
}

// onWorkers does that on all of them, one after the other.
func (d *Daemon) onWorkers(ctx context.Context, f func(*dataplane.Worker)) error {
	var errs []error
	for i := range d.dp.Workers {
		errs = append(errs, d.onWorker(ctx, i, f))
	}
	return errors.Join(errs...)
}

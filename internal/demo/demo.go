package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// Defaults of Options.
const (
	DefaultDuration = 6 * time.Second
	DefaultRequests = 300
)

// Bounds of what a user may ask for.
const (
	MaxDuration = time.Hour
	MaxRequests = 50_000 // to one VIP: the client has that many ports
)

// Options say how the demo is run. The zero value of each field means its
// default.
type Options struct {
	// Mode is what to show, one of Modes; "": full-nat and, beside it, dnat.
	Mode string
	// Encapsulation is that of mode tunnel, one of Encapsulations; "": vxlan. No other
	// mode has one.
	Encapsulation string
	// Topology is one of Topologies; "": two-arm for full-nat and dnat, else one-arm,
	// which snat alone has.
	Topology string
	// Executable is the l4fwd binary whose `run` is demonstrated; "": the
	// running one.
	Executable string
	// Duration is how long traffic is sent.
	Duration time.Duration
	// Requests is how many HTTP requests, and how many UDP datagrams, are sent
	// to each VIP, spread evenly over Duration. On a slow machine they take
	// longer.
	Requests int
	// Keep leaves everything up after the verdict, until the context is done or
	// a signal arrives.
	Keep bool
	// Out is where everything is printed; nil: os.Stdout. A file that is a
	// terminal gets a live table, all else plain lines.
	Out io.Writer
}

// Errors that Run ends with, beside those that say what could not be done.
var (
	// ErrFailed: the demo ran to its end, and the verdict is not good.
	ErrFailed = errors.New("not everything is as it must be")
	// ErrInterrupted: a signal or the context ended the demo before its verdict.
	ErrInterrupted = errors.New("interrupted; everything has been taken down")
)

func (o Options) withDefaults() (Options, error) {
	if o.Duration == 0 {
		o.Duration = DefaultDuration
	}
	if o.Requests == 0 {
		o.Requests = DefaultRequests
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Duration < 0 || o.Duration > MaxDuration {
		return o, fmt.Errorf("a duration of %s: it must be more than 0 and at most %s", o.Duration, MaxDuration)
	}
	if o.Requests < 0 || o.Requests > MaxRequests {
		return o, fmt.Errorf("%d requests: there must be between 1 and %d", o.Requests, MaxRequests)
	}
	if o.Executable != "" {
		return o, nil
	}
	var err error
	if o.Executable, err = os.Executable(); err != nil {
		return o, fmt.Errorf("own executable: %w", err)
	}
	return o, nil
}

// Run runs the demo and takes everything down again, whatever happens. It
// returns nil only if every check passed. SIGINT, SIGTERM, SIGHUP and SIGPIPE
// (nobody reads the output any more) end it as a done context does; when that happens while Keep has it wait, the verdict
// decides.
func Run(ctx context.Context, o Options) (err error) {
	o, err = o.withDefaults()
	if err != nil {
		return err
	}
	shown, err := o.choose()
	if err != nil {
		return err
	}
	if o.Topology, err = o.chooseTopology(shown); err != nil {
		return err
	}
	shown = slices.Clone(shown) // of modes
	for i, m := range shown {
		shown[i] = m.over(o.Topology)
	}
	if err := need(o.Executable); err != nil {
		return err
	}
	// The handler stays until the end: a second Ctrl-C must not cut the
	// clean-up short.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()

	d := &demo{o: o, scr: newScreen(o.Out), began: time.Now(), modes: shown, ended: make(chan *forwarder, maxForwarders)}
	defer func() {
		interrupted := ctx.Err() != nil && !d.judged
		if cerr := d.down.run(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("taking the network down: %w", cerr))
			return
		}
		if interrupted {
			err = ErrInterrupted
		}
	}()
	return d.run(ctx)
}

// demo is one run.
type demo struct {
	o     Options
	scr   *screen
	began time.Time
	down  undo

	dir    string // of the configuration and the stats
	net    *network
	modes  []*mode         // which are shown, on one network
	fwds   []*forwarder    // the one with the VIPs first
	ended  chan *forwarder // gets each once its process has ended
	tests  []*scenario
	judged bool // the verdict is out
}

func (d *demo) run(ctx context.Context) error {
	d.scr.intro(d.modes, d.o.Topology)
	steps := []func(context.Context) error{d.sweep, d.buildNetwork, d.unwrap, d.startForwarders, d.warmUp, d.sendTraffic}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	checks := d.judge(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !d.o.Keep {
		checks = append(checks, d.stopForwarders())
	}
	err := d.verdict(checks)
	d.judged = true
	if d.o.Keep {
		err = errors.Join(err, d.keep(ctx))
	}
	return err
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

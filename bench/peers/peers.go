package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Defaults of Options.
const (
	DefaultRounds    = 5
	DefaultDuration  = 3 * time.Second
	DefaultCalibrate = time.Second
)

// Options of Run.
type Options struct {
	// Executable is the l4fwd binary that is measured; "": the running one.
	Executable string
	// Rounds is how many times each is measured; 0: DefaultRounds.
	Rounds int
	// Duration is how long a measurement takes; 0: DefaultDuration. What only
	// takes whole seconds gets them.
	Duration time.Duration
	// Calibrate is how long each arrangement is tried before the rounds; 0: the
	// first of them is taken untried.
	Calibrate time.Duration
	// As, if not nil, is an earlier report: what it has tried is not tried again, and
	// each forwarder gets the arrangement that was best for it there.
	As   *Report
	CPUs CPUs
	// Only and Skip are names of forwarders and works. A kind of name that Only
	// does not have any of is not restricted by it.
	Only, Skip []string
	// Note is told what is going on, a line at a time; nil: nobody.
	Note func(string)
	// Command is the command line, for the report.
	Command string
}

// ErrOptions means that nothing was tried.
var ErrOptions = errors.New("bad options")

// Names are all names that Only and Skip may have.
func Names() (forwarders, whatWorks []string) {
	for _, k := range kinds() {
		forwarders = append(forwarders, k.name)
	}
	for _, w := range works() {
		whatWorks = append(whatWorks, w.name)
	}
	return forwarders, whatWorks
}

func (o Options) withDefaults() (Options, error) {
	if o.Rounds == 0 {
		o.Rounds = DefaultRounds
	}
	if o.Duration == 0 {
		o.Duration = DefaultDuration
	}
	if o.Rounds < 1 || o.Duration < 0 || o.Calibrate < 0 || o.CPUs.Load < 0 || o.CPUs.Forward < 0 || o.CPUs.Load == o.CPUs.Forward {
		return o, fmt.Errorf("%w: at least 1 round, times of more than 0, two CPUs", ErrOptions)
	}
	for _, cpu := range []int{o.CPUs.Load, o.CPUs.Forward} {
		if !usable(cpu) {
			return o, fmt.Errorf("%w: this process may not run on CPU %d", ErrOptions, cpu)
		}
	}
	forwarders, all := Names()
	all = append(all, forwarders...)
	for _, n := range slices.Concat(o.Only, o.Skip) {
		if !slices.Contains(all, n) {
			return o, fmt.Errorf("%w: nothing is called %q; there are %s", ErrOptions, n, strings.Join(all, ", "))
		}
	}
	if o.Note == nil {
		o.Note = func(string) {}
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

// wants reports whether a name is asked for, among its kind of names.
func (o *Options) wants(name string, among []string) bool {
	restricted := slices.ContainsFunc(o.Only, func(n string) bool { return slices.Contains(among, n) })
	return !slices.Contains(o.Skip, name) && (!restricted || slices.Contains(o.Only, name))
}

// Run measures what is asked for and can be, and takes everything down again,
// whatever happens; signals that end a process end it like a done context. A
// forwarder that fails at a work is in the report as failed. There is a report
// beside an error if all that failed was taking things down. It needs root.
func Run(ctx context.Context, o Options) (rep *Report, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if err := testbed.NeedRoot(); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	if toolTaskset.missing() {
		return nil, fmt.Errorf("peers: taskset is missing: %s", Install(lacks("", []tool{toolTaskset})))
	}
	// The handler stays until the end: a second Ctrl-C must not cut the clean-up
	// short.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if _, err := testbed.Sweep(); err != nil {
		return nil, fmt.Errorf("peers: removing what an earlier run left: %w", err)
	}
	r := &run{o: o}
	if err := sweepFiles(os.TempDir(), testpmdRuntime); err != nil {
		return nil, fmt.Errorf("peers: removing what an earlier run left: %w", err)
	}
	r.dir, err = os.MkdirTemp("", fmt.Sprintf("%s%d-", filePrefix, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	defer func() { rep, err = r.end(ctx, rep, err) }()
	return r.all(ctx)
}

// end takes everything down after rep or err came of measuring, and says what
// comes of all: figures that are there stay, except after an interruption.
func (r *run) end(ctx context.Context, rep *Report, err error) (*Report, error) {
	down := errors.Join(r.close(), os.RemoveAll(r.dir))
	if ctx.Err() != nil {
		rep = nil
	}
	switch {
	case down != nil:
		err = errors.Join(err, fmt.Errorf("taking the networks down: %w", down))
	case ctx.Err() != nil:
		err = fmt.Errorf("interrupted; everything has been taken down: %w", ctx.Err())
	}
	return rep, err
}

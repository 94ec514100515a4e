package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
)

// benchFlags are what the measuring commands have in common.
type benchFlags struct {
	file, protocol, family, profile string
	services                        []string
	asJSON                          bool
	proto                           uint8
	fam                             int
}

// common adds the flags.
func (b *benchFlags) common(cmd *cobra.Command) {
	benchFile(cmd, &b.file)
	cmd.Flags().BoolVar(&b.asJSON, "json", false, "print one JSON object")
}

// profiled adds the flag for a CPU profile.
func (b *benchFlags) profiled(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.profile, "cpuprofile", "", "pprof `FILE` to write of what is measured")
}

// filtered adds the flags that choose services.
func (b *benchFlags) filtered(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.protocol, "protocol", "", "only services of tcp or udp")
	b.ofFamily(cmd)
}

// ofFamily adds the flags that choose them by name and by address.
func (b *benchFlags) ofFamily(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&b.services, "service", nil, "only the services of these `NAMES`")
	cmd.Flags().StringVar(&b.family, "family", "", "only services whose address is of family 4 or 6")
}

// seeded adds the flag for what is random.
func seeded(cmd *cobra.Command, seed *uint64) {
	cmd.Flags().Uint64Var(seed, "seed", 1, "what everything random comes from")
}

// benchPlan is what a configuration says to a benchmark.
type benchPlan struct {
	spec                dataplane.Spec
	ports               []nat.PortRange
	frameSize, maxFlows int
}

// load reads the configuration and the flags that choose services.
func (b *benchFlags) load() (p benchPlan, err error) {
	if b.proto, b.fam, err = benchFilter(b.protocol, b.family); err != nil {
		return p, &exitError{exitUsage, err}
	}
	cfg, err := config.Load(b.file)
	if err != nil {
		return p, unreadable(err)
	}
	p = benchPlan{plan.Spec(cfg, nil), plan.PortRanges(cfg), cfg.FrameSize, cfg.MaxFlows}
	p.spec.Services, err = named(p.spec.Services, b.services)
	return p, err
}

// named are the services of these names, in the configuration's order; all without
// names.
func named(all []dataplane.ServiceSpec, names []string) (chosen []dataplane.ServiceSpec, err error) {
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for i := range all {
		known = append(known, all[i].Name)
		if slices.Contains(names, all[i].Name) {
			chosen = append(chosen, all[i])
		}
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, &exitError{exitUsage, fmt.Errorf("--service %q: the configuration has %s", n, strings.Join(known, ", "))}
		}
	}
	return chosen, nil
}

// positive refuses numbers and times that were given as 0 or less: to a benchmark 0
// would mean its default.
func positive(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		var low bool
		switch f.Value.Type() {
		case "int":
			n, e := cmd.Flags().GetInt(f.Name)
			low = e != nil || n < 1
		case "duration":
			d, e := cmd.Flags().GetDuration(f.Name)
			low = e != nil || d <= 0
		case "float64":
			x, e := cmd.Flags().GetFloat64(f.Name)
			low = e != nil || !(x > 0)
		}
		if low && err == nil {
			err = &exitError{exitUsage, fmt.Errorf("--%s %s: want more than nothing", f.Name, f.Value)}
		}
	})
	return err
}

// benchReport is a result that can be printed.
type benchReport interface {
	WriteJSON(io.Writer) error
	WriteText(io.Writer) error
}

// benchHooks are what a benchmark gets beside its options.
type benchHooks struct {
	progress func(float64)
	profile  io.Writer // nil without --cpuprofile
}

// measures has a command read the configuration and let measure measure what it
// says.
func (b *benchFlags) measures(cmd *cobra.Command, measure func(context.Context, *benchPlan, benchHooks) (benchReport, error)) {
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := b.load()
		if err != nil {
			return err
		}
		return b.run(cmd, func(ctx context.Context, h benchHooks) (benchReport, error) { return measure(ctx, &p, h) })
	}
}

// run lets measure measure until a signal comes, and prints the result.
func (b *benchFlags) run(cmd *cobra.Command, measure func(context.Context, benchHooks) (benchReport, error)) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := positive(cmd); err != nil {
		return err
	}
	bar := newProgressBar(cmd.ErrOrStderr())
	var rep benchReport
	var err error
	do := func(w io.Writer) error {
		rep, err = measure(ctx, benchHooks{bar.show, w})
		return err
	}
	if b.profile == "" {
		err = do(nil)
	} else {
		err = writeFile(cmd.OutOrStdout(), b.profile, do)
	}
	bar.clear()
	switch {
	case errors.Is(err, bench.ErrOptions) || errors.Is(err, bench.ErrNoService):
		return &exitError{exitUsage, err}
	case err != nil:
		return err
	case b.asJSON:
		return rep.WriteJSON(cmd.OutOrStdout())
	}
	return rep.WriteText(cmd.OutOrStdout())
}

// progressBar draws on a terminal and nowhere else.
type progressBar struct {
	w     io.Writer // nil: not a terminal
	drawn time.Time
	cells int
}

func newProgressBar(w io.Writer) *progressBar {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progressBar{w: w}
	}
	return &progressBar{}
}

// barCells is the bar's width.
const barCells = 40

func (b *progressBar) show(done float64) {
	if b.w == nil || time.Since(b.drawn) < 100*time.Millisecond {
		return
	}
	b.drawn = time.Now()
	b.cells = min(max(int(done*barCells), 0), barCells)
	// Two writes of strings that exist: drawing does not count as allocation.
	_, _ = io.WriteString(b.w, "\r[")
	_, _ = io.WriteString(b.w, barFull[:b.cells])
	_, _ = io.WriteString(b.w, barEmpty[:barCells-b.cells])
	_, _ = io.WriteString(b.w, "]")
}

var (
	barFull  = strings.Repeat("#", barCells)
	barEmpty = strings.Repeat(".", barCells)
)

func (b *progressBar) clear() {
	if b.w != nil {
		_, _ = io.WriteString(b.w, "\r\x1b[K")
	}
}

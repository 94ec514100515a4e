package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench/peers"
)

func benchPeersCommand() *cobra.Command {
	var o peers.Options
	var jsonFile, charts string
	forwarders, works := peers.Names()
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "Measure l4fwd beside testpmd, nftables, HAProxy and nginx",
		Long: fmt.Sprintf(`Make networks of namespaces, run l4fwd and each peer in one of its own, give them the
same work in turn, and print a table of medians with ratios. One CPU is the
forwarder's, another everybody else's; let both be idle otherwise.

Forwarders: %s.
Works: %s.

It needs root, Linux 6.6 for datagrams and 6.8 for threads of NAPI, and installs
nothing: what is missing is named, with the package of Debian 12, and the rest is
measured. Everything is taken down at the end, also after Ctrl-C. With
the defaults it takes about half an hour; many short rounds are worth more than few
long ones where the machine is slow and fast in turn.`,
			strings.Join(forwarders, ", "), strings.Join(works, ", ")),
		Example: `  l4fwd bench peers --json peers.json --charts docs/benchmarks
  l4fwd bench peers --only l4fwd,nft,http --rounds 3`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.IntVar(&o.Rounds, "rounds", peers.DefaultRounds, "how many times each is measured")
	seconds := f.Float64("seconds", peers.DefaultDuration.Seconds(), "how long a measurement takes")
	calibrate := f.Float64("calibrate", peers.DefaultCalibrate.Seconds(), "`SECONDS` for which each arrangement is tried at first; 0: none is")
	as := f.String("as", "", "take arrangements from an earlier report, the JSON `FILE`, and try none that it has")
	f.IntVar(&o.CPUs.Load, "load-cpu", 0, "`CPU` of generator, clients and servers")
	f.IntVar(&o.CPUs.Forward, "forward-cpu", 1, "`CPU` of the forwarder")
	f.StringSliceVar(&o.Only, "only", nil, "`NAMES` of forwarders and works")
	f.StringSliceVar(&o.Skip, "skip", nil, "`NAMES` of forwarders and works to leave out")
	f.StringVar(&jsonFile, "json", "", "write the report as JSON to `FILE`")
	f.StringVar(&charts, "charts", "", "write charts and a page with them to `DIR`, which must have no other README.md")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Duration, o.Calibrate = inSeconds(*seconds), inSeconds(*calibrate)
		o.Command = strings.Join(append([]string{"l4fwd"}, os.Args[1:]...), " ")
		if *as != "" {
			var err error
			if o.As, err = peers.ReadReport(*as); err != nil {
				return &exitError{exitUsage, err}
			}
		}
		o.Note = func(line string) { cmd.PrintErrln(line) }
		rep, err := runPeers(cmd.Context(), o, charts)
		switch {
		case errors.Is(err, peers.ErrOptions):
			return &exitError{exitUsage, err}
		case rep == nil:
			return err
		}
		return errors.Join(writePeers(cmd.OutOrStdout(), rep, jsonFile, charts), err)
	}
	return cmd
}

// runPeers measures, unless there is nowhere for the charts to go: that is better
// known before.
func runPeers(ctx context.Context, o peers.Options, charts string) (*peers.Report, error) {
	if charts != "" {
		if err := peers.CheckDir(charts); err != nil {
			return nil, err
		}
	}
	return peers.Run(ctx, o)
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// writePeers writes the report to where it is asked for.
func writePeers(stdout io.Writer, rep *peers.Report, jsonFile, charts string) error {
	if err := rep.WriteText(stdout); err != nil {
		return err
	}
	if jsonFile != "" {
		if err := writeFile(stdout, jsonFile, rep.WriteJSON); err != nil {
			return err
		}
	}
	if charts != "" {
		if err := rep.WriteDir(charts); err != nil {
			return err
		}
	}
	if failed := rep.Failures(); len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, "; "))
	}
	return nil
}

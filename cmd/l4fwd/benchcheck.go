package main

import (
	"bytes"
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
)

func benchCheckCommand() *cobra.Command {
	var b benchFlags
	var o bench.CheckOptions
	var bounds string
	cmd := &cobra.Command{
		Use:   "check -c FILE --bounds FILE",
		Short: "See whether the forwarder is still within its bounds",
		Long: `Measure the ratio of the forwarder to the limit (see "bench limit") for the first
service, allocations in packets of every service, of two workers and in whole lives,
the memory of a flow and the sizes of structs, and compare them with the bounds in a
file of JSON. What fails is measured again, --attempts times in all, a second after,
and the best counts: the machine may be busy.

The exit status is 1 if something is beyond its bound.`,
		Example: `  l4fwd bench check -c bench/testdata/matrix.yaml --bounds bench/bounds.json`,
		Args:    cobra.NoArgs,
	}
	b.common(cmd)
	f := cmd.Flags()
	f.StringVar(&bounds, "bounds", "", "`FILE` with the bounds")
	must(cmd.MarkFlagRequired("bounds"))
	must(cmd.MarkFlagFilename("bounds", "json"))
	f.IntVar(&o.Attempts, "attempts", 12, "how often to measure what fails")
	f.IntVar(&o.Packets, "packets", 300000, "packets in a round")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		text, err := os.ReadFile(bounds)
		if err != nil {
			return err
		}
		if o.Bounds, err = bench.ReadBounds(bytes.NewReader(text)); err != nil {
			return &exitError{exitUsage, err}
		}
		p, err := b.load()
		if err != nil {
			return err
		}
		o.Spec, o.LocalPorts, o.FrameSize = p.spec, p.ports, p.frameSize
		good := false
		err = b.run(cmd, func(ctx context.Context, h benchHooks) (benchReport, error) {
			o.Progress = h.progress
			rep, err := bench.Check(ctx, o)
			good = err == nil && rep.OK()
			return rep, err
		})
		if err == nil && !good {
			return errors.New("beyond its bounds")
		}
		return err
	}
	return cmd
}

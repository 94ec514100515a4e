package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench/rings"
)

func benchRingsCommand() *cobra.Command {
	var b benchFlags
	var o rings.Options
	cmd := &cobra.Command{
		Use:   "rings",
		Short: "Measure our AF_XDP rings beside those of asavie/xdp",
		Long: `Make a network namespace with two veth pairs, open l4fwd's AF_XDP rings on one and
those of github.com/asavie/xdp on the other, and measure both in turn: taking packets
and giving the kernel fresh frames, and having packets sent. Only the rings' side of
it is timed, by the thread's processor time. It needs root; the namespace goes away.`,
		Example: `  l4fwd bench rings --rounds 100`,
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	f.IntVar(&o.Rounds, "rounds", 25, "rounds of 1024 packets each way")
	f.BoolVar(&b.asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return b.run(cmd, func(ctx context.Context, h benchHooks) (benchReport, error) {
			o.Progress = h.progress
			return rings.Run(ctx, o)
		})
	}
	return cmd
}

package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
)

func statsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show what the running daemon has counted",
		Long: `Show the running daemon's counters since its start: flows, packets by outcome,
interfaces and workers. json and yaml have all of them, also by queue and backend;
docs/operations.md explains them.`,
		Args: cobra.NoArgs,
	}
	a := askFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			s, err := c.Stats(ctx)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), s, func(w io.Writer) { statsTable(w, &s) })
		})
	}
	return cmd
}

func statsTable(w io.Writer, s *admin.Stats) {
	row(w, "flows", s.Flows)
	row(w, "  opened", s.Opened)
	row(w, "  expired", s.Expired)
	row(w, "  evicted", s.Evicted)
	row(w, "dropped", s.Dropped)
	row(w, "packets by outcome")
	for _, name := range slices.Sorted(maps.Keys(s.Verdicts)) {
		row(w, "  "+name, s.Verdicts[name])
	}
	row(w)
	row(w, "INTERFACE", "UP", "TAKEN", "LEFT TO THE KERNEL")
	for _, l := range s.Links {
		row(w, l.Name, l.Up, sumOf(l.XDP, "take_"), sumOf(l.XDP, "pass_"))
	}
	row(w)
	row(w, "WORKER", "RECEIVED", "SENT", "HANDED OVER", "FLOWS", "FREE FRAMES")
	for i, k := range s.Workers {
		row(w, i, k.Received, k.Sent, k.HandedOver, k.Flows, k.FreeFrames)
	}
}

// sumOf adds up the counters whose names begin with prefix.
func sumOf(counters map[string]uint64, prefix string) (n uint64) {
	for name, v := range counters {
		if strings.HasPrefix(name, prefix) {
			n += v
		}
	}
	return n
}

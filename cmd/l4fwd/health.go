package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
)

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health [SERVICE]",
		Short: "Show what health checks have found, and when",
		Long: `Show for each backend that is checked, or judged by clients' connections, whether
it is up, since when, and what the last check found, or why this host cannot check
it; whether it is suspect, since when and why. With --history the last changes of each, 32 at most.`,
		Args: cobra.MaximumNArgs(1),
	}
	a := askFlags(cmd)
	history := cmd.Flags().Bool("history", false, "show when and why each went up and down")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		service := ""
		if len(args) > 0 {
			service = args[0]
		}
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			all, err := c.Health(ctx, service)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), all, func(w io.Writer) { healthTable(w, all, *history) })
		})
	}
	return cmd
}

func healthTable(w io.Writer, all []admin.CheckedBackend, history bool) {
	row(w, "SERVICE", "BACKEND", "STATE", "SINCE", "WEIGHT", "FAILED", "LAST CHECK")
	for _, b := range all {
		h := b.Health
		found := h.Reason
		if h.Unchecked != "" {
			found = "could not be made: " + h.Unchecked
		}
		row(w, b.Service, b.Address, h.State, h.Since.Format(time.DateTime), fmt.Sprintf("%d %%", h.Percent), h.Failed, found)
		if h.Suspect != nil {
			row(w, "", "", "suspect", h.Suspect.Since.Format(time.DateTime), "", "", h.Suspect.Reason)
		}
		for _, c := range b.History {
			if history {
				what := c.To.String()
				if c.From == c.To {
					what = "suspect"
				}
				row(w, "", "", what, c.At.Format(time.DateTime), "", "", c.Reason)
			}
		}
	}
}

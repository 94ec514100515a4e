package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
)

func reloadCommand() *cobra.Command {
	var q admin.ReloadRequest
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running daemon read its configuration again",
		Long: `Have the running daemon read the file that it was started with again, flags
included, and print what changes. All of it takes effect or, if anything is wrong,
nothing, and the errors say what. Flows go on; what is removed drains for its
drain_timeout. SIGHUP does the same.

The exit status is 2 if the file is not valid.`,
		Example: `  l4fwd reload --dry-run           what would change
  l4fwd reload`,
		Args: cobra.NoArgs,
	}
	a := askFlags(cmd)
	cmd.Flags().BoolVar(&q.DryRun, "dry-run", false, "change nothing, only say what would change")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			r, err := c.Reload(ctx, q)
			if errors.Is(err, admin.ErrInvalid) {
				return &exitError{exitUsage, err}
			}
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), r, func(w io.Writer) {
				for _, s := range r.Changes {
					row(w, s)
				}
				for _, s := range r.Warnings {
					row(w, "warning: "+s)
				}
				switch {
				case len(r.Changes) == 0:
					row(w, "nothing changes")
				case r.DryRun:
					row(w, "nothing has been changed (--dry-run)")
				default:
					row(w, fmt.Sprintf("in force, in %.3f s", r.Seconds))
				}
			})
		})
	}
	return cmd
}

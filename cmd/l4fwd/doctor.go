package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control"
	"github.com/l4fwd/l4fwd/control/admin"
)

func doctorCommand() *cobra.Command {
	var file string
	var probe bool
	cmd := &cobra.Command{
		Use:   "doctor [-c FILE]",
		Short: "Look at the host for what keeps traffic from getting through",
		Long: `Look at interfaces, queues, routes, neighbours, addresses, ports, CPUs and privileges as
a configuration needs them, and say of each what it means and, where there is one, the
command that mends it. Nothing is changed. All that is sent is a question to etcd, where
the configuration has one, and what --probe sends. Without -c the running daemon says
which file it was started with, and that is read as it is now, without flags of run;
where it is not what the daemon has in force, that is a warning. With -c none need run.

It looks at the network namespace and with the privileges that it is run in and with:
those of l4fwd. The exit status is 1 if something fails.`,
		Example: `  l4fwd doctor
  l4fwd doctor -c l4fwd.yaml -o json
  l4fwd doctor --probe`,
		Args: cobra.NoArgs,
	}
	a := newAsker(cmd, localFlags(cmd))
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE`; without, the running daemon's")
	cmd.Flags().BoolVar(&probe, "probe", false, "also ask on the interfaces, by ARP and neighbour discovery, who else has the VIPs and local addresses")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			var running *admin.Status
			status, err := c.Status(ctx)
			if err == nil {
				running = &status
			}
			named := file != ""
			if !named {
				if err != nil {
					return fmt.Errorf("%w; or name a configuration by -c", err)
				}
				file = status.Config
			}
			cfg, err := config.Load(file)
			if err != nil {
				return unreadable(err)
			}
			var found []control.Finding
			if !named {
				found = control.CompareRunning(ctx, c, cfg)
			}
			more, err := control.Diagnose(ctx, cfg, running, probe)
			if err != nil {
				return err
			}
			found = append(found, more...)
			if err := a.print(cmd.OutOrStdout(), found, func(w io.Writer) { findingsTable(w, found) }); err != nil {
				return err
			}
			return failures(found)
		})
	}
	return cmd
}

// findingsTable shows what fails last, where it is seen.
func findingsTable(w io.Writer, found []control.Finding) {
	for _, g := range []control.Grade{control.Good, control.Warn, control.Fail} {
		for _, f := range found {
			if f.Grade != g {
				continue
			}
			row(w, f.Grade, f.Check, f.Subject, f.Text)
			if f.Command != "" {
				row(w, "", "", "", "run: "+f.Command)
			}
		}
	}
}

// failures is an error if something fails.
func failures(found []control.Finding) error {
	n := 0
	for _, f := range found {
		if f.Grade == control.Fail {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s failed", count(n, "check"))
}

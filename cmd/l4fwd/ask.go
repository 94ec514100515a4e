package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
)

// asker is a command that asks the running daemon.
type asker struct {
	*target
	format string
}

// askFlags adds the flags that all commands have which ask a daemon.
func askFlags(cmd *cobra.Command) *asker { return newAsker(cmd, targetFlags(cmd)) }

// newAsker adds the flag that says how the answer is shown.
func newAsker(cmd *cobra.Command, t *target) *asker {
	a := &asker{target: t}
	cmd.Flags().StringVarP(&a.format, "output", "o", "table", "`FORMAT` table, json or yaml")
	return a
}

// ask runs f with a client of the daemon.
func (a *asker) ask(ctx context.Context, f func(context.Context, *admin.Client) error) error {
	switch a.format {
	case "table", "json", "yaml":
	default:
		return &exitError{exitUsage, fmt.Errorf("--output %q: expected table, json or yaml", a.format)}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// print writes v as asked for; table is how it looks for people.
func (a *asker) print(w io.Writer, v any, table func(io.Writer)) error {
	if a.format == "table" {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		table(t)
		return t.Flush()
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if a.format == "yaml" {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("output: %w", err)
		}
	} else {
		b = append(b, '\n')
	}
	_, err = w.Write(b)
	return err
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who the running daemon is",
		Long: `Show the running daemon's process, its configuration file, when that was read, and
how many workers, services and backends it has; with discovery, what etcd says of them,
and what is refused.`,
		Args: cobra.NoArgs,
	}
	a := askFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				row(w, "process", s.PID)
				row(w, "started", s.Started.Format(time.DateTime))
				row(w, "configuration", s.Config)
				row(w, "read", s.Loaded.Format(time.DateTime))
				row(w, "reloads", s.Reloads)
				row(w, "workers", s.Workers)
				row(w, "services", s.Services)
				row(w, "backends", s.Backends)
				if s.Discovery != nil {
					discoveryRows(w, s.Discovery)
				}
			})
		})
	}
	return cmd
}

func discoveryRows(w io.Writer, d *admin.DiscoveryStatus) {
	state := "does not answer since "
	if d.Connected {
		state = "answers since "
	}
	row(w, "etcd", state+d.Since.Format(time.DateTime))
	if d.Error != "" {
		row(w, "last error", d.ErrorAt.Format(time.DateTime)+" "+d.Error)
	}
	what := ""
	if d.Recalled {
		what = " (of the last run)"
	}
	row(w, "revision", fmt.Sprintf("%d, in force %d%s", d.Revision, d.InForce, what))
	row(w, "found", fmt.Sprintf("%d services, %d backends", d.Services, d.Backends))
	if d.Refusal != "" {
		row(w, "not in force", strings.ReplaceAll(d.Refusal, "\n", "; "))
	}
	for _, p := range d.Problems {
		row(w, "refused", p)
	}
	if more := d.Refused - len(d.Problems); more > 0 {
		row(w, "refused", fmt.Sprintf("%d more", more))
	}
}

// row writes a line of a table. What goes wrong with writing, Flush says.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = io.WriteString(w, "\t")
		}
		_, _ = fmt.Fprint(w, c)
	}
	_, _ = io.WriteString(w, "\n")
}

package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/admin"
)

func servicesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List the running daemon's services",
		Long: `List the running daemon's services, how many of their backends take new flows, and
the flows: ACTIVE are open now, those that are closing included, FLOWS have been opened
since the start. A service that a reload has removed stands there as long as it drains.`,
		Args: cobra.NoArgs,
	}
	a := askFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			all, err := c.Services(ctx)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), all, func(w io.Writer) {
				row(w, "SERVICE", "ADDRESS", "PROTOCOL", "MODE", "SCHEDULER", "TAKING", "ACTIVE", "FLOWS", "")
				for _, s := range all {
					note := ""
					switch {
					case s.Until != nil:
						note = "removed, drains until " + s.Until.Format(time.DateTime)
					case s.Panic:
						note = "below panic_threshold: backends that are down take new flows, too"
					}
					row(w, s.Name, s.Address, s.Protocol, s.Mode, s.Scheduler, fmt.Sprintf("%d of %d", s.Taking, s.Backends), s.Active, s.Flows, note)
				}
			})
		})
	}
	return cmd
}

func backendsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backends [SERVICE]",
		Short: "List the running daemon's backends",
		Long: `List the backends of a service, or of all, as they are now: the weight in force, what
has been ordered, and what health checks say.

up takes new flows. drained has weight 0: those it has go on. down say health
checks. disabled is so by command. standby is a backup that is not needed. leaving
has been removed by a reload: its flows go on until the time given; gone: they have
been ended since. ACTIVE are flows that are open now, those that are closing included,
FLOWS those opened since the start.`,
		Args: cobra.MaximumNArgs(1),
	}
	a := askFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		service := ""
		if len(args) > 0 {
			service = args[0]
		}
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			all, err := c.Backends(ctx, service)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), all, func(w io.Writer) { backendsTable(w, all) })
		})
	}
	return cmd
}

func backendsTable(w io.Writer, all []admin.BackendInfo) {
	row(w, "SERVICE", "BACKEND", "STATE", "WEIGHT", "ACTIVE", "FLOWS", "")
	for i := range all {
		b := &all[i]
		weight := strconv.FormatUint(uint64(b.Weight), 10)
		if b.Weight != b.Configured && b.Until == nil {
			weight += fmt.Sprintf(" of %d", b.Configured)
		}
		note := ""
		switch {
		case b.Until != nil:
			note = "until " + b.Until.Format(time.DateTime)
		case b.Ordered != nil:
			note = fmt.Sprintf("%s by command since %s", b.Ordered.Action, b.Ordered.Since.Format(time.DateTime))
		case b.Health != nil && b.State == admin.BackendDown:
			note = fmt.Sprintf("since %s: %s", b.Health.Since.Format(time.DateTime), b.Health.Reason)
			if b.Panic {
				note = "takes new flows (panic_threshold), " + note
			}
		case b.Health != nil && b.Health.Suspect != nil:
			note = fmt.Sprintf("suspect since %s: %s", b.Health.Suspect.Since.Format(time.DateTime), b.Health.Suspect.Reason)
		case b.Health != nil && b.Health.Unchecked != "":
			note = "cannot be checked: " + b.Health.Unchecked
		}
		row(w, b.Service, b.Address, b.State, weight, b.Active, b.Flows, note)
	}
}

// orderCommand is a command that orders how a backend is treated.
func orderCommand(action admin.Action, use, short, long string) *cobra.Command {
	n := 1
	if action == admin.Weigh {
		n = 2
	}
	cmd := &cobra.Command{Use: use, Short: short, Long: long + `

BACKEND is ADDRESS:PORT, in all services that have it, or SERVICE/ADDRESS:PORT.`, Args: exactly(n)}
	a := askFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o := admin.Order{Action: action, Backend: args[0]}
		if action == admin.Weigh {
			weight, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("weight %s: expected 0 to 65535", args[1])}
			}
			o.Weight = uint32(weight)
		}
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			all, err := c.Order(ctx, o)
			if err != nil {
				return usage(err)
			}
			return a.print(cmd.OutOrStdout(), all, func(w io.Writer) { backendsTable(w, all) })
		})
	}
	return cmd
}

func orderCommands() []*cobra.Command {
	return []*cobra.Command{
		orderCommand(admin.Drain, "drain BACKEND", "Give a backend no new flows; those it has go on",
			`Give a backend no new flows, as weight 0 does: those it has go on, and so do QUIC
connections whose IDs name it. This holds over reloads, until "l4fwd enable".`),
		orderCommand(admin.Disable, "disable BACKEND", "Give a backend no new flows and end those it has",
			`Give a backend no new flows and end those it has, as the service's on_backend_down
says. This holds over reloads, until "l4fwd enable".`),
		orderCommand(admin.Enable, "enable BACKEND", "Treat a backend as the configuration says again",
			`Take back what drain, disable or weight have ordered: the configuration's weight
holds again.`),
		orderCommand(admin.Weigh, "weight BACKEND NUMBER", "Give a backend another weight than the configuration does",
			`Give a backend a weight of 0 to 65535. It holds over reloads, also over one that
changes the weight in the file, which says so, until "l4fwd enable".`),
	}
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/admin"
)

// flowFlags adds a flag for each field of a filter.
func flowFlags(cmd *cobra.Command) *admin.FlowFilter {
	q := &admin.FlowFilter{}
	f := cmd.Flags()
	f.StringVar(&q.Service, "service", "", "of the service of this `NAME`")
	f.StringVar(&q.Client, "client", "", "from this `END`: address, prefix, address:port or :port")
	f.StringVar(&q.VIP, "vip", "", "to this `END`")
	f.StringVar(&q.Local, "local", "", "with this `END` of l4fwd's towards the backend")
	f.StringVar(&q.Backend, "backend", "", "with a backend at this `END`")
	f.StringVar(&q.Protocol, "protocol", "", "of this `PROTOCOL`, tcp or udp")
	f.StringVar(&q.Mode, "mode", "", "of this `MODE`, as in the list")
	f.StringSliceVar(&q.States, "state", nil, "in this `STATE`, as in the list, or one of several")
	f.DurationVar(&q.MinAge, "min-age", 0, "that began this `TIME` ago or earlier")
	f.DurationVar(&q.MaxAge, "max-age", 0, "that began this `TIME` ago or later")
	f.DurationVar(&q.MinIdle, "min-idle", 0, "without a packet for this `TIME`")
	f.DurationVar(&q.MaxIdle, "max-idle", 0, "with a packet within this `TIME`")
	f.Uint64Var(&q.MinPackets, "min-packets", 0, "of `N` packets or more, both ways")
	f.Uint64Var(&q.MinBytes, "min-bytes", 0, "of `N` bytes or more, both ways")
	f.Uint64Var(&q.MaxBytes, "max-bytes", 0, "of `N` bytes or fewer, both ways")
	return q
}

func flowsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the running daemon's flows, or end some",
		Long: `List the flows of the running daemon, those that all flags fit; without flags all. They
come in no order, as they are found; forwarding goes on meanwhile. A flow that lives
while the list is made is in it once. With -o json each is an object on a line.

An END is an address, a prefix, address:port, or :port.`,
		Example: `  l4fwd flows --service web --state established --limit 20
  l4fwd flows --client 198.51.100.0/24 --min-idle 10m
  l4fwd flows --backend 10.0.1.20:8080 --count
  l4fwd flows kill --backend 10.0.1.20:8080`,
		Args: cobra.NoArgs,
	}
	a, q := askFlags(cmd), admin.FlowsRequest{}
	filter := flowFlags(cmd)
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "at most `N`; 0: all")
	cmd.Flags().BoolVar(&q.Count, "count", false, "only how many there are")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		q.FlowFilter = *filter
		return a.ask(ctx, func(ctx context.Context, c *admin.Client) error {
			if q.Count {
				n, err := c.CountFlows(ctx, q.FlowFilter)
				if err != nil {
					return usage(err)
				}
				return a.print(cmd.OutOrStdout(), n, func(w io.Writer) { row(w, n.Flows) })
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			n, show := 0, a.flowPrinter(out)
			err := c.Flows(ctx, q, func(f *admin.Flow) error {
				n++
				return show(f)
			})
			if err != nil && n == 0 {
				return usage(err) // no heading over it
			}
			return errors.Join(usage(err), out.Flush())
		})
	}
	cmd.AddCommand(killFlowsCommand())
	return cmd
}

func killFlowsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kill",
		Short: "End flows of the running daemon",
		Long: `End the flows that all flags fit. Both ends of an established TCP connection are sent a
RST with the sequence number that they expect; with direct return only the server's is
known, and only it is. Flows of UDP, and those whose handshake is not over, are
forgotten: their next packet begins anew, if it may. Clients that persistence keeps with
a backend come to it again.

An END is an address, a prefix, address:port, or :port.`,
		Example: `  l4fwd flows kill --client 198.51.100.7
  l4fwd flows kill --service web --min-idle 1h`,
		Args: cobra.NoArgs,
	}
	a, q := askFlags(cmd), admin.KillFlowsRequest{}
	filter := flowFlags(cmd)
	cmd.Flags().BoolVar(&q.All, "yes", false, "all flows are meant, if no other flag says which")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q.FlowFilter = *filter
		return a.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			k, err := c.KillFlows(ctx, q)
			if err != nil {
				return usage(err)
			}
			return a.print(cmd.OutOrStdout(), k, func(w io.Writer) {
				row(w, fmt.Sprintf("%d flows ended, %d RSTs sent", k.Ended, k.Resets))
			})
		})
	}
	return cmd
}

// usage is err, with the exit status of bad usage if that is what the daemon says it is.
func usage(err error) error {
	if errors.Is(err, admin.ErrInvalid) {
		return &exitError{exitUsage, err}
	}
	return err
}

// flowPrinter prints flows one by one, as they come.
func (a *asker) flowPrinter(w *bufio.Writer) func(*admin.Flow) error {
	const line = "%-8s  %-16s  %-14s  %-30s  %-30s  %-30s  %-30s  %9s  %9s  %12s  %12s\n"
	if a.format == "table" {
		// An error stays with the buffer, and its Flush says it.
		_, _ = fmt.Fprintf(w, line, "PROTOCOL", "SERVICE", "STATE", "CLIENT", "VIP", "LOCAL", "BACKEND", "AGE", "IDLE", "BYTES TO", "BYTES FROM")
		return func(f *admin.Flow) error {
			local := "-"
			if f.Local != nil {
				local = f.Local.String()
			}
			_, err := fmt.Fprintf(w, line, f.Protocol, f.Service, f.State, f.Client, f.VIP, local, f.Backend,
				short(f.Age), short(f.Idle), fmt.Sprint(f.BytesTo), fmt.Sprint(f.BytesFrom))
			return err
		}
	}
	return func(f *admin.Flow) error {
		b, err := json.Marshal(f)
		if err != nil {
			return fmt.Errorf("output: %w", err)
		}
		b = append(b, '\n')
		if a.format == "yaml" {
			if b, err = yaml.JSONToYAML(b); err != nil {
				return fmt.Errorf("output: %w", err)
			}
			b = append([]byte("---\n"), b...)
		}
		_, err = w.Write(b)
		return err
	}
}

// short is a time in seconds for people.
func short(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

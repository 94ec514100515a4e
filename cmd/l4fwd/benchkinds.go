package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
)

func benchLimitCommand() *cobra.Command {
	var b benchFlags
	var o bench.SynthOptions
	cmd := &cobra.Command{
		Use:   "limit -c FILE",
		Short: "Measure the least work that any forwarder must do",
		Long: `Take packets from a port of plain memory, read addresses and ports, read one cache
line of a bucket and one of an entry, write to it and to the header, and send: what
remains of forwarding when nothing is parsed, compared, checked or counted. Memory
is as large as the flow table's, and asked for ahead.

"bench replay" measures the same in turn with the forwarder.`,
		Example: `  l4fwd bench limit -c l4fwd.yaml --flows 1000000`,
		Args:    cobra.NoArgs,
	}
	b.common(cmd)
	b.filtered(cmd)
	seeded(cmd, &o.Seed)
	f := cmd.Flags()
	f.IntVar(&o.Flows, "flows", 65536, "flows that packets are drawn from")
	f.IntVar(&o.Packets, "packets", 1000000, "packets in a round")
	f.IntVar(&o.Rounds, "rounds", 7, "rounds")
	f.IntVar(&o.Size, "size", 64, "bytes of a packet on the wire")
	b.measures(cmd, func(ctx context.Context, p *benchPlan, h benchHooks) (benchReport, error) {
		o.Spec, o.FrameSize, o.MaxFlows, o.Protocol, o.Family = p.spec, p.frameSize, p.maxFlows, b.proto, b.fam
		o.Progress = h.progress
		return bench.Limit(ctx, o)
	})
	return cmd
}

func benchLivesCommand() *cobra.Command {
	var b benchFlags
	var o bench.LivesOptions
	cmd := &cobra.Command{
		Use:   "lives -c FILE",
		Short: "Measure whole TCP connections",
		Long: `Let connections to the TCP services live their whole lives: handshake, two packets
with payload each way, both FINs, the last ACK, and the expiry of what is left. So a
new flow, a local port, a backend, tracking and timers are all paid for. Some
thousand connections are under way at a time; packets are made as they are needed
and only their feeding is timed, by the thread's processor time.

The forwarder's clock goes as fast as it must for --kept connections that are over
to wait in the table for their end.`,
		Example: `  l4fwd bench lives -c l4fwd.yaml --lives 1000000`,
		Args:    cobra.NoArgs,
	}
	b.common(cmd)
	b.profiled(cmd)
	b.ofFamily(cmd)
	seeded(cmd, &o.Seed)
	f := cmd.Flags()
	f.IntVar(&o.Lives, "lives", 200000, "connections in a round")
	f.IntVar(&o.Rounds, "rounds", 5, "rounds")
	f.IntVar(&o.Kept, "kept", 1<<18, "connections that are over and wait for their end")
	f.IntVar(&o.Size, "size", 64, "bytes of a packet with payload on the wire")
	f.BoolVar(&o.Limit, "limit", true, "measure the limit just after, see \"bench limit\"")
	b.measures(cmd, func(ctx context.Context, p *benchPlan, h benchHooks) (benchReport, error) {
		o.Spec, o.LocalPorts, o.FrameSize, o.MaxFlows, o.Family = p.spec, p.ports, p.frameSize, p.maxFlows, b.fam
		o.Progress, o.CPUProfile = h.progress, h.profile
		return bench.Lives(ctx, o)
	})
	return cmd
}

func benchFloodCommand() *cobra.Command {
	var b benchFlags
	var o bench.FloodOptions
	cmd := &cobra.Command{
		Use:   "flood -c FILE",
		Short: "Measure a SYN flood, and what it does to others",
		Long: `Open live flows, then have SYNs arrive from addresses that are made up, every one
of them a new flow that nobody ever answers, among packets of the live flows. Print
how many packets a second one worker takes (by its processor time), how many live
flows and packets of theirs are lost, and how many connections open of honest
clients, who begin in the first half and whose round trip takes --rtt; they send
their SYN again after 1 s and 3 s.

--rate is how fast packets come by the forwarder's clock, which timeouts go by; it
is not how fast they are fed.`,
		Example: `  l4fwd bench flood -c l4fwd.yaml --rate 3000000 --duration 5s`,
		Args:    cobra.NoArgs,
	}
	b.common(cmd)
	b.profiled(cmd)
	b.ofFamily(cmd)
	seeded(cmd, &o.Seed)
	f := cmd.Flags()
	f.IntVar(&o.Live, "live", 10000, "live flows")
	f.Float64Var(&o.LiveShare, "live-share", 0.1, "share of packets that are theirs")
	f.IntVar(&o.Rate, "rate", 3000000, "packets a second by the forwarder's clock")
	f.DurationVar(&o.Duration, "duration", 4*time.Second, "how long by that clock")
	f.IntVar(&o.Honest, "honest", 1000, "connections a second that honest clients open")
	f.DurationVar(&o.RTT, "rtt", 50*time.Millisecond, "their round trip")
	f.BoolVar(&o.Limit, "limit", true, "measure the limit just after, see \"bench limit\"")
	b.measures(cmd, func(ctx context.Context, p *benchPlan, h benchHooks) (benchReport, error) {
		o.Spec, o.LocalPorts, o.FrameSize, o.MaxFlows, o.Family = p.spec, p.ports, p.frameSize, p.maxFlows, b.fam
		o.Progress, o.CPUProfile = h.progress, h.profile
		return bench.Flood(ctx, o)
	})
	return cmd
}

func benchMatrixCommand() *cobra.Command {
	var b benchFlags
	var o bench.MatrixOptions
	cmd := &cobra.Command{
		Use:   "matrix -c FILE",
		Short: "Measure kinds of packets beside each other",
		Long: `Measure every service of the configuration as "bench replay --synthesize"
does, a round of each in turn, and print a table in Markdown with the ratios to the
first service and to the limit. Of a service with TOA all clients' packets bear it.
Two rows more show the first service with --workers workers, each a thread bound to
a CPU of its own, flows at home (RSS known) and every reply handed over; theirs is the wall's
time, of the slowest worker, and beside it all workers' processor time. Their limit
is as many limits side by side: where it has nearly the first row's ratio the
workers do not hinder each other, whatever the machine's cores do to each other.`,
		Example: `  l4fwd bench matrix -c bench/testdata/matrix.yaml --flows 65536`,
		Args:    cobra.NoArgs,
	}
	b.common(cmd)
	seeded(cmd, &o.Seed)
	f := cmd.Flags()
	f.IntVar(&o.Flows, "flows", 65536, "flows of each service")
	f.IntVar(&o.Packets, "packets", 500000, "packets in a round")
	f.IntVar(&o.Rounds, "rounds", 7, "rounds")
	f.IntVar(&o.Size, "size", 64, "bytes of a packet on the wire")
	f.IntVar(&o.Workers, "workers", 2, "workers of the last two rows, 1 for none")
	b.measures(cmd, func(ctx context.Context, p *benchPlan, h benchHooks) (benchReport, error) {
		o.Spec, o.LocalPorts, o.FrameSize, o.MaxFlows = p.spec, p.ports, p.frameSize, p.maxFlows
		o.Progress = h.progress
		return bench.Matrix(ctx, o)
	})
	return cmd
}

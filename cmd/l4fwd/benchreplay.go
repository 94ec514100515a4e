package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
)

// replayFlags are those of `bench replay`.
type replayFlags struct {
	benchFlags
	pcap, write, arrive string
	synthesize          bool
	replay              bench.Options
	synth               bench.SynthOptions
}

func benchReplayCommand() *cobra.Command {
	var r replayFlags
	cmd := &cobra.Command{
		Use:   "replay -c FILE {--pcap FILE | --synthesize}",
		Short: "Run packets through the forwarder and measure",
		Long: `Feed packets through the same pipeline as "run", over ports of plain memory, and
print how fast it went, where the time went, and what became of the packets.

With --pcap they come from a capture (pcap or pcapng). Loop 1 feeds it in its
order. Replies get what only l4fwd knows: backend, local address and port, ACK
and SACK numbers, checksums, learnt from what l4fwd sent; one that comes before
its flow was opened is held back until then. (Of captures not made by "bench gen"
that is possible for DNAT only. What matches no service is fed as it is.) Later
loops begin with the same pristine packets, but leave handshakes out, since the
flows are open. With more than one loop no FIN and RST is fed, for the flows must
live on. The forwarder's time is the capture's, going on from loop to loop. --seed
stands for all secrets, so the same options give the same packets, byte for byte.

With --synthesize they are made as they are needed: --flows flows are opened, then
packets of both directions, of flows drawn at random, are fed in rounds. Ten
million flows need no capture of 3 GB. Only feeding is timed.

With several workers each is a thread bound to a CPU of its own, if there are as
many. The packets are spread over them as a NIC's RSS would, and handed over to the
flow's owner; --rss-known tells the owners how they are spread, as NICs do whose RSS
key can be read, so that nothing has to be handed over. --arrive home brings packets
to their flows' owners, --arrive away all replies to another worker. With --write workers take turns in one thread, for a reproducible
file: the figures then say nothing of speed.

Figures: ns a packet includes the copy of the pristine packet into a frame, which
a NIC's DMA does in real life; copy and pipeline are also told apart, by sampling
one burst in 16, or with --profile all bursts of the later loops, or of a round
more. The limit, measured in turn with the forwarder unless --limit=false, is the
least work that any forwarder must do: the same copy, one line of a bucket, one of an
entry, which is written to, the header written back, all asked for ahead. The ratio
stays where the machine drifts. Of a capture it wants more than one loop, one worker,
and none of --duration, --write and --profile; a --cpuprofile shows it, too. With it
and with --synthesize, time is one worker's processor time, else the wall's; of
several workers it is what the slowest takes, and the processor time of all stands
beside it. Gbit/s counts frames with their checksum.`,
		Example: `  l4fwd bench replay -c l4fwd.yaml --pcap 64k.pcap --loops 20
  l4fwd bench replay -c l4fwd.yaml --pcap 64k.pcap --write out.pcap
  l4fwd bench replay -c l4fwd.yaml --synthesize --flows 10000000 --profile
  l4fwd bench replay -c l4fwd.yaml --synthesize --flows 65536 --workers 2 --arrive away`,
		Args: cobra.NoArgs,
	}
	r.common(cmd)
	r.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := r.check(cmd); err != nil {
			return &exitError{exitUsage, err}
		}
		p, err := r.load()
		if err != nil {
			return err
		}
		if r.synthesize {
			return r.runSynth(cmd, &p)
		}
		return r.runReplay(cmd, &p)
	}
	return cmd
}

// check looks whether what was given can be measured together, and leaves the limit
// out where nobody asked for it and it cannot be measured.
func (r *replayFlags) check(cmd *cobra.Command) error {
	o, f := &r.replay, cmd.Flags()
	if o.Loops < 1 || o.Workers < 1 || o.Workers > 255 || o.Duration < 0 {
		return errors.New("want at least 1 loop, 1 to 255 workers, and no negative duration")
	}
	for _, name := range []string{"arrive", "rss-known"} {
		if o.Workers == 1 && f.Changed(name) {
			return fmt.Errorf("--%s: with one worker all packets arrive at home; want --workers 2 or more", name)
		}
	}
	if !r.synthesize && !f.Changed("limit") {
		asked := *o
		if r.write != "" {
			asked.Output = io.Discard
		}
		o.Limit = asked.CanLimit()
	}
	return nil
}

// flags adds all but the common ones.
func (r *replayFlags) flags(cmd *cobra.Command) {
	r.profiled(cmd)
	r.filtered(cmd)
	f, o := cmd.Flags(), &r.replay
	f.StringVar(&r.pcap, "pcap", "", "capture `FILE` to feed")
	must(cmd.MarkFlagFilename("pcap", "pcap", "pcapng"))
	f.BoolVar(&r.synthesize, "synthesize", false, "make the packets")
	cmd.MarkFlagsOneRequired("pcap", "synthesize")
	cmd.MarkFlagsMutuallyExclusive("pcap", "synthesize")
	f.IntVar(&o.Loops, "loops", 1, "how often to go over the capture")
	f.DurationVar(&o.Duration, "duration", 0, "go over it for so long")
	cmd.MarkFlagsMutuallyExclusive("loops", "duration")
	f.IntVar(&o.Workers, "workers", 1, "number of workers, each on a CPU of its own")
	f.BoolVar(&o.RSSKnown, "rss-known", false, "let flows be owned where their packets arrive")
	f.Uint64Var(&o.Seed, "seed", 1, "what hash keys, ports and sequence numbers come from")
	f.StringVar(&r.write, "write", "", "pcap `FILE` for what leaves")
	f.BoolVar(&o.Limit, "limit", true, "measure the least work there is, in turn, and print the ratio")
	f.BoolVar(&o.Profile, "profile", false, "time the stages of every burst")
	s := &r.synth
	f.IntVar(&s.Flows, "flows", 65536, "flows to open, with --synthesize")
	f.IntVar(&s.Packets, "packets", 1000000, "packets in a round, with --synthesize")
	f.IntVar(&s.Rounds, "rounds", 7, "rounds, with --synthesize")
	f.IntVar(&s.Size, "size", 64, "bytes of a packet on the wire, with --synthesize")
	f.StringVar(&r.arrive, "arrive", "spread", "where packets arrive, with --synthesize: spread, home or away")
	f.BoolVar(&s.Fresh, "fresh", false, "servers send no data, so that all packets of clients bear TOA, with --synthesize")
	for _, only := range []string{"loops", "duration", "write"} {
		cmd.MarkFlagsMutuallyExclusive("synthesize", only)
	}
	for _, only := range []string{"flows", "packets", "rounds", "size", "arrive", "fresh", "protocol", "family", "service"} {
		cmd.MarkFlagsMutuallyExclusive("pcap", only)
	}
}

var arrivals = map[string]bench.Arrival{"spread": bench.ArriveSpread, "home": bench.ArriveHome, "away": bench.ArriveAway}

func (r *replayFlags) runSynth(cmd *cobra.Command, p *benchPlan) error {
	arrival, ok := arrivals[r.arrive]
	if !ok {
		return &exitError{exitUsage, fmt.Errorf("--arrive %q: want spread, home or away", r.arrive)}
	}
	s, o := r.synth, &r.replay
	s.Spec, s.LocalPorts, s.FrameSize, s.MaxFlows = p.spec, p.ports, p.frameSize, p.maxFlows
	s.Workers, s.RSSKnown, s.Seed, s.Limit, s.Profile = o.Workers, o.RSSKnown, o.Seed, o.Limit, o.Profile
	s.Protocol, s.Family, s.Arrival = r.proto, r.fam, arrival
	return r.run(cmd, func(ctx context.Context, h benchHooks) (benchReport, error) {
		s.Progress, s.CPUProfile = h.progress, h.profile
		return bench.Synthesize(ctx, s)
	})
}

func (r *replayFlags) runReplay(cmd *cobra.Command, p *benchPlan) error {
	o := r.replay
	o.Spec, o.LocalPorts, o.FrameSize, o.MaxFlows = p.spec, p.ports, p.frameSize, p.maxFlows
	c, err := bench.LoadCapture(r.pcap)
	if err != nil {
		return err
	}
	return r.run(cmd, func(ctx context.Context, h benchHooks) (rep benchReport, err error) {
		o.Progress, o.CPUProfile = h.progress, h.profile
		if r.write == "" {
			return bench.Replay(ctx, c, o)
		}
		err = writeFile(cmd.OutOrStdout(), r.write, func(w io.Writer) (err error) {
			o.Output = w
			rep, err = bench.Replay(ctx, c, o)
			return err
		})
		return rep, err
	})
}

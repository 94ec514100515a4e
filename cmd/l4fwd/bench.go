package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/packet"
)

// benchCommand is the parent of everything that measures.
func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the forwarder",
		Long: `Measure what forwarding costs a packet. Nothing here needs privileges or touches
a network interface.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(benchGenCommand(), benchReplayCommand(), benchDiffCommand())
	return cmd
}

// benchFile adds the flag for the configuration.
func benchFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration `FILE`")
	must(cmd.MarkFlagRequired("config"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
}

func benchGenCommand() *cobra.Command {
	var file, out, protocol, family string
	var o bench.GenOptions
	cmd := &cobra.Command{
		Use:   "gen -c FILE --flows N --packets M --size B -o FILE",
		Short: "Make a capture aimed at the configuration's services",
		Long: `Write a pcap (nanoseconds, Ethernet) as the wire at l4fwd would show it: first
every flow's handshake (of UDP a datagram each way), then packets of both
directions drawn at random over all flows. Flows go to the services in turn.

--packets is the length of the capture, handshakes included; if it is too short
for these they are all there is. --size is that of a data packet on the wire with
the Ethernet checksum: 64 makes the shortest frame, 60 bytes in the capture.
Where the headers alone take more (TCP over IPv6: 78), packets are as short as
they can be.

Packets of clients are complete. A reply in Full-NAT goes to a local address and
port 0, because only a running l4fwd knows the port; "bench replay" fills it in,
with the backend, ACK and SACK numbers and checksums. It finds the flow by the
sender's MAC address: 02:46 and the flow's number in packets of clients, 02:52
and the number in replies.

The same options give the same file, byte for byte.`,
		Example: `  l4fwd bench gen -c l4fwd.yaml --flows 65536 --packets 1000000 --size 64 -o 64k.pcap
  l4fwd bench gen -c l4fwd.yaml --flows 100 --packets 5000 --size 1400 --protocol udp --family 6 -o udp6.pcap`,
		Args: cobra.NoArgs,
	}
	benchFile(cmd, &file)
	f := cmd.Flags()
	f.IntVar(&o.Flows, "flows", 1024, "number of flows")
	f.IntVar(&o.Packets, "packets", 1000000, "number of packets")
	f.IntVar(&o.Size, "size", 64, "bytes of a data packet on the wire")
	f.StringVar(&protocol, "protocol", "", "only services of tcp or udp")
	f.StringVar(&family, "family", "", "only services whose address is of family 4 or 6")
	f.Uint64Var(&o.Seed, "seed", 1, "what everything random comes from")
	f.StringVarP(&out, "output", "o", "", "capture `FILE` to write, - for standard output")
	must(cmd.MarkFlagRequired("output"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if o.Protocol, o.Family, err = benchFilter(protocol, family); err != nil {
			return &exitError{exitUsage, err}
		}
		cfg, err := config.Load(file)
		if err != nil {
			return unreadable(err)
		}
		o.Spec = plan.Spec(cfg)
		err = writeFile(cmd.OutOrStdout(), out, func(w io.Writer) error { return bench.Generate(w, o) })
		if errors.Is(err, bench.ErrOptions) || errors.Is(err, bench.ErrNoService) {
			return &exitError{exitUsage, err}
		}
		return err
	}
	return cmd
}

func benchFilter(protocol, family string) (proto uint8, fam int, err error) {
	switch protocol {
	case "":
	case "tcp":
		proto = packet.ProtoTCP
	case "udp":
		proto = packet.ProtoUDP
	default:
		return 0, 0, fmt.Errorf("--protocol %q: want tcp or udp", protocol)
	}
	switch family {
	case "":
	case "4":
		fam = 4
	case "6":
		fam = 6
	default:
		return 0, 0, fmt.Errorf("--family %q: want 4 or 6", family)
	}
	return proto, fam, nil
}

// writeFile gives write the file at path, or standard output for "-". A file
// that was not written whole does not stay.
func writeFile(stdout io.Writer, path string, write func(io.Writer) error) error {
	if path == "-" {
		return write(stdout)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err = errors.Join(write(f), f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}

func benchReplayCommand() *cobra.Command {
	var file, pcap, write string
	var asJSON bool
	var o bench.Options
	cmd := &cobra.Command{
		Use:   "replay -c FILE --pcap FILE",
		Short: "Run a capture through the forwarder and measure",
		Long: `Feed a capture (pcap or pcapng) through the same pipeline as "run", over ports of
plain memory, and print how fast it went, where the time went, and what became
of the packets.

Loop 1 feeds the capture in its order. Replies get what only l4fwd knows:
backend, local address and port, ACK and SACK numbers, checksums, learnt from
what l4fwd sent; one that comes before its flow was opened is held back until
then. (Of captures not made by "bench gen" that is possible for DNAT only. What
matches no service is fed as it is.) Later loops begin with the same pristine
packets, but leave handshakes out, since the flows are open. With more than one
loop no FIN and RST is fed, for the flows must live on.

The forwarder's time is the capture's, going on from loop to loop. --seed stands
for all secrets, so the same options give the same packets, byte for byte.

With several workers the packets are spread over them as a NIC's RSS would, and
handed over to the flow's owner; --rss-known tells the owners how they are spread,
as NICs do whose RSS key can be read, so that nothing has to be handed over.
With --write they take turns in one thread, for a reproducible file: the figures
then say nothing of speed.

Figures: ns a packet includes the copy of the pristine packet into a frame, which
a NIC's DMA does in real life; copy and pipeline are also told apart, by
sampling one burst in 16. Gbit/s counts frames with their checksum.`,
		Example: `  l4fwd bench replay -c l4fwd.yaml --pcap 64k.pcap --loops 20
  l4fwd bench replay -c l4fwd.yaml --pcap 64k.pcap --duration 5s --workers 2 --json
  l4fwd bench replay -c l4fwd.yaml --pcap 64k.pcap --write out.pcap`,
		Args: cobra.NoArgs,
	}
	benchFile(cmd, &file)
	f := cmd.Flags()
	f.StringVar(&pcap, "pcap", "", "capture `FILE` to feed")
	must(cmd.MarkFlagRequired("pcap"))
	must(cmd.MarkFlagFilename("pcap", "pcap", "pcapng"))
	f.IntVar(&o.Loops, "loops", 1, "how often to go over the capture")
	f.DurationVar(&o.Duration, "duration", 0, "go over it for so long")
	cmd.MarkFlagsMutuallyExclusive("loops", "duration")
	f.IntVar(&o.Workers, "workers", 1, "number of workers, each a thread")
	f.BoolVar(&o.RSSKnown, "rss-known", false, "let flows be owned where their packets arrive")
	f.Uint64Var(&o.Seed, "seed", 1, "what hash keys, ports and sequence numbers come from")
	f.StringVar(&write, "write", "", "pcap `FILE` for what leaves")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.Loops < 1 || o.Workers < 1 || o.Workers > 255 || o.Duration < 0 {
			return &exitError{exitUsage, errors.New("want at least 1 loop, 1 to 255 workers, and no negative duration")}
		}
		return benchReplay(cmd, file, pcap, write, asJSON, &o)
	}
	return cmd
}

func benchReplay(cmd *cobra.Command, file, pcap, write string, asJSON bool, o *bench.Options) error {
	cfg, err := config.Load(file)
	if err != nil {
		return unreadable(err)
	}
	o.Spec, o.LocalPorts = plan.Spec(cfg), plan.PortRanges(cfg)
	o.FrameSize, o.MaxFlows = cfg.FrameSize, cfg.MaxFlows
	c, err := bench.LoadCapture(pcap)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	bar := newProgressBar(cmd.ErrOrStderr())
	o.Progress = bar.show
	var rep *bench.Report
	run := func(w io.Writer) error {
		o.Output = w
		rep, err = bench.Replay(ctx, c, *o)
		return err
	}
	if write == "" {
		err = run(nil)
	} else {
		err = writeFile(cmd.OutOrStdout(), write, run)
	}
	bar.clear()
	switch {
	case err != nil:
		return err
	case asJSON:
		return rep.WriteJSON(cmd.OutOrStdout())
	}
	return rep.WriteText(cmd.OutOrStdout())
}

// progressBar draws on a terminal and nowhere else.
type progressBar struct {
	w     io.Writer // nil: not a terminal
	drawn time.Time
	cells int
}

func newProgressBar(w io.Writer) *progressBar {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &progressBar{w: w}
	}
	return &progressBar{}
}

// barCells is the bar's width.
const barCells = 40

func (b *progressBar) show(done float64) {
	if b.w == nil || time.Since(b.drawn) < 100*time.Millisecond {
		return
	}
	b.drawn = time.Now()
	b.cells = min(max(int(done*barCells), 0), barCells)
	// Two writes of strings that exist: drawing does not count as allocation.
	_, _ = io.WriteString(b.w, "\r[")
	_, _ = io.WriteString(b.w, barFull[:b.cells])
	_, _ = io.WriteString(b.w, barEmpty[:barCells-b.cells])
	_, _ = io.WriteString(b.w, "]")
}

var (
	barFull  = strings.Repeat("#", barCells)
	barEmpty = strings.Repeat(".", barCells)
)

func (b *progressBar) clear() {
	if b.w != nil {
		_, _ = io.WriteString(b.w, "\r\x1b[K")
	}
}

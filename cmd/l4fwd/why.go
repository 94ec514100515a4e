package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control"
	"github.com/l4fwd/l4fwd/control/admin"
)

// whyFlags are those of why.
type whyFlags struct {
	*asker
	packet      admin.WhyPacket
	file, pcap  string
	on          string
	first, most int
}

func whyCommand() *cobra.Command {
	w := &whyFlags{}
	cmd := &cobra.Command{
		Use:   "why {PROTOCOL SOURCE DESTINATION | --pcap FILE}",
		Short: "Say what would become of a packet, and why",
		Long: `Say what l4fwd would do with a packet: whether XDP takes it and by which rule, which
service and flow it belongs to, which backend is chosen and why, what is rewritten and
where it goes; or for what reason it is dropped, and what to do about it. Nothing is
sent, no flow opened, nothing counted.

PROTOCOL is tcp or udp, SOURCE and DESTINATION are ADDRESS:PORT. Of TCP it is a SYN
unless --flags says otherwise. With --pcap the packets come from a capture, each as if it
were the next to come; one that is to another MAC address is taken as if it were to the
interface.

The running daemon answers, with the state that it has at this moment. With -c none need
run: the answer is what one would do that has just been started here.`,
		Example: `  l4fwd why tcp 198.51.100.7:4000 192.0.2.10:80
  l4fwd why tcp 198.51.100.7:4000 192.0.2.10:80 --flags ack --payload 1460
  l4fwd why udp 198.51.100.7:53000 192.0.2.10:53 -c l4fwd.yaml
  l4fwd why --pcap lost.pcap --on eth1 -o json`,
		Args: cobra.MaximumNArgs(3),
	}
	w.asker = askFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&w.file, "config", "c", "", "answer for the configuration in `FILE`, without a daemon")
	f.StringVar(&w.pcap, "pcap", "", "packets of this `FILE`, pcap or pcapng")
	f.StringVar(&w.on, "on", "", "the packet comes by this `INTERFACE`; without, by that which leads to its source")
	f.IntVar(&w.first, "first", 1, "begin with packet `N` of the file")
	f.IntVar(&w.most, "count", 16, "at most `N` packets of the file, up to 1024")
	f.StringVar(&w.packet.Flags, "flags", "", "`FLAGS` of TCP, with commas, such as syn,ack; or none")
	f.Uint32Var(&w.packet.Seq, "seq", 0, "sequence `NUMBER` of TCP")
	f.Uint32Var(&w.packet.Ack, "ack", 0, "acknowledgement `NUMBER` of TCP")
	f.IntVar(&w.packet.Payload, "payload", 0, "`BYTES` that it carries")
	f.Uint8Var(&w.packet.TTL, "ttl", 64, "time to `LIVE`, or hop limit")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagFilename("pcap", "pcap", "pcapng"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		asks, err := w.requests(args)
		if err != nil {
			return &exitError{exitUsage, err}
		}
		return w.ask(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
			var all []admin.Why
			for _, q := range asks {
				some, err := w.answer(ctx, c, q)
				if err != nil {
					return usage(err)
				}
				all = append(all, some...)
			}
			return w.print(cmd.OutOrStdout(), all, func(out io.Writer) { whyTable(out, all) })
		})
	}
	return cmd
}

// answer asks the daemon, or works it out.
func (w *whyFlags) answer(ctx context.Context, c *admin.Client, q admin.WhyRequest) ([]admin.Why, error) {
	if w.file == "" {
		return c.Why(ctx, q)
	}
	cfg, err := config.Load(w.file)
	if err != nil {
		return nil, unreadable(err)
	}
	return control.Explain(ctx, cfg, q)
}

// mostWhy bounds --count.
const mostWhy = 1024

// requests is what is to be asked.
func (w *whyFlags) requests(args []string) ([]admin.WhyRequest, error) {
	if (len(args) == 0) != (w.pcap != "") {
		return nil, errors.New("expected PROTOCOL SOURCE DESTINATION, or --pcap FILE")
	}
	if w.pcap != "" {
		return w.captured()
	}
	if len(args) != 3 {
		return nil, fmt.Errorf("%d arguments: expected PROTOCOL SOURCE DESTINATION", len(args))
	}
	p := w.packet
	p.Protocol = strings.ToLower(args[0])
	var err error
	if p.Source, err = netip.ParseAddrPort(args[1]); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	switch {
	case p.TTL == 0:
		return nil, errors.New("--ttl 0: expected 1 to 255")
	case p.Protocol == "udp" && (p.Flags != "" || p.Seq != 0 || p.Ack != 0):
		return nil, errors.New("--flags, --seq and --ack are TCP's")
	}
	if p.Destination, err = netip.ParseAddrPort(args[2]); err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	return []admin.WhyRequest{{Packet: &p, Interface: w.on}}, nil
}

// captured is what is to be asked of a capture.
func (w *whyFlags) captured() (out []admin.WhyRequest, err error) {
	if w.first < 1 || w.most < 1 || w.most > mostWhy {
		return nil, fmt.Errorf("--first %d, --count %d: expected 1 or more, and at most %d packets", w.first, w.most, mostWhy)
	}
	c, err := bench.LoadCapture(w.pcap)
	if err != nil {
		return nil, err
	}
	frames := c.Frames[min(w.first-1, len(c.Frames)):]
	frames = frames[:min(w.most, len(frames))]
	if len(frames) == 0 {
		return nil, fmt.Errorf("%s has %d packets", w.pcap, len(c.Frames))
	}
	for len(frames) > 0 {
		n := min(len(frames), admin.MaxWhy)
		out = append(out, admin.WhyRequest{Frames: frames[:n], Interface: w.on})
		frames = frames[n:]
	}
	return out, nil
}

// whyTable is one paragraph a packet.
func whyTable(w io.Writer, all []admin.Why) {
	for i := range all {
		if i > 0 {
			row(w)
		}
		whyOne(w, &all[i])
	}
}

func whyOne(w io.Writer, a *admin.Why) {
	_, _ = fmt.Fprintf(w, "%s, in by %s\n", a.Packet, a.Interface)
	say := func(name, format string, args ...any) {
		for i, line := range wrap(fmt.Sprintf(format, args...), 76) {
			if i > 0 {
				name = ""
			}
			row(w, "  "+name, line)
		}
	}
	what := "left to the kernel"
	if a.XDP.Taken {
		what = "taken"
	}
	say("XDP", "%s: %s", what, a.XDP.Rule)
	if a.Unanswered != "" {
		say("verdict", "none: %s", a.Unanswered)
		return
	}
	if a.Service != "" {
		say("service", "%s", a.Service)
	}
	whyFlow(say, a)
	if a.Choice != nil {
		whyChoice(say, a.Choice)
	}
	for i := range a.Sent {
		whySent(say, &a.Sent[i])
	}
	whyHop(say, a)
	switch {
	case !a.XDP.Taken:
		say("verdict", "not l4fwd's")
	case a.Verdict == "":
		say("verdict", "waits")
	case a.Dropped:
		say("verdict", "dropped: %s", a.Verdict)
		for _, s := range []struct{ name, text string }{{"means", a.Means}, {"cause", a.Cause}, {"do", a.Do}} {
			if s.text != "" {
				say(s.name, "%s", s.text)
			}
		}
	default:
		say("verdict", "%s", strings.ReplaceAll(a.Verdict, "_", " "))
	}
	for _, n := range a.Notes {
		say("note", "%s", n)
	}
}

// whyFlow is the flow as it is, or that there is none.
func whyFlow(say func(string, string, ...any), a *admin.Why) {
	switch f := a.Flow; {
	case f != nil:
		dir := "the client's packet"
		if a.Reply {
			dir = "the server's packet"
		}
		say("flow", "%s, %s old, idle for %s, of backend %v; %s, worker %d", f.State, short(f.Age), short(f.Idle), f.Backend, dir, *a.Worker)
	case a.Opens != nil:
		say("flow", "none yet: this packet opens one, on worker %d", *a.Worker)
	case a.Worker != nil:
		say("flow", "none")
	}
}

func whyChoice(say func(string, string, ...any), c *admin.WhyChoice) {
	if c.Backend.IsValid() {
		say("backend", "%v, since %s", c.Backend, c.Reason)
	} else {
		say("backend", "none: %s", c.Reason)
	}
	const most = 8
	for i, b := range c.Backends {
		if i == most {
			say("", "and %d more", len(c.Backends)-most)
			return
		}
		line := fmt.Sprintf("%v: %s", b.Address, b.State)
		if b.Reason != "" {
			line += " (" + b.Reason + ")"
		}
		if b.Share > 0 {
			line += fmt.Sprintf(", %.3g %% by weight %d", 100*b.Share, b.Weight)
		}
		line += fmt.Sprintf(", %s active", number(uint64(max(b.Active, 0)), "flow"))
		if b.Max > 0 {
			line += fmt.Sprintf(" of %d", b.Max)
		}
		say("", "%s", line)
	}
}

func whySent(say func(string, string, ...any), s *admin.WhySent) {
	for _, c := range s.Changes {
		switch {
		case c.Before == "":
			say(c.Field, "added: %s", c.After)
		case c.After == "":
			say(c.Field, "removed: %s", c.Before)
		default:
			say(c.Field, "%s -> %s", c.Before, c.After)
		}
	}
	what := "out"
	if s.Own {
		what = "answer"
	}
	say(what, "by %s to %s: %s", s.Interface, s.To, s.Packet)
}

func whyHop(say func(string, string, ...any), a *admin.Why) {
	h := a.Hop
	if h == nil {
		return
	}
	line := fmt.Sprintf("to %v: %s", h.To, strings.ReplaceAll(h.State, "_", " "))
	if h.Interface != "" {
		line = fmt.Sprintf("to %v by %s, MTU %d: %s", h.To, h.Interface, h.MTU, strings.ReplaceAll(h.State, "_", " "))
	}
	if h.Gateway != nil {
		line += fmt.Sprintf(", via %v", *h.Gateway)
	}
	say("way", "%s", line)
}

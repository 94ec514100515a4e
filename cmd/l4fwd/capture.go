package main

import (
	"context"
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

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/capture/pcapng"
)

// captureGrace is how long a capture goes on after it was told to stop.
const captureGrace = 100 * time.Millisecond

func captureCommand() *cobra.Command {
	var q admin.CaptureRequest
	var file string
	cmd := &cobra.Command{
		Use:   "capture [FILTER]",
		Short: "See the packets that the running daemon forwards and drops",
		Long: `Show packets as the running daemon receives them and as it sends them, with what became
of each and why: which flow, service and server, or the reason of a drop. tcpdump does
not see them, since they pass by the kernel.

FILTER is an expression of tcpdump's (pcap-filter(7)), with addresses and numbers, not
names. A packet is captured if it is matched as it came or as it went, at the points
asked for. Without -w each frame is a line; with it they go into a pcapng file, which
Wireshark opens, with the same words as comments. -w - is standard output.

Ctrl-C ends a capture, and so does a full disk. Forwarding does not wait for it: frames
that find no room are missed, and counted.`,
		Example: `  l4fwd capture --drops
  l4fwd capture host 198.51.100.7 and tcp port 443 -w client.pcapng
  l4fwd capture --service web --point rx --count 100
  l4fwd capture --reason no_flow --duration 1m -w - | wireshark -k -i -`,
		Args: cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	daemon := targetFlags(cmd)
	f.StringVarP(&file, "write", "w", "", "pcapng `FILE` to write, - for standard output")
	f.StringVar(&q.Point, "point", "both", "`POINT` rx (as received), tx (as sent) or both")
	f.StringVar(&q.Service, "service", "", "only packets of the service of this `NAME`")
	f.StringVar(&q.Backend, "backend", "", "only packets of flows to this `ADDRESS`, with its port or without")
	f.BoolVar(&q.Drops, "drops", false, "only what is dropped")
	f.StringVar(&q.Reason, "reason", "", "only what is dropped for this `REASON` (docs/drops.md)")
	f.IntVar(&q.SnapLen, "snaplen", 0, "`BYTES` to keep of each frame; 0: all")
	f.Uint64Var(&q.Count, "count", 0, "end after `N` frames")
	f.DurationVar(&q.Duration, "duration", 0, "end after `TIME`, such as 30s")
	must(cmd.MarkFlagFilename("write", "pcapng"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.Filter = strings.Join(args, " ")
		told, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		defer stop()
		ctx, end := context.WithCancel(context.WithoutCancel(cmd.Context()))
		defer end()
		// What had been forwarded by then is on its way.
		context.AfterFunc(told, func() { time.AfterFunc(captureGrace, end) })
		c, err := daemon.client()
		if err != nil {
			return err
		}
		defer c.Close()
		in, err := c.Capture(ctx, q)
		if err != nil {
			if errors.Is(err, admin.ErrInvalid) {
				err = &exitError{exitUsage, err}
			}
			return err
		}
		defer func() { _ = in.Close() }() // it has been read, or nobody wants the rest
		return receiveCapture(ctx, cmd, in, file)
	}
	return cmd
}

// receiveCapture writes what comes into the file, or as lines, until it ends or ctx is
// done, and then says how much it was.
func receiveCapture(ctx context.Context, cmd *cobra.Command, in io.Reader, file string) (err error) {
	out, write := cmd.OutOrStdout(), captureLines(cmd.OutOrStdout())
	switch file {
	case "":
	case "-":
		if o, ok := out.(*os.File); ok && term.IsTerminal(int(o.Fd())) {
			return &exitError{exitUsage, errors.New("a capture file is not for a terminal: want -w FILE, or a pipe")}
		}
		write = captureBlocks(out)
	default:
		f, cerr := os.Create(file)
		if cerr != nil {
			return cerr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		write = captureBlocks(f)
	}
	cmd.PrintErrln("capturing; Ctrl-C ends it")
	var frames, missed uint64
	err = pcapng.Read(in, func(b *pcapng.Block) error {
		switch {
		case b.Packet != nil:
			frames++
		case b.Statistics != nil:
			missed = max(missed, b.Statistics.Dropped)
		}
		return write(b)
	})
	if ctx.Err() != nil {
		err = nil // told to stop
	}
	cmd.PrintErrf("%d frames captured, %d missed\n", frames, missed)
	return err
}

// captureBlocks writes blocks as they are: the file is whole after each.
func captureBlocks(w io.Writer) func(*pcapng.Block) error {
	return func(b *pcapng.Block) error {
		_, err := w.Write(b.Raw)
		return err
	}
}

// captureLines writes a line for each frame.
func captureLines(w io.Writer) func(*pcapng.Block) error {
	var names []string
	return func(b *pcapng.Block) error {
		if b.Interface != nil {
			names = append(names, b.Interface.Name)
		}
		p := b.Packet
		if p == nil || p.Interface >= len(names) {
			return nil
		}
		_, err := fmt.Fprintf(w, "%s %s %d bytes: %s\n", time.Unix(0, p.Nanos).Format("15:04:05.000000"), names[p.Interface], p.Len, p.Comment)
		return err
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/control/admin"
)

func debugCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Look into the running daemon's process",
		Long: `Profiles, traces and stacks of the running daemon, for those who work on l4fwd or
report what it does wrong. One at a time. Whoever may command the daemon may ask;
nobody else is told.`,
		Example: `  l4fwd debug profile --seconds 30 -f cpu.pprof && go tool pprof -http : cpu.pprof
  l4fwd debug goroutine`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		debugOf(admin.DebugProfile, 10, "Where the daemon spends its CPU time",
			`Sample where the daemon spends its CPU time, 100 times a second and thread, for
"go tool pprof". Workers that spin are busy with looking for packets when there are
none.`),
		debugOf(admin.DebugTrace, 5, "What the daemon's goroutines and threads do, moment by moment",
			`Write down what goroutines, threads and the garbage collector do, for "go tool
trace". It ends early at 64 MiB.`),
		debugOf(admin.DebugHeap, 0, "What the daemon's Go heap is used for",
			`What memory of the Go heap is used for, as of the last garbage collection, for "go
tool pprof". Flows and packets lie outside of it.`),
		debugOf(admin.DebugGoroutine, 0, "The stacks of all goroutines",
			`The stacks of all goroutines, as text, equal ones together.`),
	)
	return cmd
}

// debugOf is one of the commands. seconds is its default, 0 for what takes no time.
func debugOf(what string, seconds int, short, long string) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: what, Short: short, Args: cobra.NoArgs,
		Long: long + " Without -f it goes to standard output.",
	}
	f := cmd.Flags()
	daemon := targetFlags(cmd)
	f.StringVarP(&file, "file", "f", "-", "`FILE` to write, - for standard output")
	if seconds > 0 {
		f.IntVar(&seconds, "seconds", seconds, fmt.Sprintf("how many seconds it takes, at most %.0f", admin.DebugMax.Seconds()))
	}
	must(cmd.MarkFlagFilename("file"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o, ok := cmd.OutOrStdout().(*os.File); ok && file == "-" && what != admin.DebugGoroutine && term.IsTerminal(int(o.Fd())) {
			return &exitError{exitUsage, errors.New("this is not for a terminal: want -f FILE, or a pipe")}
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		defer stop()
		c, err := daemon.client()
		if err != nil {
			return err
		}
		defer c.Close()
		in, err := c.Debug(ctx, admin.DebugRequest{What: what, Duration: time.Duration(seconds) * time.Second})
		if err != nil {
			if errors.Is(err, admin.ErrInvalid) {
				err = &exitError{exitUsage, err}
			}
			return err
		}
		defer func() { _ = in.Close() }() // it has been read, or nobody wants the rest
		return receiveDebug(ctx, cmd.OutOrStdout(), in, file)
	}
	return cmd
}

// receiveDebug writes the answer into the file, which exists only if it is whole.
func receiveDebug(ctx context.Context, out io.Writer, in io.Reader, file string) error {
	return writeFile(out, file, func(w io.Writer) error {
		if _, err := io.Copy(w, in); err != nil && ctx.Err() == nil {
			return fmt.Errorf("answer: %w", err)
		}
		return ctx.Err()
	})
}

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
	"github.com/l4fwd/l4fwd/control/top"
)

func topCommand() *cobra.Command {
	var interval time.Duration
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch what the running daemon does",
		Long: `Show rates, workers, interfaces, drops and backends of the running daemon, again and
again. Keys: s sorts by something else, q ends. BUSY is the part of its time in which
a worker had packets; one that polls always takes its whole core.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	daemon := targetFlags(cmd)
	f.DurationVar(&interval, "interval", time.Second, "`TIME` between two looks")
	f.BoolVar(&once, "once", false, "look twice, print one screen and end")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if interval <= 0 {
			return &exitError{exitUsage, errors.New("--interval: expected more than 0")}
		}
		c, err := daemon.client()
		if err != nil {
			return err
		}
		defer c.Close()
		w := &watcher{client: c, interval: interval, out: cmd.OutOrStdout()}
		if once {
			return w.once(cmd.Context())
		}
		if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
			return &exitError{exitUsage, errors.New("top needs a terminal; --once prints one screen")}
		}
		return w.watch(cmd.Context())
	}
	return cmd
}

// watcher looks at a daemon.
type watcher struct {
	client   *admin.Client
	interval time.Duration
	out      io.Writer
	by       top.Order
}

func (w *watcher) sample(ctx context.Context) (s *top.Sample, err error) {
	s = &top.Sample{At: time.Now()}
	if s.Status, err = w.client.Status(ctx); err != nil {
		return nil, err
	}
	if s.Stats, err = w.client.Stats(ctx); err != nil {
		return nil, err
	}
	s.Backends, err = w.client.Backends(ctx, "")
	return s, err
}

// once prints one screen as wide and long as it takes.
func (w *watcher) once(ctx context.Context) error {
	before, err := w.sample(ctx)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(w.interval):
	}
	now, err := w.sample(ctx)
	if err != nil {
		return err
	}
	const most = 1 << 20
	_, err = fmt.Fprintln(w.out, strings.Join(top.Frame(before, now, most, most, w.by), "\n"))
	return err
}

// What terminals understand: another screen without a cursor, and back; its first place;
// the rest of a line, of the screen, to be empty.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	goHome      = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watch draws until q, Ctrl-C or a signal. The terminal is then as it was.
func (w *watcher) watch(ctx context.Context) (err error) {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	was, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer func() {
		_, werr := io.WriteString(w.out, leaveScreen)
		err = errors.Join(err, werr, term.Restore(int(os.Stdin.Fd()), was))
	}()
	if _, err := io.WriteString(w.out, enterScreen); err != nil {
		return err
	}
	keys := make(chan byte)
	go readKeys(ctx, os.Stdin, keys)

	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	var before, now *top.Sample
	for look := true; ; {
		if look {
			s, err := w.sample(ctx)
			if err != nil && ctx.Err() == nil {
				s = nil // it may come back: a restart is no reason to go
				if err := w.draw([]string{"l4fwd does not answer: " + err.Error(), "", "q ends"}); err != nil {
					return err
				}
			}
			before, now = now, s
		}
		if now != nil {
			if before == nil {
				before = now
			}
			width, height := size()
			if err := w.draw(top.Frame(before, now, width, height, w.by)); err != nil {
				return err
			}
		}
		look = false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			look = true
		case <-resized:
		case k := <-keys:
			switch k {
			case 'q', 'Q', 3, 4: // Ctrl-C and Ctrl-D, which are keys like others now
				return nil
			case 's', 'S':
				w.by = w.by.Next()
			}
		}
	}
}

func size() (width, height int) {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 1 || height < 1 {
		return 80, 24
	}
	return width, height
}

// draw writes a screen over the one before, at once, so that nothing flickers.
func (w *watcher) draw(lines []string) error {
	_, err := io.WriteString(w.out, goHome+strings.Join(lines, clearLine+"\r\n")+clearLine+clearBelow)
	return err
}

// readKeys hands on what is typed. It ends with the program: nobody can be made to stop
// reading a terminal.
func readKeys(ctx context.Context, in io.Reader, keys chan<- byte) {
	for buf := make([]byte, 1); ; {
		if n, err := in.Read(buf); n == 0 || err != nil {
			return
		}
		select {
		case keys <- buf[0]:
		case <-ctx.Done():
			return
		}
	}
}

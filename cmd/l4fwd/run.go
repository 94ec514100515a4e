package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control"
)

func runCommand() *cobra.Command {
	var file string
	var o control.Options
	cmd := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Forward until Ctrl-C or SIGTERM",
		Long: `Forward what the configuration says until SIGINT or SIGTERM, then put the network
interfaces back as they were; a second SIGINT does not wait for that. Flags beat the
file. SIGHUP reads the file again, as "l4fwd reload" does; where standard input is a
terminal it ends the program, since that terminal has been closed.

Worker w of W serves every queue q of every interface with q modulo W = w, so
there must be at least as many queues as workers. Without --workers and --cpus
there is one worker, on whatever CPU the kernel gives it.

SIGUSR1 logs the statistics. "ready" is logged when traffic is being taken; a
service manager is told by sd_notify(3).`,
		Example: `  l4fwd run -c /etc/l4fwd.yaml
  l4fwd run -c l4fwd.yaml --cpus 2,4-5 --poll-mode busy --busy-poll
  l4fwd run -c l4fwd.yaml --interface eth1 --interface eth2 --xdp-mode generic`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `FILE`")
	f.StringVar(&o.ReadyFile, "ready-file", "", "create `PATH` when traffic is being taken, remove it at the end")
	f.StringVar(&o.StatsFile, "stats-file", "", "renew `PATH` every second with statistics as JSON")
	overrides := overrideFlags(cmd)
	must(cmd.MarkFlagRequired("config"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_ = control.ClearReady(o.ReadyFile) // before a wrong configuration ends it; Run says what is wrong
		o.Confine = true
		o.Load = func() (*config.Config, error) { return config.Reload(file, overrides()...) }
		cfg, err := config.Load(file, overrides()...)
		if err != nil {
			return unreadable(err)
		}
		log, level, err := newLogger(cfg, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		o.Log, o.SetLogLevel = log, func(l config.LogLevel) { level.SetLevel(logLevels[l]) }
		defer func() { _ = o.Log.Sync() }() // a terminal cannot be synced
		return run(cmd.Context(), cfg, o)
	}
	return cmd
}

// run is the daemon from here to its end by a signal.
func run(ctx context.Context, cfg *config.Config, o control.Options) error {
	outliveReader()
	// These stay caught to the very end, since they come twice, when a terminal is closed, or
	// from sudo and timeout, and the second must not end what puts everything back.
	ends, hangup := []os.Signal{unix.SIGTERM}, make(chan os.Signal, 1)
	if term.IsTerminal(int(os.Stdin.Fd())) {
		// A terminal that is closed must not leave a forwarder that nobody sees.
		ends = append(ends, unix.SIGHUP)
	} else {
		signal.Notify(hangup, unix.SIGHUP)
		o.ReloadOn = hangup
	}
	ctx, _ = signal.NotifyContext(ctx, ends...)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT)
	defer stop()
	// A second Ctrl-C does not wait for anything.
	context.AfterFunc(ctx, stop)

	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGUSR1)
	defer signal.Stop(asked)
	o.DumpStats = asked

	// Go would end a crash, and what the watchdog's SIGABRT ends, with status 2: that of a
	// wrong configuration, after which a service manager does not start l4fwd again.
	debug.SetTraceback("crash")

	control.TuneRuntime(cfg)
	d, err := control.New(cfg, o)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// overrideFlags adds the flags that stand for keys of the configuration. What
// it returns gives those that were used.
func overrideFlags(cmd *cobra.Command) func() []config.Override {
	flags := cmd.Flags()
	var interfaces []string
	flags.StringArrayVar(&interfaces, "interface", nil, "data-plane interface `NAME`, repeatable; replaces the file's list")
	keys := []struct{ flag, key, usage string }{
		{"cpus", "cpus", "`CPUS` to run on, such as 2,4-5; one worker each"},
		{"workers", "workers", "`NUMBER` of workers"},
		{"xdp-mode", "xdp_mode", "`MODE` auto, native or generic"},
		{"zero-copy", "zero_copy", "`CHOICE` auto, on or off"},
		{"poll-mode", "poll_mode", "`MODE` busy (spin always) or adaptive (sleep when idle)"},
		{"log-level", "log_level", "`LEVEL` debug, info, warn or error"},
		{"log-format", "log_format", "`FORMAT` console or json"},
	}
	values := make(map[string]*string)
	for _, k := range keys {
		values[k.flag] = flags.String(k.flag, "", k.usage)
	}
	busyPoll := flags.Bool("busy-poll", false, "let the workers drive the NIC (SO_PREFER_BUSY_POLL)")
	return func() []config.Override {
		var out []config.Override
		if flags.Changed("interface") {
			out = append(out, config.Override{Flag: "--interface", Key: "interfaces", Value: strings.Join(interfaces, ",")})
		}
		for _, k := range keys {
			if flags.Changed(k.flag) {
				out = append(out, config.Override{Flag: "--" + k.flag, Key: k.key, Value: *values[k.flag]})
			}
		}
		if flags.Changed("busy-poll") {
			value := "false"
			if *busyPoll {
				value = "true"
			}
			out = append(out, config.Override{Flag: "--busy-poll", Key: "busy_poll", Value: value})
		}
		return out
	}
}

// unreadable is an error of config.Load: even a missing file is one of usage.
func unreadable(err error) error { return &exitError{exitUsage, err} }

// must is for what can only fail if the program is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Command l4fwd is a layer 4 load balancer that forwards past the kernel.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/config"
)

// Exit statuses.
const (
	exitRuntime = 1 // it was tried and failed
	exitUsage   = 2 // nothing was tried: bad flags, bad configuration
)

// exitError is an error that asks for an exit status.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() { os.Exit(execute(root(), os.Args[1:])) }

// execute runs a command line and returns the exit status. Errors are printed
// here and nowhere else.
func execute(cmd *cobra.Command, args []string) int {
	cmd.SetArgs(args)
	err := cmd.Execute()
	if err == nil {
		return 0
	}
	prefix := "l4fwd: "
	if errors.As(err, new(config.Errors)) {
		prefix = "" // each line begins with a file's name, for editors to find
	}
	if text := err.Error(); text != "" {
		for line := range strings.SplitSeq(text, "\n") {
			cmd.PrintErrln(prefix + line)
		}
	}
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	// What no command returned came from the parsing of the command line.
	return exitUsage
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "l4fwd",
		Short: "A layer 4 load balancer on AF_XDP",
		Long: `l4fwd forwards TCP and UDP from virtual addresses to real servers, past the
kernel's network stack, by AF_XDP. Everything that is not for its addresses
stays with the kernel.`,
		Example: `  l4fwd check -c l4fwd.yaml        see whether a configuration is sound
  l4fwd run -c l4fwd.yaml          forward until Ctrl-C or SIGTERM
  l4fwd check --show-defaults      every key with its default`,
		Version:       readBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetVersionTemplate("{{.Version}}\n") // as the command version
	cmd.AddCommand(
		runCommand(),
		checkCommand(),
		reloadCommand(),
		statusCommand(),
		statsCommand(),
		topCommand(),
		servicesCommand(),
		backendsCommand(),
		dropsCommand(),
		healthCommand(),
		captureCommand(),
		flowsCommand(),
		whyCommand(),
		doctorCommand(),
		debugCommand(),
		cleanupCommand(),
		benchCommand(),
		demoCommand(),
		rsCommand(),
		versionCommand(),
		manCommand(),
	)
	cmd.AddCommand(orderCommands()...)
	statuses(cmd)
	return cmd
}

// exactly is for commands that take n arguments: what is wrong is said with their names.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return fmt.Errorf("%s: expected %s", count(len(args), "argument"), cmd.UseLine())
	}
}

// statuses gives what the commands return an exit status: a bad configuration
// is bad usage, the rest failed at run time.
func statuses(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			var done *exitError
			switch {
			case err == nil || errors.As(err, &done):
				return err
			case errors.As(err, new(config.Errors)):
				return &exitError{exitUsage, err}
			}
			return &exitError{exitRuntime, err}
		}
	}
	for _, c := range cmd.Commands() {
		statuses(c)
	}
}

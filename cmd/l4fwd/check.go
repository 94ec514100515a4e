package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/config"
)

func checkCommand() *cobra.Command {
	var file string
	var defaults bool
	cmd := &cobra.Command{
		Use:   "check -c FILE",
		Short: "See whether a configuration is sound",
		Long: `Read a configuration and print everything that is wrong with it, with file,
line and field; the exit status is then 2. Nothing is touched, so it needs no
privileges, and the interfaces need not exist.`,
		Example: `  l4fwd check -c l4fwd.yaml
  l4fwd check --show-defaults > l4fwd.yaml`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration `FILE`")
	f.BoolVar(&defaults, "show-defaults", false, "print every key with its default")
	cmd.MarkFlagsOneRequired("config", "show-defaults")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if defaults {
			if err := config.ShowDefaults(cmd.OutOrStdout()); err != nil {
				return err
			}
		}
		if file == "" {
			return nil
		}
		return check(cmd, file)
	}
	return cmd
}

func check(cmd *cobra.Command, file string) error {
	cfg, err := config.Load(file)
	if err != nil {
		return unreadable(err)
	}
	for _, p := range cfg.Warnings() {
		cmd.PrintErrln("warning:", p)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), summary(file, cfg))
	return err
}

// summary says in one line what a configuration is about.
func summary(file string, c *config.Config) string {
	backends, locals := 0, 0
	for i := range c.Services {
		backends += len(c.Services[i].Backends)
	}
	for range c.Locals() {
		locals++
	}
	names := make([]string, len(c.Interfaces))
	for i, nic := range c.Interfaces {
		names[i] = nic.Name
	}
	text := fmt.Sprintf("%s is sound: %s, %s, %s, %s (%s)", file,
		count(len(c.Services), "service"), count(backends, "backend"), count(locals, "local address"),
		count(len(names), "interface"), strings.Join(names, ", "))
	if e := &c.Discovery.Etcd; e.On() {
		text += "; more services are what etcd says, which was not asked"
	}
	return text
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "s"):
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/health/direct"
	"github.com/l4fwd/l4fwd/control/nic"
)

func cleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Put back what a crashed l4fwd left changed",
		Long: `Put back the NIC settings that a killed or crashed l4fwd left changed, from
its journals in ` + nic.DefaultDir + `, in whatever network namespace they are, and take away
the rules for routing that health checks of direct return left in this one. The
kernel has undone everything else by itself. Running instances are left alone. A
new "l4fwd run" does the same first.

Other network namespaces take all of root's capabilities and a sight of all
processes, which a container has not. What is out of reach is an error and stays
in its journal.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := nic.Repair(nic.Options{})
			rules, rerr := direct.Repair()
			err = errors.Join(err, rerr)
			said := ""
			if len(names) > 0 {
				said = "put back the settings of " + strings.Join(names, ", ") + "\n"
			}
			if rules {
				said += "took away the routing rules of health checks\n"
			}
			if said == "" && err == nil {
				said = "nothing to clean up\n"
			}
			_, werr := io.WriteString(cmd.OutOrStdout(), said)
			return errors.Join(err, werr)
		},
	}
}

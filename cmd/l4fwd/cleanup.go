package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/nic"
)

func cleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Put back what a crashed l4fwd left changed",
		Long: `Put back the NIC settings that a killed or crashed l4fwd left changed, from
its journals in ` + nic.DefaultDir + `. The kernel has undone everything else by itself. Running
instances are left alone. A new "l4fwd run" does the same first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := nic.Repair(nic.Options{})
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), "put back the settings of", n)
			}
			if err == nil && len(names) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to clean up")
			}
			return err
		},
	}
}

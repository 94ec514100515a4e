package main

import (
	"errors"
	"io"
	"strings"

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
			said := "nothing to clean up\n"
			if len(names) > 0 {
				said = "put back the settings of " + strings.Join(names, ", ") + "\n"
			}
			if err != nil && len(names) == 0 {
				return err
			}
			_, werr := io.WriteString(cmd.OutOrStdout(), said)
			return errors.Join(err, werr)
		},
	}
}

package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
)

func benchDiffCommand() *cobra.Command {
	limit := 20
	cmd := &cobra.Command{
		Use:   "diff A.pcap B.pcap",
		Short: "Say in words how two captures differ",
		Long: `Compare two captures (pcap or pcapng) packet by packet and say what differs: the
flow, the packet's number within it, and each field: addresses, ports, TTL,
sequence and ACK numbers, flags, options by name, checksums and whether they are
right, and the payload from the first byte that is not the same. Packets that
only one capture has are named too; a summary counts it all.

Packets are compared within their flow, one direction at a time. A flow that the
other capture has by another port or address is compared with that one. Times do
not count.

The exit status is 0 if the captures hold the same packets in the same order,
and 1 if not.`,
		Example: `  l4fwd bench replay -c l4fwd.yaml --pcap in.pcap --write now.pcap
  l4fwd bench diff before.pcap now.pcap`,
		Args: exactly(2),
	}
	cmd.Flags().IntVar(&limit, "limit", limit, "packets to explain at most, 0 for all")
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"pcap", "pcapng"}, cobra.ShellCompDirectiveFilterFileExt
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return &exitError{exitUsage, errors.New("--limit: want 0 or more")}
		}
		a, err := bench.LoadCapture(args[0])
		if err != nil {
			return err
		}
		b, err := bench.LoadCapture(args[1])
		if err != nil {
			return err
		}
		sum, err := bench.Diff(cmd.OutOrStdout(), a, b, limit)
		if err == nil && !sum.Same() {
			return &exitError{exitRuntime, errors.New("the captures differ")}
		}
		return err
	}
	return cmd
}

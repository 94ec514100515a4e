package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/packet"
)

// benchCommand is the parent of everything that measures.
func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the forwarder",
		Long: `Measure what forwarding costs a packet. Only "rings" and "peers" need root, for
network namespaces of their own; nothing else needs privileges or touches a network
interface.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		benchGenCommand(), benchReplayCommand(), benchDiffCommand(),
		benchLimitCommand(), benchLivesCommand(), benchFloodCommand(), benchMatrixCommand(),
		benchCheckCommand(), benchRingsCommand(), benchPeersCommand(),
	)
	return cmd
}

// benchFile adds the flag for the configuration.
func benchFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration `FILE`")
	must(cmd.MarkFlagRequired("config"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
}

func benchGenCommand() *cobra.Command {
	var b benchFlags
	var out string
	var o bench.GenOptions
	cmd := &cobra.Command{
		Use:   "gen -c FILE --flows N --packets M --size B -o FILE",
		Short: "Make a capture aimed at the configuration's services",
		Long: `Write a pcap (nanoseconds, Ethernet) as the wire at l4fwd would show it: first
every flow's handshake (of UDP a datagram each way), then packets of both
directions drawn at random over all flows. Flows go to the services in turn.

--packets is the length of the capture, handshakes included; if it is too short
for these they are all there is. --size is that of a data packet on the wire with
the Ethernet checksum: 64 makes the shortest frame, 60 bytes in the capture.
Where the headers alone take more (TCP over IPv6: 78), packets are as short as
they can be.

Packets of clients are complete. A reply in Full-NAT goes to a local address and
port 0, because only a running l4fwd knows the port; "bench replay" fills it in,
with the backend, ACK and SACK numbers and checksums. It finds the flow by the
sender's MAC address: 02:46 and the flow's number in packets of clients, 02:52
and the number in replies.

The same options give the same file, byte for byte.`,
		Example: `  l4fwd bench gen -c l4fwd.yaml --flows 65536 --packets 1000000 --size 64 -o 64k.pcap
  l4fwd bench gen -c l4fwd.yaml --flows 100 --packets 5000 --size 1400 --protocol udp --family 6 -o udp6.pcap`,
		Args: cobra.NoArgs,
	}
	benchFile(cmd, &b.file)
	b.filtered(cmd)
	seeded(cmd, &o.Seed)
	f := cmd.Flags()
	f.IntVar(&o.Flows, "flows", 1024, "number of flows")
	f.IntVar(&o.Packets, "packets", 1000000, "number of packets")
	f.IntVar(&o.Size, "size", 64, "bytes of a data packet on the wire")
	f.StringVarP(&out, "output", "o", "", "capture `FILE` to write, - for standard output")
	must(cmd.MarkFlagRequired("output"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := b.load()
		if err != nil {
			return err
		}
		o.Spec, o.Protocol, o.Family = p.spec, b.proto, b.fam
		err = writeFile(cmd.OutOrStdout(), out, func(w io.Writer) error { return bench.Generate(w, o) })
		if errors.Is(err, bench.ErrOptions) || errors.Is(err, bench.ErrNoService) {
			return &exitError{exitUsage, err}
		}
		return err
	}
	return cmd
}

func benchFilter(protocol, family string) (proto uint8, fam int, err error) {
	switch protocol {
	case "":
	case "tcp":
		proto = packet.ProtoTCP
	case "udp":
		proto = packet.ProtoUDP
	default:
		return 0, 0, fmt.Errorf("--protocol %q: want tcp or udp", protocol)
	}
	switch family {
	case "":
	case "4":
		fam = 4
	case "6":
		fam = 6
	default:
		return 0, 0, fmt.Errorf("--family %q: want 4 or 6", family)
	}
	return proto, fam, nil
}

// writeFile gives write the file at path, or standard output for "-". A file
// that was not written whole does not stay; what is no file, such as /dev/full, does.
func writeFile(stdout io.Writer, path string, write func(io.Writer) error) error {
	if path == "-" {
		return write(stdout)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err = errors.Join(err, write(f), f.Close()); err != nil && info != nil && info.Mode().IsRegular() {
		_ = os.Remove(path)
	}
	return err
}

package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/internal/demo"
)

// demoCommand is `l4fwd demo`.
func demoCommand() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Build a small network in namespaces and forward real traffic through it",
		Long: `Builds a client, a load balancer and two real servers, each in a network
namespace of its own, runs l4fwd in it exactly as "l4fwd run" would, and sends
HTTP and UDP through VIPs over IPv4 and IPv6, in the mode of your choice; without
one in Full-NAT (with TOA) and in DNAT. Shows what happens, checks it, ends with
a verdict (exit status 0 or 1) and takes everything down, also after Ctrl-C.

  full-nat  servers see a local address, and learn the client's by TOA
  dnat      servers see the client, and answer through l4fwd
  snat      the two halves of DNAT: requests through one l4fwd, answers through another
  dsr-l2    servers have the VIP, and answer past l4fwd
  tunnel    the same by tunnels: VXLAN, which the servers' kernel unwraps, or another
            encapsulation, for which "l4fwd rs decap" does

Of the topologies, two-arm has l4fwd between client and servers, by two NICs, and
trunk by one with a VLAN for each side; there the servers of dsr-l2 and tunnel answer
by way of the kernel under l4fwd, which routes. One-arm has everybody on one switch.

Needs root. The host's own interfaces are left alone.`,
		Example: `  l4fwd demo
  l4fwd demo --mode dsr-l2
  l4fwd demo --mode dnat --topology trunk
  l4fwd demo --mode tunnel --encapsulation gue
  l4fwd demo --keep                  # leave it up and play with it
  l4fwd demo --duration 15s --requests 5000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return demo.Run(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Mode, "mode", "", strings.Join(demo.Modes(), ", ")+" (default full-nat, and dnat beside it)")
	f.StringVar(&o.Encapsulation, "encapsulation", "", "of mode tunnel: "+strings.Join(demo.Encapsulations(), ", ")+" (default vxlan)")
	f.StringVar(&o.Topology, "topology", "", strings.Join(demo.Topologies(), ", ")+" (default two-arm for full-nat and dnat, else one-arm)")
	f.BoolVar(&o.Keep, "keep", false, "leave everything up after the verdict, until Ctrl-C")
	f.DurationVar(&o.Duration, "duration", demo.DefaultDuration, "how long to send traffic")
	f.IntVar(&o.Requests, "requests", demo.DefaultRequests, "HTTP requests, and UDP datagrams, to each VIP")
	return c
}

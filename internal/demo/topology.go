package demo

import (
	"fmt"
	"slices"
	"strings"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Topologies, in the words of docs/operations.md.
const (
	oneArm = "one-arm" // everybody on one switch, l4fwd by one NIC
	twoArm = "two-arm" // l4fwd between client and servers, by two
	trunk  = "trunk"   // between them by one NIC, a VLAN for each side
)

// Topologies are the names that Options.Topology may have.
func Topologies() []string { return []string{oneArm, twoArm, trunk} }

// chooseTopology is that which the options ask for, or the usual one of the modes.
func (o Options) chooseTopology(modes []*mode) (string, error) {
	first := modes[0]
	switch {
	case o.Topology == "" && first.answers == byForwarder:
		return twoArm, nil
	case o.Topology == "":
		return oneArm, nil
	case !slices.Contains(Topologies(), o.Topology):
		return "", fmt.Errorf("topology %q: expected one of %s", o.Topology, strings.Join(Topologies(), ", "))
	case first.answers == byReturn && o.Topology != oneArm:
		return "", fmt.Errorf("topology %s: the two l4fwds of mode %s are shown with one arm each", o.Topology, first.name)
	}
	return o.Topology, nil
}

// over is the mode as it works in a topology: where servers are not on the client's
// link the kernel under l4fwd routes their answers.
func (m *mode) over(topology string) *mode {
	if m.answers != byServers || topology == oneArm {
		return m
	}
	r := *m
	r.answers = byKernel
	r.answer = "VIP → client  ◀─ kernel ──  by the server itself, routed by the kernel under l4fwd"
	return &r
}

// options describe the network of a topology to the testbed.
func options(topology string, modes []*mode) testbed.TopologyOptions {
	o := testbed.TopologyOptions{Servers: len(serverNames), OneArm: topology != twoArm, Trunk: topology == trunk, Return: modes[0].answers == byReturn}
	if topology != twoArm {
		o.VIPs = testbed.VIPOnLink
	}
	if modes[0].direct() {
		o.ServerVIPs = len(modes)
	}
	return o
}

// joints draw what is between client and servers: a line for each of l4fwd's, if they
// have their own, and one for each server.
func (n *network) joints() (forwarders, servers []string) {
	switch n.topology {
	case twoArm:
		return nil, []string{"client ───── l4fwd ──┬── rs1", "                     └── rs2"}
	case trunk:
		return nil, []string{fmt.Sprintf("client ──%d── l4fwd ──%d──┬── rs1", testbed.VLANClient, testbed.VLANServer),
			"                          └── rs2"}
	}
	joint := "client ──┬── "
	for _, name := range n.names {
		forwarders = append(forwarders, joint+name)
		joint = "         ├── "
	}
	return forwarders, []string{joint + "rs1", "         └── rs2"}
}

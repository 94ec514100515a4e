package demo

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// Modes, in the words of the configuration.
const (
	fullNAT = "full-nat"
	dnat    = "dnat"
	snat    = "snat" // and the other half, dnat
	dsrL2   = "dsr-l2"
	tunnel  = "tunnel"
)

// encapsulation is one of mode tunnel.
type encapsulation struct {
	name   string
	port   uint16 // of UDP; 0 if there is none
	said   string // in the configuration, beside the name
	filter string // tcpdump's
}

// vxlan is what servers unwrap by a kernel's usual module; from all the others
// `l4fwd rs decap` frees them.
const vxlan = "vxlan"

var encapsulations = []encapsulation{
	{name: vxlan, port: 4789, filter: "udp port 4789"},
	{name: "ipip", filter: "proto 4 or proto 41"},
	{name: "gre", filter: "proto 47"},
	{name: "gue", port: 6080, filter: "udp port 6080"},
	{name: "fou", port: fouPort, said: fmt.Sprintf("encapsulation_port: %d", fouPort), filter: fmt.Sprintf("udp port %d", fouPort)},
}

// fouPort has to be agreed on. Linux' examples use it.
const fouPort = 5555

// What the kernel at the servers has to know of VXLAN, both the configuration's
// defaults.
const vxlanVNI = 0

var vxlanMAC = net.HardwareAddr{0x02, 0x6c, 0x34, 0x66, 0x77, 0x64}

// carrier is who hands the client its answers.
type carrier int

const (
	byForwarder carrier = iota // l4fwd, as it does requests
	byReturn                   // another l4fwd
	byServers                  // the real servers themselves
	byKernel                   // they, by way of the kernel under l4fwd, which routes
)

// mode is a way of forwarding, and what must be seen of it.
type mode struct {
	name    string
	answers carrier
	// arrival is a request on a server's wire, in the words of network.atServer.
	arrival string
	// vips, request and answer tell people what is whose and goes where.
	vips, request, answer string
	wrap                  encapsulation // of tunnel
}

// direct: servers have the VIP, too, and no port changes.
func (m *mode) direct() bool { return m.answers >= byServers }

var modes = []*mode{
	{
		name: fullNAT, answers: byForwarder,
		arrival: "local address → server, TTL 63",
		vips:    "VIPs in Full-NAT, with TOA over TCP",
		request: "client → VIP  ── l4fwd ──▶  local address → server, TOA names the client",
		answer:  "VIP → client  ◀── l4fwd ──  server → local address",
	},
	{
		name: dnat, answers: byForwarder,
		arrival: "client → server, TTL 63",
		vips:    "VIPs in DNAT",
		request: "client → VIP  ── l4fwd ──▶  client → server",
		answer:  "VIP → client  ◀── l4fwd ──  server → client",
	},
	{
		name: snat, answers: byReturn,
		arrival: "client → server, TTL 63",
		vips:    "VIPs, at l4fwd A",
		request: "client → VIP  ── l4fwd A ──▶  client → server",
		answer:  "VIP → client  ◀── l4fwd B ──  server → client, by the default route",
	},
	{
		name: dsrL2, answers: byServers,
		arrival: "client → VIP, TTL 63",
		vips:    "VIPs, on lo of rs1 and rs2 as well",
		request: "client → VIP  ── l4fwd ──▶  client → VIP, to the server's MAC address",
		answer:  "VIP → client  ◀───────────  by the server itself",
	},
	{
		name: tunnel, answers: byServers,
		arrival: "%s: l4fwd → server, TTL 63",
		vips:    "VIPs, on lo of rs1 and rs2 as well",
		request: "client → VIP  ── l4fwd ──▶  l4fwd → server, in %s: client → VIP",
		answer:  "VIP → client  ◀───────────  by the server itself",
	},
}

// within is the mode with an encapsulation.
func (m *mode) within(e encapsulation) *mode {
	w := *m
	w.wrap, w.arrival, w.request = e, fmt.Sprintf(m.arrival, e.name), fmt.Sprintf(m.request, e.name)
	return &w
}

// Modes are the names that Options.Mode may have.
func Modes() (out []string) {
	for _, m := range modes {
		out = append(out, m.name)
	}
	return out
}

// Encapsulations are the names that Options.Encapsulation may have.
func Encapsulations() (out []string) {
	for _, e := range encapsulations {
		out = append(out, e.name)
	}
	return out
}

// choose finds the modes that the options ask for: those that are shown at once share
// a network.
func (o Options) choose() ([]*mode, error) {
	if o.Encapsulation != "" && o.Mode != tunnel {
		return nil, fmt.Errorf("encapsulation %s: only mode %s has one", o.Encapsulation, tunnel)
	}
	if o.Mode == "" {
		return modes[:2], nil
	}
	i := slices.IndexFunc(modes, func(m *mode) bool { return m.name == o.Mode })
	if i < 0 {
		return nil, fmt.Errorf("mode %q: expected one of %s", o.Mode, strings.Join(Modes(), ", "))
	}
	if o.Mode != tunnel {
		return modes[i : i+1], nil
	}
	if o.Encapsulation == "" {
		return []*mode{modes[i].within(encapsulations[0])}, nil
	}
	for _, e := range encapsulations {
		if e.name == o.Encapsulation {
			return []*mode{modes[i].within(e)}, nil
		}
	}
	return nil, fmt.Errorf("encapsulation %q: expected one of %s", o.Encapsulation, strings.Join(Encapsulations(), ", "))
}

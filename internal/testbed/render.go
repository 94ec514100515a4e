package testbed

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Service is one entry of l4fwd's configuration, in front of all real servers.
// The words are those of the file.
type Service struct {
	Name          string
	Family        Family
	VIP           int        // which of the family's VIPs
	Address       netip.Addr // instead of a VIP, if valid: an address of the host, say
	Port          uint16     // of the VIP
	BackendPort   uint16
	Protocol      string // tcp, udp
	Mode          string // full-nat, dnat, dsr-l2, tunnel, snat
	ClientAddress string // none, toa; "" = left out
	Scheduler     string // "" = wrr
	Weights       []int  // of the servers in order; missing ones are 1
	Extra         string // a line of the service's own, "mss_clamp: 1400" for example; "" = none

	MaxConnections int  // of each server; 0 = left out
	ServerIDs      bool // the servers are called 1, 2, ... in QUIC connection IDs
}

// Services are the three services of a Server (web, hash, echo) in both
// families behind the vip-th VIPs, all in one mode. TOA, if asked for, goes to
// those over TCP.
func Services(vip int, mode, clientAddress, scheduler string, weights ...int) []Service {
	var out []Service
	for _, f := range Families {
		for _, s := range []Service{
			{Name: "web", Port: VIPPortHTTP, BackendPort: PortHTTP, Protocol: "tcp"},
			{Name: "hash", Port: PortHash, BackendPort: PortHash, Protocol: "tcp"},
			{Name: "echo", Port: PortEcho, BackendPort: PortEcho, Protocol: "udp"},
		} {
			s.Name = fmt.Sprintf("%s-%s-%s-%d", s.Name, mode, f, vip)
			s.Family, s.VIP, s.Mode, s.Scheduler, s.Weights = f, vip, mode, scheduler, weights
			if s.Direct() {
				s.Port = s.BackendPort
			}
			if s.Protocol == "tcp" {
				s.ClientAddress = clientAddress
			}
			out = append(out, s)
		}
	}
	return out
}

// Direct reports whether the service's packets keep their addresses and ports, and
// its servers answer past l4fwd.
func (s Service) Direct() bool { return s.Mode == "dsr-l2" || s.Mode == "tunnel" }

// Config renders l4fwd's configuration file for the topology. extra are lines
// of the top level, "workers: 2" for example.
func (t *Topology) Config(services []Service, extra ...string) string {
	devices := t.LBDevices()
	if t.Options.Trunk {
		devices[0] += fmt.Sprintf("\n    vlans: [{id: %d, interface: %s}, {id: %d, interface: %s}]",
			VLANClient, t.LBClient.Name, VLANServer, t.LBServer.Name)
	}
	return t.render(devices, services, extra)
}

// ReturnConfig is the same for the second l4fwd. Only with TopologyOptions.Return.
func (t *Topology) ReturnConfig(services []Service, extra ...string) string {
	return t.render([]string{t.ReturnDev.Name}, services, extra)
}

func (t *Topology) render(devices []string, services []Service, extra []string) string {
	var b strings.Builder
	for _, line := range extra {
		fmt.Fprintln(&b, line)
	}
	if !slices.ContainsFunc(extra, func(s string) bool { return strings.HasPrefix(s, "admin_socket:") }) {
		fmt.Fprintln(&b, "admin_socket: off") // others run beside it
	}
	fmt.Fprintln(&b, "interfaces:")
	for _, d := range devices {
		fmt.Fprintf(&b, "  - name: %s\n", d)
	}
	if slices.ContainsFunc(services, func(s Service) bool { return s.Mode == "full-nat" }) {
		fmt.Fprintln(&b, "local_addresses:")
		for _, f := range Families {
			fmt.Fprintf(&b, "  - %s-%s\n", t.LocalAddr(f, 0), t.LocalAddr(f, locals-1))
		}
	}
	fmt.Fprintln(&b, "services:")
	for _, s := range services {
		t.renderService(&b, s)
	}
	return b.String()
}

func (t *Topology) renderService(b *strings.Builder, s Service) {
	scheduler := s.Scheduler
	if scheduler == "" {
		scheduler = "wrr"
	}
	address := s.Address
	if !address.IsValid() {
		address = t.VIP(s.Family, s.VIP)
	}
	fmt.Fprintf(b, "  - name: %s\n", s.Name)
	fmt.Fprintf(b, "    address: %q\n", netip.AddrPortFrom(address, s.Port))
	fmt.Fprintf(b, "    protocol: %s\n    mode: %s\n", s.Protocol, s.Mode)
	if s.Mode != "snat" {
		fmt.Fprintf(b, "    scheduler: %s\n", scheduler)
	}
	if s.ClientAddress != "" {
		fmt.Fprintf(b, "    client_address: %s\n", s.ClientAddress)
	}
	if s.Extra != "" {
		fmt.Fprintf(b, "    %s\n", s.Extra)
	}
	fmt.Fprintln(b, "    backends:")
	for i := range t.Servers {
		weight := 1
		if i < len(s.Weights) {
			weight = s.Weights[i]
		}
		more := ""
		if s.MaxConnections != 0 {
			more = fmt.Sprintf(", max_connections: %d", s.MaxConnections)
		}
		if s.ServerIDs {
			more += fmt.Sprintf(", server_id: %d", i+1)
		}
		fmt.Fprintf(b, "      - {address: %q, weight: %d%s}\n", netip.AddrPortFrom(t.ServerAddr(s.Family, i), s.BackendPort), weight, more)
	}
}

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Modes of a service, in the words of the configuration.
const (
	fullNAT = "full-nat"
	dnat    = "dnat"
)

// VIPs by mode: the i-th of each family.
var vipOf = map[string]int{fullNAT: 0, dnat: 1}

// The real servers, as the topology names them, and their weights.
var (
	serverNames = []string{"rs1", "rs2"}
	weights     = []int{1, 2}
)

// pingBytes is the payload of an echo request, as ping(8) has it.
const pingBytes = 56

// snifferMiB is the capture buffer of each device, ample for a demo's traffic
// unless the machine is very busy.
func snifferMiB(requests int) int { return min(8+requests/500, 64) }

// network is everything around the forwarder.
type network struct {
	top     *testbed.Topology
	client  *testbed.Sniffer
	servers []*testbed.Sniffer
}

// buildNetwork makes namespaces, real servers and sniffers.
func (d *demo) buildNetwork(context.Context) error {
	done := d.scr.timed("network", "client, l4fwd, rs1, rs2 and a switch, each a namespace, joined by veth pairs")
	top, err := testbed.NewTopology(testbed.TopologyOptions{Servers: len(serverNames)})
	if err != nil {
		return fmt.Errorf("network of namespaces: %w", err)
	}
	d.down.add(top.Close)
	n := &network{top: top}
	d.net = n
	if n.client, err = d.sniff(top.Client, top.ClientDev.Name); err != nil {
		return err
	}
	options := make([]testbed.ServerOptions, len(top.Servers))
	for i, ns := range top.Servers {
		s, err := d.sniff(ns, top.ServerDevs[i].Name)
		if err != nil {
			return err
		}
		n.servers = append(n.servers, s)
		options[i].ClientOf = n.clientOf(s)
	}
	servers, err := top.StartServers(options...)
	if err != nil {
		return err
	}
	d.down.add(func() error { return testbed.CloseServers(servers) })
	done()
	d.scr.picture(top)
	return nil
}

func (d *demo) sniff(ns *testbed.Namespace, device string) (*testbed.Sniffer, error) {
	s, err := ns.Sniff(device, testbed.SnifferOptions{BufferMiB: snifferMiB(d.o.Requests)})
	if err != nil {
		return nil, err
	}
	d.down.add(func() error {
		_, err := s.Stop()
		return err
	})
	return s, nil
}

// clientOf asks the sniffer for the TOA option of a connection. A DNAT
// connection comes from the client itself and has none to wait for.
func (n *network) clientOf(s *testbed.Sniffer) func(peer, local netip.AddrPort) (netip.AddrPort, bool) {
	return func(peer, local netip.AddrPort) (netip.AddrPort, bool) {
		if !n.top.IsLocal(peer.Addr()) {
			return netip.AddrPort{}, false
		}
		return s.Client(peer, local)
	}
}

// sniffers is all of them.
func (n *network) sniffers() []*testbed.Sniffer {
	return append([]*testbed.Sniffer{n.client}, n.servers...)
}

// hidden are the addresses that no client may ever see: those of the real
// servers and the local addresses.
func (n *network) hidden() (out []netip.Addr) {
	for _, f := range testbed.Families {
		for i := range n.top.Servers {
			out = append(out, n.top.ServerAddr(f, i))
		}
		for i := 0; n.top.IsLocal(n.top.LocalAddr(f, i)); i++ {
			out = append(out, n.top.LocalAddr(f, i))
		}
	}
	return out
}

// services are those of the configuration: HTTP and UDP echo, Full-NAT and
// DNAT, both families.
func services() (out []testbed.Service) {
	for _, mode := range []string{fullNAT, dnat} {
		for _, f := range testbed.Families {
			web := testbed.Service{
				Name: fmt.Sprintf("web-%s-%s", mode, f), Family: f, VIP: vipOf[mode],
				Port: testbed.VIPPortHTTP, BackendPort: testbed.PortHTTP, Protocol: "tcp",
				Mode: mode, Scheduler: "wrr", Weights: weights,
			}
			if mode == fullNAT {
				web.ClientAddress = "toa"
			}
			echo := testbed.Service{
				Name: fmt.Sprintf("echo-%s-%s", mode, f), Family: f, VIP: vipOf[mode],
				Port: testbed.PortEcho, BackendPort: testbed.PortEcho, Protocol: "udp",
				Mode: mode, Scheduler: "wrr", Weights: weights,
			}
			out = append(out, web, echo)
		}
	}
	return out
}

// vips are all VIPs.
func (n *network) vips() (out []netip.Addr) {
	for _, f := range testbed.Families {
		out = append(out, n.top.VIP(f, vipOf[fullNAT]), n.top.VIP(f, vipOf[dnat]))
	}
	return out
}

// gateways are the load balancer's own addresses, those of its kernel, on the
// client's side.
func (n *network) gateways() (out []netip.Addr) {
	for _, f := range testbed.Families {
		out = append(out, n.top.LBClient.Addr(f))
	}
	return out
}

// ping has the client ping addresses, all at the same time.
func (n *network) ping(addrs []netip.Addr) (answered int, err error) {
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { _, errs[i] = n.top.Client.Ping(a, pingBytes, pingPatience) })
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			answered++
		}
	}
	return answered, errors.Join(errs...)
}

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

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

// network is everything around the forwarders.
type network struct {
	top      *testbed.Topology
	topology string
	modes    []*mode
	names    []string // of the forwarders, the one with the VIPs first
	owners   map[mac]string
	roles    map[netip.Addr]string

	client               *testbed.Sniffer
	servers              []*testbed.Sniffer
	clientEar, serverEar ear
}

// buildNetwork makes namespaces, real servers and sniffers.
func (d *demo) buildNetwork(context.Context) error {
	first, names := d.modes[0], []string{"l4fwd"}
	if first.answers == byReturn {
		names = []string{"l4fwd A", "l4fwd B"}
	}
	done := d.scr.timed("network", fmt.Sprintf("client, %s, %s and a switch, each a namespace, joined by veth pairs",
		strings.Join(names, ", "), strings.Join(serverNames, ", ")))
	top, err := testbed.NewTopology(options(d.o.Topology, d.modes))
	if err != nil {
		return fmt.Errorf("network of namespaces: %w", err)
	}
	d.down.add(top.Close)
	if first.answers == byKernel {
		if err := top.Forwarding(true); err != nil {
			return fmt.Errorf("routing under l4fwd: %w", err)
		}
	}
	n := &network{top: top, topology: d.o.Topology, modes: d.modes, names: names}
	d.net = n
	n.enrol()
	if n.client, err = d.sniff(top.Client, top.ClientDev.Name, n.clientEar.watch(n.atClient)); err != nil {
		return err
	}
	options := make([]testbed.ServerOptions, len(top.Servers))
	for i, ns := range top.Servers {
		// On the server's cable, but before an XDP program there takes off tunnels.
		s, err := d.sniff(top.Switch, ns.Role(), n.serverEar.watch(n.atServer(mac(top.ServerDevs[i].MAC))))
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
	d.scr.picture(n)
	return nil
}

// enrol notes whose each address is.
func (n *network) enrol() {
	n.clientEar.seen, n.serverEar.seen = map[string]uint64{}, map[string]uint64{}
	n.owners, n.roles = map[mac]string{}, map[netip.Addr]string{}
	top := n.top
	own := func(d *testbed.Device, owner, role string) {
		n.owners[mac(d.MAC)] = owner
		for _, p := range d.Addrs {
			n.roles[p.Addr()] = role
		}
	}
	own(top.ClientDev, roleClient, roleClient)
	own(top.LBClient, n.names[0], n.names[0])
	own(top.LBServer, n.names[0], n.names[0])
	if top.ReturnDev != nil {
		own(top.ReturnDev, n.names[1], n.names[1])
	}
	for i, d := range top.ServerDevs {
		own(d, serverNames[i], roleServer)
	}
	for _, a := range n.vips() {
		n.roles[a] = roleVIP
	}
	for _, a := range n.locals() {
		n.roles[a] = roleLocal
	}
}

func (d *demo) sniff(ns *testbed.Namespace, device string, watch func([]byte, bool)) (*testbed.Sniffer, error) {
	s, err := ns.Sniff(device, testbed.SnifferOptions{BufferMiB: snifferMiB(d.o.Requests), Watch: watch})
	if err != nil {
		return nil, err
	}
	d.down.add(func() error {
		_, err := s.Stop()
		return err
	})
	return s, nil
}

// clientOf asks the sniffer for the TOA option of a connection. One that comes from
// the client itself has none to wait for.
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
	}
	return append(out, n.locals()...)
}

// locals are the sources of Full-NAT.
func (n *network) locals() (out []netip.Addr) {
	for _, f := range testbed.Families {
		for i := 0; n.top.IsLocal(n.top.LocalAddr(f, i)); i++ {
			out = append(out, n.top.LocalAddr(f, i))
		}
	}
	return out
}

// vip is a mode's VIP of a family.
func (n *network) vip(f testbed.Family, m *mode) netip.Addr {
	return n.top.VIP(f, slices.Index(n.modes, m))
}

// vips are all VIPs.
func (n *network) vips() (out []netip.Addr) {
	for _, f := range testbed.Families {
		for _, m := range n.modes {
			out = append(out, n.vip(f, m))
		}
	}
	return out
}

// arms are the forwarders' devices on the client's side.
func (n *network) arms() []*testbed.Device {
	if n.top.ReturnDev != nil {
		return []*testbed.Device{n.top.LBClient, n.top.ReturnDev}
	}
	return []*testbed.Device{n.top.LBClient}
}

// gateways are the addresses of the forwarders' kernels in the client's networks.
func (n *network) gateways() (out []netip.Addr) {
	for _, d := range n.arms() {
		for _, p := range d.Addrs {
			if testbed.ClientNet[testbed.FamilyOf(p.Addr())].Contains(p.Addr()) {
				out = append(out, p.Addr())
			}
		}
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

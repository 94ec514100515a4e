package testbed

import (
	"errors"
	"fmt"
	"net/netip"
)

// VIPPath says how the client's kernel reaches the VIPs.
type VIPPath int

// The ways to a VIP.
const (
	// VIPRouted sends packets for the VIPs to the load balancer's own address
	// as gateway; its kernel answers ARP and ND for that.
	VIPRouted VIPPath = iota
	// VIPOnLink makes the client ask for the VIPs themselves by ARP and ND,
	// which only l4fwd can answer.
	VIPOnLink
)

// TopologyOptions choose a network. The zero value is two-arm, two real
// servers, one queue, VIPs routed.
type TopologyOptions struct {
	OneArm           bool // everybody on one L2; l4fwd has one device
	Servers          int  // real servers, each a namespace; 0 = 2
	Queues           int  // of l4fwd's devices; 0 = 1
	MTU              int  // 0 = 1500
	VIPs             VIPPath
	ClientAddrs      int  // addresses of the client in each family; 0 = 1, at most 100
	StaticNeighbours bool // l4fwd's kernel and its neighbours know each other without ARP and ND
	// ServerVIPs is how many of each family's VIPs the real servers have, too, on
	// their loopback and without answering ARP for them, as direct return needs. In
	// one-arm they then reach the client on the link, but for a trunk.
	ServerVIPs int
	// Return adds a second namespace for l4fwd, by which the servers' answers go: the
	// return half of a DNAT on two machines. One-arm only.
	Return bool
	// Trunk makes the one arm a cable of two VLANs, one of the client and one of the
	// servers, as an l4fwd with two arms has them. One-arm only.
	Trunk bool
	// Impaired puts a Wire into each of l4fwd's arms. Two-arm only, and the arms
	// stay: their devices cannot be deleted and connected again.
	Impaired bool
}

// The addresses of every topology. The VIPs and LocalAddresses are nobody's:
// l4fwd answers for them.
var (
	ClientNet = map[Family]netip.Prefix{V4: netip.MustParsePrefix("198.51.100.0/24"), V6: netip.MustParsePrefix("2001:db8:100::/64")}
	ServerNet = map[Family]netip.Prefix{V4: netip.MustParsePrefix("10.0.1.0/24"), V6: netip.MustParsePrefix("2001:db8:1::/64")}
	VIPNet    = map[Family]netip.Prefix{V4: netip.MustParsePrefix("192.0.2.0/24"), V6: netip.MustParsePrefix("2001:db8::/64")}
)

// Last bytes of addresses within their networks.
const (
	hostLB     = 1
	hostReturn = 2   // the second l4fwd
	hostClient = 100 // the first; more follow
	hostLocal  = 10  // Full-NAT sources: 4 of them
	hostServer = 20  // rs1; rs2 is the next
	hostVIP    = 10  // VIP(f, 0); more follow
	locals     = 4
)

// hostOf is the n-th address of a network.
func hostOf(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// prefixesOf are the n-th addresses of both families with their prefix lengths.
func prefixesOf(nets map[Family]netip.Prefix, n int) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range Families {
		out = append(out, netip.PrefixFrom(hostOf(nets[f], n), nets[f].Bits()))
	}
	return out
}

// Topology is a client, a load balancer's namespace and real servers, wired and
// addressed. Close removes everything.
//
//	two-arm: client[c0] ── [l0]lb[l1] ── switch ── [s0]rs1, [s0]rs2
//	one-arm: client[c0], lb[l0], rs1[s0], rs2[s0] ── switch
//	return: one-arm with return[b0] on the switch, the servers' default gateway
//	trunk: one-arm, client on a switch of its own; lb's device has tags of both switches
//	impaired: two-arm with a namespace "wires" between client and lb, and lb and switch
type Topology struct {
	Options TopologyOptions

	Client, LB, Switch *Namespace
	Servers            []*Namespace

	ClientDev  *Device   // c0
	LBClient   *Device   // l0; with a trunk l0.10, which stands for a VLAN of it
	LBServer   *Device   // l1; in one-arm the same as LBClient; with a trunk l0.20
	LBTrunk    *Device   // l0 with a trunk; else nil
	ServerDevs []*Device // s0 of each real server

	// Of a network with a second l4fwd; nil in others.
	Return    *Namespace
	ReturnDev *Device // b0

	// Of an impaired network; nil in others.
	Wires                  *Namespace
	ClientWire, ServerWire *Wire
	// Facing are the wires' devices that l4fwd's are plugged into: l0's and l1's.
	Facing [2]*Device

	trunks closers
}

// NewTopology builds a network. On error nothing is left.
func NewTopology(o TopologyOptions) (*Topology, error) {
	if o.Servers == 0 {
		o.Servers = 2
	}
	o.Queues = max(o.Queues, 1)
	o.ClientAddrs = max(o.ClientAddrs, 1)
	if o.Servers < 1 || o.Servers > 50 || o.ClientAddrs > 100 {
		return nil, fmt.Errorf("topology: %d servers, %d client addresses: at most 50 and 100", o.Servers, o.ClientAddrs)
	}
	if o.Impaired && o.OneArm {
		return nil, errors.New("topology: an impaired one has two arms")
	}
	if o.Return && !o.OneArm {
		return nil, errors.New("topology: a second l4fwd is for one-arm")
	}
	if o.Trunk && (!o.OneArm || o.Return || o.StaticNeighbours) {
		return nil, errors.New("topology: a trunk is for one-arm with one l4fwd, which asks for neighbours")
	}
	t := &Topology{Options: o}
	if err := t.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("topology: %w", err), t.Close())
	}
	return t, nil
}

func (t *Topology) build() error {
	spaces := []struct {
		role string
		at   **Namespace
	}{{"client", &t.Client}, {"lb", &t.LB}, {"switch", &t.Switch}}
	for _, s := range spaces {
		ns, err := NewNamespace(s.role)
		if err != nil {
			return err
		}
		*s.at = ns
	}
	if err := t.Client.Sysctl("net.ipv4.ip_local_reserved_ports", reservedPorts); err != nil {
		return err
	}
	for i := range t.Options.Servers {
		ns, err := NewNamespace(fmt.Sprintf("rs%d", i+1))
		if err != nil {
			return err
		}
		t.Servers = append(t.Servers, ns)
	}
	if t.Options.Impaired {
		var err error
		if t.Wires, err = NewNamespace("wires"); err != nil {
			return err
		}
	}
	if err := t.Switch.Bridge("br0"); err != nil {
		return err
	}
	if t.Options.Trunk {
		if err := t.Switch.Bridge(clientBridge); err != nil {
			return err
		}
	}
	for i := range t.Servers {
		if err := t.wireServer(i); err != nil {
			return err
		}
	}
	if t.Options.OneArm {
		if err := t.wireOneArmClient(); err != nil {
			return err
		}
		if err := t.wireReturn(); err != nil {
			return err
		}
		return t.ConnectLBServer()
	}
	if err := t.ConnectLBClient(); err != nil {
		return err
	}
	return t.ConnectLBServer()
}

// link joins a device in a namespace to the switch. All but l4fwd's devices want
// one queue: a bridged packet still carries the number of the sender's transmit
// queue, 1 is taken for "received on queue 0", and all would end up there.
func (t *Topology) link(ns *Namespace, name, port string, queues int, addrs []netip.Prefix) (*Device, error) {
	return t.linkTo("br0", ns, name, port, queues, addrs)
}

// linkTo is link by one of several bridges.
func (t *Topology) linkTo(bridge string, ns *Namespace, name, port string, queues int, addrs []netip.Prefix) (*Device, error) {
	d, p, err := Veth(ns, name, t.Switch, port, VethOptions{Queues: queues, MTU: t.Options.MTU, AddrsA: addrs})
	if err != nil {
		return nil, err
	}
	return d, p.Join(bridge)
}

// reservedPorts are those that tests choose for a client's connections themselves: no other
// connection of its kernel has them by chance.
const reservedPorts = "20000-21999,30000-30099,41000"

// clientBridge is where the client is if not with the servers.
const clientBridge = "br1"

func (t *Topology) wireServer(i int) error {
	d, err := t.link(t.Servers[i], "s0", fmt.Sprintf("rs%d", i+1), 1, prefixesOf(ServerNet, hostServer+i))
	if err != nil {
		return err
	}
	t.ServerDevs = append(t.ServerDevs, d)
	// Full-NAT needs no route at all; DNAT needs the way back to lead through
	// the load balancer.
	back := hostLB
	if t.Options.Return {
		back = hostReturn
	}
	for _, f := range Families {
		if err := d.AddRoute(everything(f), hostOf(ServerNet[f], back)); err != nil {
			return err
		}
		if t.Options.OneArm && !t.Options.Trunk && t.Options.ServerVIPs > 0 {
			if err := d.AddRoute(ClientNet[f], netip.Addr{}); err != nil {
				return err
			}
		}
	}
	return t.addServerVIPs(t.Servers[i])
}

// addServerVIPs gives a real server its VIPs.
func (t *Topology) addServerVIPs(ns *Namespace) error {
	if t.Options.ServerVIPs == 0 {
		return nil
	}
	for _, s := range [][2]string{{"arp_ignore", "1"}, {"arp_announce", "2"}} {
		if err := ns.Sysctl("net.ipv4.conf.all."+s[0], s[1]); err != nil {
			return err
		}
	}
	lo := &Device{NS: ns, Name: "lo", Index: 1}
	for _, a := range t.serverVIPs() {
		if err := lo.AddAddr(netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// serverVIPs are those that the real servers have.
func (t *Topology) serverVIPs() []netip.Addr {
	var out []netip.Addr
	for _, f := range Families {
		for i := range t.Options.ServerVIPs {
			out = append(out, t.VIP(f, i))
		}
	}
	return out
}

func (t *Topology) clientPrefixes() []netip.Prefix {
	var out []netip.Prefix
	for i := range t.Options.ClientAddrs {
		out = append(out, prefixesOf(ClientNet, hostClient+i)...)
	}
	return out
}

// wireOneArmClient puts the client on the common switch. Its network differs
// from the servers': else a DNAT reply would go straight to it.
func (t *Topology) wireOneArmClient() error {
	bridge := "br0"
	if t.Options.Trunk {
		bridge = clientBridge
	}
	d, err := t.linkTo(bridge, t.Client, "c0", "client", 1, t.clientPrefixes())
	if err != nil {
		return err
	}
	t.ClientDev = d
	return t.routeClient()
}

// ConnectLBClient makes l0, its peer c0 in the client, addresses and routes.
// After LBClient.Delete it brings the arm back as it was. Two-arm only.
func (t *Topology) ConnectLBClient() error {
	if t.Options.OneArm {
		return errors.New("one-arm topology has no client arm: use ConnectLBServer")
	}
	o := VethOptions{Queues: t.Options.Queues, MTU: t.Options.MTU, AddrsA: prefixesOf(ClientNet, hostLB), AddrsB: t.clientPrefixes(),
		StaticNeighbours: t.Options.StaticNeighbours}
	var err error
	if t.Options.Impaired {
		err = t.impairClient(o)
	} else {
		t.LBClient, t.ClientDev, err = Veth(t.LB, "l0", t.Client, "c0", o)
	}
	if err != nil {
		return err
	}
	return t.routeClient()
}

// ConnectLBServer joins l4fwd's namespace to the switch: l1, or l0 with both
// networks' addresses in one-arm. After Delete it brings the device back.
func (t *Topology) ConnectLBServer() error {
	if t.Options.Trunk {
		return t.connectTrunk()
	}
	name, addrs := "l1", prefixesOf(ServerNet, hostLB)
	if t.Options.OneArm {
		name, addrs = "l0", append(addrs, prefixesOf(ClientNet, hostLB)...)
	}
	var d *Device
	var err error
	if t.Options.Impaired {
		d, err = t.impairServer(addrs)
	} else {
		d, err = t.link(t.LB, name, "lb", t.Options.Queues, addrs)
	}
	if err != nil {
		return err
	}
	t.LBServer = d
	neighbours := t.ServerDevs
	if t.Options.OneArm {
		t.LBClient = d
		neighbours = append([]*Device{t.ClientDev}, neighbours...)
	}
	if !t.Options.StaticNeighbours {
		return nil
	}
	for _, n := range neighbours {
		if err := errors.Join(d.knows(n), n.knows(d)); err != nil {
			return err
		}
	}
	return nil
}

// routeClient gives the client its way to the VIPs and, for comparison with
// plain routing, to the servers.
func (t *Topology) routeClient() error {
	for _, f := range Families {
		gateway := hostOf(ClientNet[f], hostLB)
		toVIP := gateway
		if t.Options.VIPs == VIPOnLink {
			toVIP = netip.Addr{}
		}
		if err := t.ClientDev.AddRoute(VIPNet[f], toVIP); err != nil {
			return err
		}
		if err := t.ClientDev.AddRoute(ServerNet[f], gateway); err != nil {
			return err
		}
	}
	return nil
}

// Forwarding switches the kernel's own routing in the load balancer's namespace
// on or off. It is off at first.
func (t *Topology) Forwarding(on bool) error {
	v := "0"
	if on {
		v = "1"
	}
	return errors.Join(t.LB.Sysctl("net.ipv4.ip_forward", v), t.LB.Sysctl("net.ipv6.conf.all.forwarding", v))
}

// VIP is the i-th virtual address of a family.
func (t *Topology) VIP(f Family, i int) netip.Addr { return hostOf(VIPNet[f], hostVIP+i) }

// ClientAddr is the i-th address of the client.
func (t *Topology) ClientAddr(f Family, i int) netip.Addr { return hostOf(ClientNet[f], hostClient+i) }

// ServerAddr is the address of the i-th real server.
func (t *Topology) ServerAddr(f Family, i int) netip.Addr { return hostOf(ServerNet[f], hostServer+i) }

// LocalAddr is the i-th of the four Full-NAT source addresses.
func (t *Topology) LocalAddr(f Family, i int) netip.Addr { return hostOf(ServerNet[f], hostLocal+i) }

// IsLocal reports whether a is one of the Full-NAT source addresses.
func (t *Topology) IsLocal(a netip.Addr) bool {
	for i := range locals {
		if a.Unmap() == t.LocalAddr(FamilyOf(a), i) {
			return true
		}
	}
	return false
}

// LBDevices are the names of l4fwd's devices, one in one-arm.
func (t *Topology) LBDevices() []string {
	switch {
	case t.Options.Trunk:
		return []string{t.LBTrunk.Name}
	case t.Options.OneArm:
		return []string{t.LBClient.Name}
	}
	return []string{t.LBClient.Name, t.LBServer.Name}
}

// Namespaces are all of the topology, in the order client, lb, return, switch,
// wires, servers.
func (t *Topology) Namespaces() []*Namespace {
	var out []*Namespace
	for _, ns := range append([]*Namespace{t.Client, t.LB, t.Return, t.Switch, t.Wires}, t.Servers...) {
		if ns != nil {
			out = append(out, ns)
		}
	}
	return out
}

// Close removes the namespaces with everything in them; twice is harmless.
func (t *Topology) Close() error {
	var errs []error
	for _, w := range []*Wire{t.ClientWire, t.ServerWire} {
		if w != nil {
			errs = append(errs, w.Close())
		}
	}
	t.ClientWire, t.ServerWire = nil, nil
	errs = append(errs, t.trunks.Close())
	for _, ns := range t.Namespaces() {
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}

func everything(f Family) netip.Prefix {
	if f == V4 {
		return netip.MustParsePrefix("0.0.0.0/0")
	}
	return netip.MustParsePrefix("::/0")
}

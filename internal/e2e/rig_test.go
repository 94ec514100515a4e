package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Modes, as the configuration calls them.
const (
	fullNAT = "full-nat"
	dnat    = "dnat"
	dsrL2   = "dsr-l2"
	tunnel  = "tunnel"
)

// rig is a network with real servers that run, and an ear at every place that
// matters.
type rig struct {
	*testbed.Topology
	t       *testing.T
	servers []*testbed.Server
	toa     bool // the web services tell who the client is; set before traffic

	client *testbed.Sniffer   // at the client's device, both directions
	behind []*testbed.Sniffer // at each real server's device, both directions
	// leaving sees what l4fwd's devices send, and nothing else: every frame of
	// it must be right.
	leaving []*testbed.Sniffer
}

// network builds a rig without l4fwd. At the end of the test every frame that
// left l4fwd's namespace has been judged.
func network(t *testing.T, o testbed.TopologyOptions, ears testbed.SnifferOptions) *rig {
	t.Helper()
	r := &rig{Topology: testbed.Up(t, o), t: t}
	r.client = r.sniff(r.Client, "c0", ears)
	out := ears
	out.Direction = testbed.Incoming
	// The other end of each of l4fwd's cables.
	r.leaving = append(r.leaving, r.sniff(r.Switch, "lb", out))
	if !o.OneArm {
		r.leaving = append(r.leaving, r.sniff(r.Client, "c0", out))
	}
	var options []testbed.ServerOptions
	for _, ns := range r.Topology.Servers {
		s := r.sniff(ns, "s0", ears)
		r.behind = append(r.behind, s)
		options = append(options, testbed.ServerOptions{ClientOf: func(peer, local netip.AddrPort) (netip.AddrPort, bool) {
			if !r.toa { // there is nothing to wait for
				return netip.AddrPort{}, false
			}
			return s.Client(peer, local)
		}})
	}
	servers, err := r.StartServers(options...)
	if err != nil {
		t.Fatal(err)
	}
	r.servers = servers
	t.Cleanup(func() {
		if err := testbed.CloseServers(servers); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) sniff(ns *testbed.Namespace, device string, o testbed.SnifferOptions) *testbed.Sniffer {
	r.t.Helper()
	return sniff(r.t, ns, device, o)
}

// sniff listens at a device until the end of the test, at which no frame may
// have been wrong and none unseen, unless a sample is all that was asked for.
func sniff(t *testing.T, ns *testbed.Namespace, device string, o testbed.SnifferOptions) *testbed.Sniffer {
	t.Helper()
	s, err := ns.Sniff(device, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		where := fmt.Sprintf("%s in %s", device, ns.Role())
		report, err := s.Stop()
		if err != nil {
			t.Errorf("sniffer at %s: %v", where, err)
		}
		if report.Bad > 0 {
			t.Errorf("%s: %d of %d frames are wrong, for example", where, report.Bad, report.Frames)
			for _, v := range report.Violations {
				t.Error(v)
			}
		}
		if report.Dropped > 0 && o.Every <= 1 {
			t.Errorf("%s: the sniffer missed %d frames of %d", where, report.Dropped, report.Frames)
		}
	})
	return s
}

// vip is a service's address and port.
func (r *rig) vip(f testbed.Family, i int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(r.VIP(f, i), port)
}

// webPort is that of the web services behind the first VIPs.
func (r *rig) webPort() uint16 {
	if r.Options.ServerVIPs > 0 { // which change no port
		return testbed.PortHTTP
	}
	return testbed.VIPPortHTTP
}

// gateway is the client's next hop, an address of the kernel under l4fwd.
func (r *rig) gateway(f testbed.Family) netip.Addr {
	for _, p := range r.LBClient.Addrs {
		if testbed.ClientNet[f].Contains(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// warmUp makes connections in each family through the web services until every
// server has answered but those without a weight in given, which are the services'
// as in testbed.Service: l4fwd loses the first packets to a client or a server whose
// MAC address its kernel does not know, as the kernel would.
func (r *rig) warmUp(given ...int) {
	r.t.Helper()
	for _, f := range testbed.Families {
		// Lets both kernels know each other's MAC address.
		if _, err := r.Client.Ping(r.gateway(f), 56, limit); err != nil {
			r.t.Fatal(err)
		}
		silent := make(map[string]bool)
		for i, s := range r.servers {
			if i >= len(given) || given[i] > 0 {
				silent[s.Name()] = true
			}
		}
		for end := time.Now().Add(limit); len(silent) > 0; {
			l := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: 1, Timeout: limit}
			res, err := l.Run(r.t.Context(), r.Client)
			if err != nil || res.OK != 1 {
				r.t.Fatalf("the first requests: %v %v", err, res.Errors)
			}
			for name := range res.ByServer {
				delete(silent, name)
			}
			if len(silent) > 0 && time.Now().After(end) {
				r.t.Fatalf("%s: never an answer of %v", f, silent)
			}
		}
	}
}

// checkAddresses looks at who has been seen where: a client meets nobody but
// VIPs, a Full-NAT real server nobody but local addresses, and none a VIP that it
// has not itself.
func (r *rig) checkAddresses(mode string) {
	r.t.Helper()
	for _, f := range testbed.Families {
		for i := range r.servers {
			if a := r.ServerAddr(f, i); r.client.Saw(a) {
				r.t.Errorf("the client has seen %s, a real server", a)
			}
		}
		for i := range 4 {
			if a := r.LocalAddr(f, i); r.client.Saw(a) {
				r.t.Errorf("the client has seen %s, a local address", a)
			}
		}
		met := 0 // a single connection goes to one real server
		for i, s := range r.behind {
			if s.Saw(r.ClientAddr(f, 0)) {
				met++
			}
			if a := r.VIP(f, 0); s.Saw(a) && r.Options.ServerVIPs == 0 {
				r.t.Errorf("rs%d has seen the VIP %s", i+1, a)
			}
		}
		if (met > 0) != (mode != fullNAT) {
			r.t.Errorf("%s: %d real servers have seen the client's address %s", mode, met, r.ClientAddr(f, 0))
		}
	}
}

// hearAll notes the TCP connections at the client and at every real server.
func (r *rig) hearAll() []*talks {
	r.t.Helper()
	all := []*talks{hearTalks(r.t, r.Client, "c0")}
	for _, ns := range r.Topology.Servers {
		all = append(all, hearTalks(r.t, ns, "s0"))
	}
	return all
}

// noneReset is noResets where connections end: a RST that a FIN sent again can have brought
// about, on a busy machine, is none of l4fwd's.
func noneReset(t *testing.T, all []*talks) {
	t.Helper()
	for i, l := range all {
		for e, resets := range l.unexplained() {
			t.Errorf("place %d has seen RSTs from %s to %s or back: %+v", i, e.self, e.peer, resets)
		}
	}
}

// noResets fails the test if anybody has sent a RST in sight of the sniffers.
func noResets(t *testing.T, sniffers ...*testbed.Sniffer) {
	t.Helper()
	for i, s := range sniffers {
		s.CatchUp()
		if n := s.Report().Resets; n > 0 {
			t.Errorf("sniffer %d has seen %d RSTs", i, n)
		}
	}
}

package peers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// The addresses of every network. The VIP and the local addresses are on no
// device, unless a forwarder needs them there.
var (
	clientAddr  = netip.MustParsePrefix("198.51.100.100/24")
	gatewayAddr = netip.MustParsePrefix("198.51.100.1/24") // the balancer's, to the client
	insideAddr  = netip.MustParsePrefix("10.0.1.1/24")     // the balancer's, to the server
	serverAddr  = netip.MustParsePrefix("10.0.1.20/24")
	vipAddr     = netip.MustParseAddr("192.0.2.10")
	localNet    = netip.MustParsePrefix("10.0.1.12/30") // Full-NAT sources
	firstLocal  = netip.MustParseAddr("10.0.1.12")      // the same
	lastLocal   = netip.MustParseAddr("10.0.1.15")
)

// Ports of the VIP and, with the same meaning, of the server.
const (
	portHTTP      = 80 // at the VIP
	portHTTPInner = 8080
	portIperf     = 5201
	portUDP       = 5000
)

// Files of a network's directory.
const (
	fileConfig = "balancer.conf"
	fileReady  = "ready"
	fileServer = "server.conf"
)

// network is where one forwarder works:
//
//	client[c0] ── [l0]balancer[l1] ── [s0]server
//
// Every forwarder has its own, so that none meets what another has left:
// connections in TIME_WAIT, tables of NAT, XDP programs.
type network struct {
	client, balancer, server *testbed.Namespace

	c0, l0, l1, s0 *testbed.Device

	cpus CPUs
	dir  string           // for the forwarder's and the server's files
	web  *testbed.Process // nginx, nil before it is asked for
	perf *testbed.Process // iperf3
	now  Arrangement
}

// newNetwork builds a network. On error nothing is left.
func newNetwork(dir string, cpus CPUs) (_ *network, err error) {
	n := &network{dir: dir, cpus: cpus}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network: %w", err), n.close())
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		role string
		at   **testbed.Namespace
	}{{"client", &n.client}, {"balancer", &n.balancer}, {"server", &n.server}} {
		if *s.at, err = testbed.NewNamespace(s.role); err != nil {
			return nil, err
		}
		// Nothing but what is measured.
		for _, of := range []string{"all", "default"} {
			if err := (*s.at).Sysctl("net.ipv6.conf."+of+".disable_ipv6", "1"); err != nil {
				return nil, err
			}
		}
	}
	return n, n.wire()
}

func (n *network) wire() (err error) {
	o := testbed.VethOptions{StaticNeighbours: true}
	o.AddrsA, o.AddrsB = []netip.Prefix{clientAddr}, []netip.Prefix{gatewayAddr}
	if n.c0, n.l0, err = testbed.Veth(n.client, "c0", n.balancer, "l0", o); err != nil {
		return err
	}
	o.AddrsA, o.AddrsB = []netip.Prefix{insideAddr}, []netip.Prefix{serverAddr}
	if n.l1, n.s0, err = testbed.Veth(n.balancer, "l1", n.server, "s0", o); err != nil {
		return err
	}
	for a := firstLocal; a.Compare(lastLocal) <= 0; a = a.Next() {
		if err := n.s0.AddNeighbour(a, n.l1.MAC); err != nil {
			return err
		}
	}
	if err := n.c0.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), gatewayAddr.Addr()); err != nil {
		return err
	}
	return n.s0.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), insideAddr.Addr())
}

// close kills everything that runs in the network and removes it; twice is
// harmless.
func (n *network) close() error {
	var errs []error
	for _, ns := range []*testbed.Namespace{n.client, n.balancer, n.server} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

func (n *network) file(name string) string { return filepath.Join(n.dir, name) }

// isLocal reports whether a is one of the addresses that a balancer puts in the
// client's place.
func isLocal(a netip.Addr) bool {
	return a == insideAddr.Addr() || localNet.Contains(a)
}

// pinned is a command line that stays on one CPU.
func pinned(cpu int, name string, args ...string) []string {
	return append([]string{"taskset", "-c", strconv.Itoa(cpu), name}, args...)
}

// serve starts the servers for TCP, once: nginx and iperf3, on the load's CPU.
func (n *network) serve(ctx context.Context) (err error) {
	if n.web != nil {
		return nil
	}
	text := nginxHead(n.file("server"), n.cpus.Load) + fmt.Sprintf(
		"http {\n  access_log off;\n  keepalive_requests 1000000000;\n  server {\n    listen %s backlog=8192;\n"+
			"    location / { default_type text/plain; return 200 '$remote_addr'; }\n  }\n}\n",
		netip.AddrPortFrom(serverAddr.Addr(), portHTTPInner))
	if n.web, err = n.startNginx(ctx, n.server, fileServer, text, n.cpus.Load); err != nil {
		return err
	}
	if err := waitTCP(ctx, n.server, serverAddr.Addr(), portHTTPInner); err != nil {
		return fmt.Errorf("nginx as the server: %w\n%s", err, n.web.Output())
	}
	args := pinned(n.cpus.Load, "iperf3", "-s", "--forceflush", "-B", serverAddr.Addr().String(), "-p", strconv.Itoa(portIperf))
	n.perf, err = n.server.StartProcess(ctx, testbed.ProcessOptions{Path: args[0], Args: args[1:], Ready: "Server listening"})
	return err
}

// patience is how long servers and forwarders may take to be there.
const patience = 15 * time.Second

func waitTCP(ctx context.Context, ns *testbed.Namespace, a netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return ns.WaitTCP(ctx, netip.AddrPortFrom(a, port))
}

// nginxHead is what the configuration of every nginx here begins with: one
// process for work, files of its own.
func nginxHead(dir string, cpu int) string {
	return fmt.Sprintf("daemon off;\nuser root root;\nworker_processes 1;\nworker_cpu_affinity %s;\nworker_rlimit_nofile 16384;\n"+
		"error_log %s.log;\npid %s.pid;\nevents { worker_connections 8192; }\n", nginxMask(cpu), dir, dir)
}

// startNginx runs an nginx with that configuration in a namespace.
func (n *network) startNginx(ctx context.Context, ns *testbed.Namespace, file, text string, cpu int) (*testbed.Process, error) {
	if err := os.WriteFile(n.file(file), []byte(text), 0o600); err != nil {
		return nil, err
	}
	args := pinned(cpu, "nginx", "-c", n.file(file), "-p", n.dir, "-e", n.file(file+".log"))
	return ns.StartProcess(ctx, testbed.ProcessOptions{Path: args[0], Args: args[1:]})
}

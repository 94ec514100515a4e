package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// site is the small network that the documents are about, with their names and
// addresses, and the machines that a reader would type on:
//
//	client[eth0] ── [eth1]lb[eth2] ── switch ── [eth0]rs1, [eth0]rs2
//
// lb has an eth0 besides, which is left to the kernel. The client is the router, too.
// Commands run in dir, where bin/l4fwd is the program; /run/l4fwd is the site's own,
// and a cgroup of its own is the root of all.
type site struct {
	client, lb, hub *testbed.Namespace
	servers         [2]*testbed.Namespace
	outside, inside *testbed.Device // the client's eth0, l4fwd's eth1
	web             [2]*testbed.Server
	tls             [2]*httptest.Server
	cgroup          *testbed.Cgroup
	dir, run        string
	etcd            *testbed.Etcd // nil: the page needs none
	env             []string      // of who types, beside PATH

	daemon *testbed.Process // nil: none runs
	passed atomic.Uint64    // rounds of traffic that have been sent
	quiet  func() error     // ends the traffic; nil: there is none
}

// patience bounds each thing that is waited for.
const patience = time.Minute

// serverAddrs are the servers' IPv4 addresses.
var serverAddrs = [2]netip.Addr{netip.MustParseAddr("10.0.1.20"), netip.MustParseAddr("10.0.1.21")}

// ownAddr is l4fwd's host's, where it takes commands by network.
var ownAddr = netip.MustParseAddr("192.0.2.5")

// etcdAddr is one of the etcds' of which a page tells. The others are never there.
var etcdAddr = netip.MustParseAddr("10.0.0.5")

// prefixesAt are addresses with the length that all subnets of their family have.
func prefixesAt(addrs ...string) (all []netip.Prefix) {
	for _, s := range addrs {
		a, bits := netip.MustParseAddr(s), 24
		if a.Is6() {
			bits = 64
		}
		all = append(all, netip.PrefixFrom(a, bits))
	}
	return all
}

// newSite builds the network, the servers included, and a working directory with the
// files that pages name. Only a daemon is not there yet.
func newSite(t *testing.T, binary, config string) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), run: t.TempDir()}
	t.Cleanup(func() { noError(t, s.close()) })
	for name, ns := range map[string]**testbed.Namespace{
		"client": &s.client, "lb": &s.lb, "hub": &s.hub, "rs1": &s.servers[0], "rs2": &s.servers[1],
	} {
		var err error
		if *ns, err = testbed.NewNamespace(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []func() error{
		s.wireOutside, s.wireInside, s.serve,
		func() error { return s.fill(binary, config) },
		func() error { return s.register(config) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *site) wireOutside() (err error) {
	s.outside, s.inside, err = testbed.Veth(s.client, "eth0", s.lb, "eth1", testbed.VethOptions{
		AddrsA: prefixesAt("198.51.100.100", "198.51.100.254", "198.51.100.7", "2001:db8:100::100"),
		AddrsB: prefixesAt("198.51.100.1", "2001:db8:100::1"),
	})
	if err != nil {
		return err
	}
	_, _, mgmt := testbed.Veth(s.client, "mgmt", s.lb, "eth0", testbed.VethOptions{AddrsB: []netip.Prefix{
		netip.PrefixFrom(ownAddr, 32), netip.PrefixFrom(etcdAddr, 32),
	}})
	return errors.Join(mgmt,
		s.outside.AddRoute(netip.MustParsePrefix("192.0.2.0/24"), s.inside.Addr(testbed.V4)),
		s.outside.AddRoute(netip.MustParsePrefix("2001:db8::/64"), s.inside.Addr(testbed.V6)),
		s.inside.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("198.51.100.254")))
}

func (s *site) wireInside() (err error) {
	if err := s.hub.Bridge("br0"); err != nil {
		return err
	}
	for i, end := range []struct {
		ns    *testbed.Namespace
		name  string
		addrs []netip.Prefix
	}{
		{s.lb, "eth2", prefixesAt("10.0.1.1", "2001:db8:1::1")},
		{s.servers[0], "eth0", prefixesAt("10.0.1.20", "2001:db8:1::20")},
		{s.servers[1], "eth0", prefixesAt("10.0.1.21", "10.0.1.99", "2001:db8:1::21")},
	} {
		_, port, err := testbed.Veth(end.ns, end.name, s.hub, fmt.Sprint("p", i), testbed.VethOptions{AddrsA: end.addrs})
		if err == nil {
			err = port.Join("br0")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serve starts HTTP at port 8080 and HTTPS at 443 of both servers.
func (s *site) serve() (err error) {
	for i, ns := range s.servers {
		if s.web[i], err = testbed.StartServer(ns, testbed.ServerOptions{Addrs: []netip.Addr{serverAddrs[i]}}); err != nil {
			return err
		}
		if err := s.secure(i); err != nil {
			return err
		}
	}
	return nil
}

// secure starts the i-th server's HTTPS.
func (s *site) secure(i int) error {
	l, err := s.servers[i].Listen("tcp", "0.0.0.0:443")
	if err != nil {
		return err
	}
	s.tls[i] = httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	err = s.tls[i].Listener.Close() // one outside of the site
	s.tls[i].Listener = l
	s.tls[i].Config.ErrorLog = nil
	s.tls[i].StartTLS()
	return err
}

// fill puts the files that pages name where commands run.
func (s *site) fill(binary, config string) error {
	group, err := testbed.NewCgroup("docs")
	if err != nil {
		return err
	}
	s.cgroup = group
	etc := filepath.Join(s.dir, "etc/l4fwd")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	cert, _, err := testbed.Certificate(etc, ownAddr)
	if err != nil {
		return err
	}
	syn, err := s.frame(layers.TCP{SrcPort: 4000, DstPort: 80, Seq: 1, SYN: true, Window: 1024})
	if err != nil {
		return err
	}
	var pcap bytes.Buffer
	w := pcapgo.NewWriter(&pcap)
	if err := errors.Join(w.WriteFileHeader(1<<16, layers.LinkTypeEthernet),
		w.WritePacket(gopacket.CaptureInfo{CaptureLength: len(syn), Length: len(syn)}, syn)); err != nil {
		return err
	}
	config = strings.ReplaceAll(config, "/etc/l4fwd", etc)
	small := "max_flows: 4096\nframes_per_queue: 1024\nring_size: 256\n" // soon made
	matrix := filepath.Join(s.dir, "bench/testdata/matrix.yaml")
	return errors.Join(
		os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755),
		os.Symlink(cert, filepath.Join(s.dir, "ca.pem")), os.Symlink(filepath.Join(etc, "admin.token"), filepath.Join(s.dir, "admin.token")),
		os.MkdirAll(filepath.Dir(matrix), 0o755),
		os.Symlink(binary, filepath.Join(s.dir, "bin/l4fwd")),
		os.WriteFile(filepath.Join(s.dir, "l4fwd.yaml"), []byte(small+config), 0o644),
		bring("../../bench/testdata/matrix.yaml", matrix, "max_flows: 65536\n"),
		os.WriteFile(filepath.Join(s.dir, "packets.pcap"), pcap.Bytes(), 0o644),
		bring("testdata/docs/bad.yaml", filepath.Join(s.dir, "bad.yaml"), ""), // of which a page shows the errors
		os.CopyFS(filepath.Join(s.dir, "deploy/examples"), os.DirFS("../../deploy/examples")),
	)
}

// register starts an etcd if the configuration asks for one. It speaks TLS, to who has
// the files that are named there.
func (s *site) register(config string) error {
	if !strings.Contains(config, "\ndiscovery:") {
		return nil
	}
	etc := filepath.Join(s.dir, "etc/l4fwd")
	made, key, err := testbed.Certificate(s.run, etcdAddr)
	if err != nil {
		return err
	}
	files := testbed.EtcdFiles{CA: filepath.Join(etc, "etcd-ca.pem"), Cert: filepath.Join(etc, "etcd.pem"), Key: filepath.Join(etc, "etcd-key.pem")}
	if err := errors.Join(os.Link(made, files.CA), os.Rename(made, files.Cert), os.Rename(key, files.Key)); err != nil {
		return err
	}
	s.etcd, err = testbed.StartEtcd(context.Background(), s.lb, s.dir, netip.AddrPortFrom(etcdAddr, 2379), &files) // until the network is closed
	s.env = []string{"ETCDCTL_ENDPOINTS=" + s.etcd.Endpoint(), "ETCDCTL_CACERT=" + files.CA, "ETCDCTL_CERT=" + files.Cert, "ETCDCTL_KEY=" + files.Key}
	return err
}

// find waits until what was written to etcd is in force.
func (s *site) find() error {
	var out string
	for begin := time.Now(); time.Since(begin) < patience; {
		if out, _ = s.does(s.lb, "l4fwd backends web"); strings.Count(out, " up ") == len(serverAddrs) {
			return nil
		}
	}
	return fmt.Errorf("never found:\n%s", out)
}

// close ends and removes everything.
func (s *site) close() (err error) {
	err = s.hush()
	for i := range s.servers {
		if s.tls[i] != nil {
			s.tls[i].Close()
		}
		if s.web[i] != nil {
			err = errors.Join(err, s.web[i].Close())
		}
	}
	for _, ns := range []*testbed.Namespace{s.client, s.lb, s.hub, s.servers[0], s.servers[1]} {
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
	}
	if s.cgroup != nil {
		err = errors.Join(err, s.cgroup.Close())
	}
	return err
}

// shell runs a line as typed on a machine of the site. Ctrl-C ends what the line runs
// and not the shell, as with one at a terminal.
func (s *site) shell(ctx context.Context, ns *testbed.Namespace, line, ready string) (*testbed.Process, error) {
	return ns.StartProcess(ctx, testbed.ProcessOptions{
		Path: "/bin/sh", Args: []string{"-c", "trap : INT\n" + line}, Ready: ready, ReadyTimeout: patience,
		Env: append([]string{"PATH=" + filepath.Join(s.dir, "bin") + ":" + os.Getenv("PATH")}, s.env...),
		Prepare: func(c *testbed.Cmd) {
			c.Dir, c.Binds = s.dir, map[string]string{"/run/l4fwd": s.run, "/sys/fs/cgroup": s.cgroup.Path}
		},
	})
}

// does runs a line to its end and returns what it printed. The error is of a status
// other than 0.
func (s *site) does(ns *testbed.Namespace, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := s.shell(ctx, ns, line, "")
	if err != nil {
		return "", err
	}
	err = p.Wait()
	return p.Output(), err
}

// interrupt is Ctrl-C; it waits for the end, which should have status 0.
func interrupt(p *testbed.Process) error {
	if err := p.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.Done():
		return p.Wait()
	case <-time.After(patience):
		p.Kill()
		return errors.New("still there after Ctrl-C")
	}
}

// start has the daemon of the page run, and traffic through it.
func (s *site) start() error {
	if s.daemon != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Which l4fwd switches off, so that there is something to put back.
	out, err := s.does(s.lb, "ethtool -K eth1 rxvlan on && ethtool -K eth2 rxvlan on")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if s.daemon, err = s.shell(context.Background(), s.lb, "exec l4fwd run -c l4fwd.yaml", "ready"); err != nil {
		return err
	}
	return s.flow(ctx)
}

// reload has the daemon read its files again.
func (s *site) reload() error {
	if err := s.start(); err != nil {
		return err
	}
	out, err := s.does(s.lb, "l4fwd reload")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// stop ends the daemon by a signal, if one runs.
func (s *site) stop(how func(*testbed.Process) error) error {
	err := s.hush()
	if s.daemon == nil {
		return err
	}
	p := s.daemon
	s.daemon = nil
	return errors.Join(err, how(p))
}

// hush ends the traffic, if there is any.
func (s *site) hush() error {
	if s.quiet == nil {
		return nil
	}
	end := s.quiet
	s.quiet = nil
	return end()
}

// crash is kill -9.
func (s *site) crash() error {
	if err := s.start(); err != nil {
		return err
	}
	return s.stop(func(p *testbed.Process) error { p.Kill(); return nil })
}

// flow sends traffic to the VIP until quiet is called: requests, a SYN to a port that
// no service has, and a reset of no connection.
func (s *site) flow(ctx context.Context) error {
	if b, err := os.ReadFile(filepath.Join(s.dir, "l4fwd.yaml")); err != nil || !strings.Contains(string(b), "192.0.2.10:80\n") {
		return err
	}
	syn, err := s.frame(layers.TCP{SrcPort: 41000, DstPort: 443, Seq: 1, SYN: true, Window: 1024})
	if err != nil {
		return err
	}
	rst, err := s.frame(layers.TCP{SrcPort: 41001, DstPort: 80, Seq: 1, RST: true})
	if err != nil {
		return err
	}
	end, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		var failed error
		for end.Err() == nil && failed == nil {
			// Those that are cut off by a command of the page are as they should be.
			_, _ = testbed.HTTPLoad{To: netip.MustParseAddrPort("192.0.2.10:80"), Requests: 4, Timeout: time.Second}.Run(end, s.client)
			failed = s.outside.Inject(syn, rst)
			s.passed.Add(1)
			select {
			case <-end.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
		done <- failed
	}()
	s.quiet = func() error {
		cancel()
		return <-done
	}
	return s.pass(ctx)
}

// pass waits until some traffic has been sent from now on.
func (s *site) pass(ctx context.Context) error {
	for want := s.passed.Load() + 3; s.passed.Load() < want; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("traffic: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// frame is a segment from another client to the VIP.
func (s *site) frame(tcp layers.TCP) ([]byte, error) {
	eth := layers.Ethernet{SrcMAC: s.outside.MAC, DstMAC: s.inside.MAC, EthernetType: layers.EthernetTypeIPv4}
	ip := layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IPv4(198, 51, 100, 7), DstIP: net.IPv4(192, 0, 2, 10)}
	if err := tcp.SetNetworkLayerForChecksum(&ip); err != nil {
		return nil, err
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &eth, &ip, &tcp)
	return b.Bytes(), err
}

// flap takes the first server's HTTPS away until its checks have seen that, and gives
// it back.
func (s *site) flap() error {
	until := func(times int, words string) error {
		var out string
		for begin := time.Now(); time.Since(begin) < patience; {
			if out, _ = s.does(s.lb, "l4fwd health --history web"); strings.Count(shapeOf(out), shapeOf(words)) == times {
				return nil
			}
		}
		return fmt.Errorf("health checks never found %d times %q:\n%s", times, words, out)
	}
	if err := s.start(); err != nil {
		return err
	}
	if err := until(3, "\nup 1 1 HTTP status 200"); err != nil { // each backend's first
		return err
	}
	s.tls[0].Close()
	if err := until(1, "\ndown 1 1 connection refused"); err != nil {
		return err
	}
	return errors.Join(s.secure(0), until(1, "\ndown 1 1 connection refused\nup 1 1 HTTP status 200"))
}

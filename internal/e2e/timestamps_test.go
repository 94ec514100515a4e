package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// portClocks is the service's and the server's.
const portClocks = 9400

// clocked is a policy for timestamps, tried by two clients in turn. They are two
// addresses of one kernel, which gives each address a timestamp clock with a
// random offset of its own (net.ipv4.tcp_timestamps=1): of two such clocks one is
// behind the other, so one of the two follows the other with a clock that has gone
// back, as seen by the server behind a local port that both use.
type clocked struct {
	policy string
	client testbed.Family
	server testbed.Family
	proxy  string // "" is TOA
}

func (c clocked) String() string {
	name := c.policy + "/" + c.client.String()
	if c.client != c.server {
		name = c.policy + "/nat64"
	}
	if c.proxy != "" {
		name += "/" + c.proxy
	}
	return name
}

// clockPorts is how many local ports there are: odd, so that each port's next
// connection is the other client's.
const clockPorts = 17

// TestTimestamps: connections of clients with unrelated clocks, by the same few
// local ports, to a server that remembers what it saw there. Kept as they are,
// timestamps make it refuse some; erased or translated, all work at once.
func TestTimestamps(t *testing.T) {
	rows := []clocked{
		{"keep", testbed.V4, testbed.V4, ""},
		{"strip", testbed.V4, testbed.V4, ""},
		{"translate", testbed.V4, testbed.V4, ""},
		{"translate", testbed.V6, testbed.V4, ""},
		{"translate", testbed.V4, testbed.V4, "proxy-v1"},
	}
	if !testing.Short() {
		rows = append(rows, clocked{"keep", testbed.V6, testbed.V6, ""}, clocked{"strip", testbed.V6, testbed.V6, ""},
			clocked{"translate", testbed.V6, testbed.V6, ""}, clocked{"translate", testbed.V6, testbed.V4, "proxy-v2"})
	}
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 1, ClientAddrs: 2})
	for _, ns := range []*testbed.Namespace{top.Client, top.Servers[0]} {
		if err := ns.Sysctl("net.ipv4.tcp_timestamps", "1"); err != nil {
			t.Fatal(err)
		}
	}
	// Linux's SYN_SENT answers the refusal with a RST and tries again at once. That
	// gets rid of TIME_WAIT, unless the server heeds RFC 1337.
	if err := top.Servers[0].Sysctl("net.ipv4.tcp_rfc1337", "1"); err != nil {
		t.Fatal(err)
	}
	base := 30000 // an l4fwd started anew knows nothing of what the server remembers
	for _, row := range rows {
		t.Run(row.String(), func(t *testing.T) { row.run(t, top, base) })
		base += clockPorts
	}
}

func (c clocked) run(t *testing.T, top *testbed.Topology, base int) {
	srv := c.serve(t, top)
	met := hearWelcomes(t, top.Servers[0], portClocks)
	d := c.start(t, top, base)
	r := &rig{Topology: top}
	for _, f := range testbed.Families { // and l4fwd's kernel knows their MAC addresses
		for ns, to := range map[*testbed.Namespace]netip.Addr{top.Client: r.gateway(f), top.Servers[0]: top.LBServer.Addr(f)} {
			if _, err := ns.Ping(to, 56, limit); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := d.stats()
	client, server := countersOf(t, top.Client), countersOf(t, top.Servers[0])
	rounds := 3
	if !testing.Short() {
		rounds = 20
	}
	// rejected is how many segments the server has taken for old.
	rejected := func() int64 { return server.moved(t, "TcpExt.PAWSTimewait") + server.moved(t, "TcpExt.PAWSEstab") }
	hurt, n := 0, 0
	for n = range rounds * clockPorts {
		next := time.Now().Add(keeps(c.policy == "translate") / (clockPorts - 1))
		was := rejected()
		if err := c.connection(top, n%2); err != nil {
			if c.policy != "keep" {
				t.Errorf("connection %d: %v", n, err)
				hurt++
			} else if rejected() > was { // on a busy machine one can be late without that
				hurt++
			}
			t.Logf("connection %d: %v", n, err)
		}
		if hurt == 2 { // each takes its time
			break
		}
		time.Sleep(time.Until(next))
	}
	stamped, plain := srv.counts()
	connections, refused := met.all()
	t.Logf("%d connections, %d of them with timestamps at the server, %d without, %d refused", n+1, stamped, plain, hurt)
	if c.policy == "keep" {
		if hurt == 0 || len(refused) == 0 {
			t.Errorf("%d connections suffered, %d segments were taken for old, the SYNs %v: the server is too easily content to prove anything",
				hurt, rejected(), refused)
		}
		return
	}
	if connections <= n || len(refused) > 0 {
		t.Errorf("the server has seen %d connections of %d, and let some wait: %v", connections, n+1, refused)
	}
	drops, both := d.stats().drops(before), []*kernelCounters{client, server}
	again := sentAgain(t, both, drops)
	for _, k := range both {
		k.unmoved(t, allowedAgain(again))
	}
	if len(drops) > 0 {
		t.Errorf("drops %v", drops)
	}
	if (stamped > 0) != (c.policy == "translate") || (plain > 0) != (c.policy == "strip") {
		t.Errorf("%s: %d connections with timestamps, %d without", c.policy, stamped, plain)
	}
	if peers := srv.peers(); peers > clockPorts {
		t.Errorf("%d peers met: no reuse of %d ports", peers, clockPorts)
	}
}

// start runs l4fwd with a single local address and few ports.
func (c clocked) start(t *testing.T, top *testbed.Topology, base int) *daemon {
	t.Helper()
	s := testbed.Service{Name: "clocks", Family: c.server, Address: top.VIP(c.client, 0), Port: portClocks, BackendPort: portClocks,
		Protocol: "tcp", Mode: fullNAT, ClientAddress: "toa", Extra: "timestamps: " + c.policy}
	if c.proxy != "" {
		s.ClientAddress = c.proxy
	}
	config := top.Config([]testbed.Service{s}, forgetting(c.policy == "translate"))
	first, last := top.LocalAddr(c.server, 0), top.LocalAddr(c.server, 3)
	was := fmt.Sprintf("  - %s-%s\n", first, last)
	is := fmt.Sprintf("  - {address: %q, ports: %d-%d}\n", first, base, base+clockPorts-1)
	if !strings.Contains(config, was) {
		t.Fatalf("no %q in\n%s", was, config)
	}
	return program{args: []string{"--workers", "1"}}.start(t, top.LB, strings.Replace(config, was, is, 1))
}

// patience is less than the second after which a SYN is sent again, by enough for
// a busy machine.
const patience = 900 * time.Millisecond

// connection makes one from the i-th client and expects all to be said in time.
func (c clocked) connection(top *testbed.Topology, i int) (err error) {
	d := top.Client.Dialer(patience)
	if c.policy != "keep" {
		d.Timeout = limit // a SYN that the server did not take at once is found at its device
	}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(top.ClientAddr(c.client, i), 0))
	conn, err := d.Dial("tcp", netip.AddrPortFrom(top.VIP(c.client, 0), portClocks).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write(pattern[:kb100]); err != nil {
		return err
	}
	got, err := io.ReadAll(conn) // the server closes first, and is in TIME_WAIT
	if err == nil && !bytes.Equal(got, pattern[:kb100]) {
		err = fmt.Errorf("%d bytes came, not the server's %d", len(got), kb100)
	}
	return err
}

// clockServer answers connections and asks its kernel which have timestamps.
type clockServer struct {
	reuseServer
	stamped, plain int
}

func (s *clockServer) counts() (stamped, plain int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stamped, s.plain
}

func (c clocked) serve(t *testing.T, top *testbed.Topology) *clockServer {
	t.Helper()
	l, err := top.Servers[0].Listen("tcp", netip.AddrPortFrom(top.ServerAddr(c.server, 0), portClocks).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &clockServer{reuseServer: reuseServer{met: make(map[netip.AddrPort]bool)}}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = conn.Close() }()
				if err := s.answer(conn.(*net.TCPConn), c.proxy); err != nil && c.policy != "keep" {
					t.Errorf("server: %s: %v", conn.RemoteAddr(), err)
				}
			})
		}
	})
	return s
}

// answer serves one connection to its end. proxy says what comes first.
func (s *clockServer) answer(conn *net.TCPConn, proxy string) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	first, in := make([]byte, 1), make([]byte, kb100)
	switch proxy { // what it says is tried elsewhere
	case "proxy-v1":
		for first[0] != '\n' {
			if _, err := io.ReadFull(conn, first); err != nil {
				return err
			}
		}
	case "proxy-v2":
		if _, err := io.ReadFull(conn, in[:16]); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, in[:int(in[14])<<8|int(in[15])]); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(conn, in); err != nil {
		return err
	}
	if !bytes.Equal(in, pattern[:kb100]) {
		return errors.New("the client's bytes have changed on their way")
	}
	if err := s.note(conn); err != nil {
		return err
	}
	if _, err := conn.Write(pattern[:kb100]); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, conn)
	return err
}

// note asks the kernel what was negotiated (TCP_INFO).
func (s *clockServer) note(conn *net.TCPConn) error {
	info, err := tcpInfo(conn)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.met[endsOf(conn).peer] = true
	const timestamps = 1 // TCPI_OPT_TIMESTAMPS of linux/tcp.h
	if info.Options&timestamps != 0 {
		s.stamped++
	} else {
		s.plain++
	}
	return nil
}

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// session is what ssh is to an administrator: a TCP connection to the kernel
// under l4fwd, over the NIC that l4fwd forwards on, in use all the time. Another
// goes the other way, as a health check or an update of the host does.
type session struct {
	t     *testing.T
	name  string
	from  *testbed.Namespace
	to    netip.AddrPort
	conns *testbed.Conns
	quit  chan struct{}
	done  chan struct{}

	mu        sync.Mutex
	exchanges int
	err       error
}

// logIn opens a session to an address of l4fwd's own host, where a kernel
// socket listens.
func (r *rig) logIn(to netip.Addr) *session {
	r.t.Helper()
	srv, err := testbed.StartServer(r.LB, testbed.ServerOptions{Addrs: []netip.Addr{to}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return r.openSession("the ssh-like session", r.Client, to)
}

// openSession opens a session and keeps it busy until the end of the test.
func (r *rig) openSession(name string, from *testbed.Namespace, to netip.Addr) *session {
	r.t.Helper()
	s := &session{t: r.t, name: name, from: from, to: netip.AddrPortFrom(to, testbed.PortHash),
		quit: make(chan struct{}), done: make(chan struct{})}
	var err error
	if s.conns, err = from.OpenConns(r.t.Context(), s.to, 1); err != nil {
		r.t.Fatal(err)
	}
	go s.work()
	r.t.Cleanup(s.logOut)
	return s
}

func (s *session) work() {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case <-time.After(5 * time.Millisecond):
		}
		err := s.conns.Exchange(100, 2000, limit)
		s.mu.Lock()
		if s.exchanges++; err != nil {
			s.err = err
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// alive waits for two more exchanges, of which the second began after the call,
// and for a fresh connection.
func (s *session) alive(when string) {
	s.t.Helper()
	s.mu.Lock()
	before := s.exchanges
	s.mu.Unlock()
	await(s.t, s.name+" "+when, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			s.t.Fatalf("%s broke %s: %v", s.name, when, s.err)
		}
		if s.exchanges < before+2 {
			return fmt.Errorf("%d exchanges, %d before", s.exchanges, before)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	if _, err := (testbed.Transfer{To: s.to, Up: 10, Down: 10}).Run(ctx, s.from); err != nil {
		s.t.Errorf("a new connection like %s, %s: %v", s.name, when, err)
	}
}

func (s *session) logOut() {
	close(s.quit)
	<-s.done
	_ = s.conns.Close()
}

// TestSessionToKernel: whoever administers the machine over the very NIC that
// l4fwd forwards on notices nothing: not of its start, its work, its end, its
// death; also where the VIP is the host's only address, and where even the
// Full-NAT sources are ports of a host's address. Nor do the host's own
// connections to the real servers.
func TestSessionToKernel(t *testing.T) {
	for _, f := range testbed.Families {
		for _, c := range []beside{
			{name: "dnat", mode: dnat},
			{name: "vip is the host's address", mode: fullNAT, ownVIP: true},
			{name: "vip and source are the host's addresses", mode: fullNAT, ownVIP: true, ownLocal: true, oneArm: true},
		} {
			t.Run(f.String()+"/"+c.name, func(t *testing.T) { sessionToKernel(t, f, c) })
		}
	}
}

// beside says what l4fwd shares with its host.
type beside struct {
	name             string
	mode             string
	ownVIP, ownLocal bool
	oneArm           bool
}

// config is a web service on the address that is returned.
func (c beside) config(t *testing.T, r *rig, f testbed.Family) (text string, vip netip.Addr) {
	t.Helper()
	s := testbed.Service{Name: "web", Family: f, Port: 80, BackendPort: testbed.PortHTTP, Protocol: "tcp", Mode: c.mode, Scheduler: "rr"}
	if vip = r.VIP(f, 0); c.ownVIP {
		vip = r.gateway(f)
		s.Address = vip
	}
	text = r.Config([]testbed.Service{s})
	if !c.ownLocal {
		return text, vip
	}
	// The kernel keeps its hands off the ports it does not give out. They are so
	// few that each l4fwd uses ports of the one before, which the servers have in
	// TIME_WAIT: sequence numbers must go on.
	if err := r.LB.Sysctl("net.ipv4.ip_local_port_range", "32768 60999"); err != nil {
		t.Fatal(err)
	}
	from := strings.Index(text, "local_addresses:")
	return fmt.Sprintf("%slocal_addresses:\n  - {address: %q, ports: 20000-20199}\n%s", text[:from], r.LBServer.Addr(f), text[strings.Index(text, "services:"):]), vip
}

func sessionToKernel(t *testing.T, f testbed.Family, c beside) {
	r := network(t, testbed.TopologyOptions{OneArm: c.oneArm}, testbed.SnifferOptions{})
	heard := r.hearAll()
	config, vip := c.config(t, r, f)
	all := sessions{r.logIn(r.gateway(f)), r.openSession("the host's own connection", r.LB, r.ServerAddr(f, 0))}
	all.alive("before l4fwd")
	web := netip.AddrPortFrom(vip, 80)
	d := program{}.start(t, r.LB, config)
	all.alive("after the start")
	all.underLoad(r, d, web)
	d.stop()
	all.alive("after the stop")
	d = program{}.start(t, r.LB, config)
	all.underLoad(r, d, web)
	d.Kill()
	all.alive("after kill -9")
	d = program{}.start(t, r.LB, config)
	all.underLoad(r, d, web)
	d.stop()
	all.alive("at the end")
	noneReset(t, heard)
}

// sessions are those that must not notice anything.
type sessions []*session

func (all sessions) alive(when string) {
	for _, s := range all {
		s.t.Helper()
		s.alive(when)
	}
}

// underLoad has l4fwd forward as much as it can while the sessions go on.
func (all sessions) underLoad(r *rig, d *daemon, web netip.AddrPort) {
	r.t.Helper()
	l := testbed.HTTPLoad{To: web, Requests: 300, Timeout: limit}
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := l.Run(r.t.Context(), r.Client)
		if err != nil || res.OK != l.Requests {
			r.t.Errorf("%d of %d requests answered: %v %v", res.OK, l.Requests, err, res.Errors)
		}
	}()
	all.alive("during load")
	<-done
	// FINs may still be sent again, and the last acknowledgements be under way. Once
	// l4fwd is gone the kernel answers those that come to addresses of its own by a
	// RST, as it must.
	for ns, port := range r.webSockets(web.Port()) {
		await(r.t, "connections to end", func() error {
			n, err := unfinished(ns, port)
			if err == nil && n > 0 {
				err = fmt.Errorf("%s has %d", ns.Role(), n)
			}
			return err
		})
	}
	var seen uint64
	var since time.Time
	d.until("packets to cease", func(s stats) bool {
		if n := s.forwarding(); n != seen {
			seen, since = n, time.Now()
		}
		return time.Since(since) > ceased
	})
	if seen == 0 {
		r.t.Error("l4fwd has forwarded nothing")
	}
}

// webSockets are the namespaces of clients and servers with the port by which each knows
// the web service's connections.
func (r *rig) webSockets(vip uint16) map[*testbed.Namespace]uint16 {
	out := map[*testbed.Namespace]uint16{r.Client: vip}
	for _, ns := range r.Topology.Servers {
		out[ns] = testbed.PortHTTP
	}
	return out
}

// unfinished is how many TCP connections from or to a port a namespace has of which its
// kernel may send a segment again: all but those in TIME_WAIT (proc_pid_net(5)).
func unfinished(ns *testbed.Namespace, port uint16) (n int, err error) {
	const timeWait, listen = "06", "0A" // of the kernel's net/tcp_states.h
	suffix := fmt.Sprintf(":%04X", port)
	err = ns.Do(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line) // number, local, remote, state, ...
				if len(f) > 3 && (strings.HasSuffix(f[1], suffix) || strings.HasSuffix(f[2], suffix)) && f[3] != timeWait && f[3] != listen {
					n++
				}
			}
		}
		return nil
	})
	return n, err
}

// ceased is how long nothing must come for all to have come: longer than a
// delayed acknowledgement waits.
const ceased = 300 * time.Millisecond

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// session is what ssh is to an administrator: a TCP connection to the kernel
// under l4fwd, over the NIC that l4fwd forwards on, in use all the time.
type session struct {
	t     *testing.T
	to    netip.AddrPort
	conns *testbed.Conns
	quit  chan struct{}
	done  chan struct{}

	mu        sync.Mutex
	exchanges int
	err       error
}

// logIn opens a session to an address of l4fwd's own host, where a kernel
// socket listens, and keeps it busy until the end of the test.
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
	s := &session{t: r.t, to: netip.AddrPortFrom(to, testbed.PortHash), quit: make(chan struct{}), done: make(chan struct{})}
	if s.conns, err = r.Client.OpenConns(r.t.Context(), s.to, 1); err != nil {
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
func (s *session) alive(ns *testbed.Namespace, when string) {
	s.t.Helper()
	s.mu.Lock()
	before := s.exchanges
	s.mu.Unlock()
	await(s.t, "the ssh-like session "+when, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			s.t.Fatalf("the ssh-like session broke %s: %v", when, s.err)
		}
		if s.exchanges < before+2 {
			return fmt.Errorf("%d exchanges, %d before", s.exchanges, before)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	if _, err := (testbed.Transfer{To: s.to, Up: 10, Down: 10}).Run(ctx, ns); err != nil {
		s.t.Errorf("a new session %s: %v", when, err)
	}
}

func (s *session) logOut() {
	close(s.quit)
	<-s.done
	_ = s.conns.Close()
}

// TestSessionToKernel: whoever administers the machine over the very NIC that
// l4fwd forwards on notices nothing: not of its start, its work, its end, its
// death; also where the VIP is the host's only address.
func TestSessionToKernel(t *testing.T) {
	for _, f := range testbed.Families {
		for _, own := range []bool{false, true} {
			name := f.String() + "/vip of nobody"
			if own {
				name = f.String() + "/vip is the host's address"
			}
			t.Run(name, func(t *testing.T) { sessionToKernel(t, f, own) })
		}
	}
}

func sessionToKernel(t *testing.T, f testbed.Family, own bool) {
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	host := r.gateway(f)
	vip := r.VIP(f, 0)
	var address netip.Addr
	if own {
		vip, address = host, host
	}
	config := r.Config([]testbed.Service{{Name: "web", Family: f, Address: address, Port: 80, BackendPort: testbed.PortHTTP,
		Protocol: "tcp", Mode: fullNAT, Scheduler: "rr"}})
	s := r.logIn(host)
	s.alive(r.Client, "before l4fwd")
	web := netip.AddrPortFrom(vip, 80)
	d := program{}.start(t, r.LB, config)
	s.alive(r.Client, "after the start")
	s.underLoad(r, d, web)
	d.stop()
	s.alive(r.Client, "after the stop")
	d = program{}.start(t, r.LB, config)
	s.underLoad(r, d, web)
	d.Kill()
	s.alive(r.Client, "after kill -9")
	d = program{}.start(t, r.LB, config)
	s.underLoad(r, d, web)
	d.stop()
	s.alive(r.Client, "at the end")
	noResets(t, r.client)
}

// underLoad has l4fwd forward as much as it can while the session goes on.
func (s *session) underLoad(r *rig, d *daemon, web netip.AddrPort) {
	s.t.Helper()
	l := testbed.HTTPLoad{To: web, Requests: 300, Timeout: limit}
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := l.Run(s.t.Context(), r.Client)
		if err != nil || res.OK != l.Requests {
			s.t.Errorf("%d of %d requests answered: %v %v", res.OK, l.Requests, err, res.Errors)
		}
	}()
	s.alive(r.Client, "during load")
	<-done
	if n := d.stats().forwarding(); n == 0 {
		s.t.Error("l4fwd has forwarded nothing")
	}
}

package e2e

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestMPTCP: a Go server, which speaks MPTCP if the client does, sees the client in
// either case, though what it accepts by MPTCP is not the socket that TOA came on.
func TestMPTCP(t *testing.T) {
	const port = 7000
	r := network(t, testbed.TopologyOptions{Servers: 1}, testbed.SnifferOptions{})
	all := append(r.services(kinds[0]), r.services(kinds[1])...)
	ways := []kind{kinds[0], kinds[1], kinds[4]}
	for _, k := range ways {
		all = append(all, r.service(k, "go", port, port))
	}
	d := program{args: []string{"--workers", "1"}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	s := startRealServer(t, r.Topology.Servers[0], "10.0.1.0/24", "2001:db8:1::/64")
	if err := s.group.Enter(); err != nil { // the server is this process
		t.Fatal(err)
	}
	l, err := r.Topology.Servers[0].Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, k := range ways {
		for _, multi := range []bool{false, true} {
			c := dialMPTCP(t, r.Client, r.vip(k.client, k.vip, port).String(), multi)
			a, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if speaks, err := a.(*net.TCPConn).MultipathTCP(); err != nil || speaks != multi {
				t.Errorf("%s: MPTCP %t, %v, want %t", k, speaks, err, multi)
			}
			if got, want := a.RemoteAddr().String(), c.LocalAddr().String(); got != want {
				t.Errorf("%s, MPTCP %t: %s was taken for %s", k, multi, want, got)
			}
			_, _ = a.Close(), c.Close()
		}
	}
	if err := s.Terminate(limit); err != nil {
		t.Error(err)
	}
	d.stop()
}

func dialMPTCP(t *testing.T, ns *testbed.Namespace, to string, multi bool) (c net.Conn) {
	t.Helper()
	err := ns.Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(multi)
		c, err = d.DialContext(context.Background(), "tcp", to)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

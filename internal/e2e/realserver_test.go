package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// ports of the nginx that knows nothing of TOA.
var unaware = testbed.NginxPorts{Each: 8180, Both: 8181, Deferred: 8182}

// realServer is such an nginx with `l4fwd rs toa` over its cgroup.
type realServer struct {
	t     *testing.T
	ns    *testbed.Namespace
	group *testbed.Cgroup
	nginx *testbed.LoggedNginx
	path  string // of l4fwd
	*testbed.Process
}

// startRealServer starts both, nginx first: it needs no restart.
func startRealServer(t *testing.T, ns *testbed.Namespace, from ...string) *realServer {
	t.Helper()
	s := &realServer{t: t, ns: ns}
	var err error
	if s.group, err = testbed.NewCgroup(ns.Role()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.group.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.nginx, err = testbed.StartLoggedNginx(t.Context(), ns, s.group, t.TempDir(), unaware); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.nginx.Kill)
	if s.path, err = testbed.Build(t.Context(), "./cmd/l4fwd", false); err != nil {
		t.Fatal(err)
	}
	s.start(from...)
	return s
}

func (s *realServer) start(from ...string) {
	s.t.Helper()
	args := []string{"rs", "toa", "--cgroup", s.group.Path}
	for _, f := range from {
		args = append(args, "--from", f)
	}
	var err error
	s.Process, err = s.ns.StartProcess(s.t.Context(), testbed.ProcessOptions{Path: s.path, Args: args, Ready: "ready"})
	if err != nil {
		s.t.Fatal(err)
	}
}

// rsStatus are those parts of `rs status --json` that the test reads, spelt out as
// users see them.
type rsStatus struct {
	PID      int               `json:"pid"`
	Cgroup   string            `json:"cgroup"`
	Gone     int               `json:"gone"`
	Counters map[string]uint64 `json:"counters"`
}

// status is what the process' programs have counted, zeros left out; nil if there are
// none.
func (s *realServer) status() map[string]uint64 {
	s.t.Helper()
	out, err := s.ns.Command(s.t.Context(), s.path, "rs", "status", "--json").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	var all []rsStatus
	if err := json.Unmarshal(out, &all); err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(x rsStatus) bool { return x.PID == s.PID() })
	if i < 0 {
		return nil
	}
	if all[i].Cgroup != s.group.Path || all[i].Gone != 0 {
		s.t.Errorf("status: %s", out)
	}
	counters := make(map[string]uint64)
	for name, n := range all[i].Counters {
		if n > 0 {
			counters[name] = n
		}
	}
	return counters
}

// TestRealServers: nginx, which knows nothing of TOA, sees and logs every client's own
// address and port, v4, v6 and NAT64, as long as its server believes the local
// addresses; where it does not, TOA changes nothing.
func TestRealServers(t *testing.T) {
	r := network(t, testbed.TopologyOptions{ClientAddrs: 20}, testbed.SnifferOptions{})
	v4, v6, nat64 := kinds[0], kinds[1], kinds[4]
	rows := []struct {
		name string
		kind kind
		port uint16
		own  bool // the server can show the client's address
	}{
		{"v4", v4, unaware.Each, true},
		{"v6", v6, unaware.Each, true},
		{"v4 deferred", v4, unaware.Deferred, true},
		{"v4 by a socket for both", v4, unaware.Both, true},
		{"v6 by a socket for both", v6, unaware.Both, true},
		{"NAT64 by a socket for both", nat64, unaware.Both, true},
		{"NAT64 by an IPv4 socket", nat64, unaware.Each, false},
	}
	all := r.services(v4)
	all = append(all, r.services(v6)...)
	for _, row := range rows {
		all = append(all, r.service(row.kind, fmt.Sprint(row.port), row.port, row.port))
	}
	d := program{args: []string{"--workers", "1"}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	var locals []string
	for _, f := range testbed.Families {
		locals = append(locals, fmt.Sprintf("%s,%s", r.LocalAddr(f, 0), r.LocalAddr(f, 1)), fmt.Sprintf("%s,%s", r.LocalAddr(f, 2), r.LocalAddr(f, 3)))
	}
	believes := startRealServer(t, r.Topology.Servers[0], locals...)
	doubts := startRealServer(t, r.Topology.Servers[1], "203.0.113.0/24", "2001:db8:bad::/48")

	own := map[string][]netip.AddrPort{} // clients by the name of the server they met
	hidden := uint64(0)                  // of those that met the first, behind an IPv4 socket
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var mu sync.Mutex
			wrong := 0
			l := testbed.HTTPLoad{To: netip.AddrPortFrom(r.VIP(row.kind.client, row.kind.vip), row.port), Requests: load().requests, From: r.clients(row.kind.client),
				OnAnswer: func(self netip.AddrPort, a testbed.HTTPReply) {
					mu.Lock()
					defer mu.Unlock()
					a.Remote = netip.AddrPortFrom(a.Remote.Addr().Unmap(), a.Remote.Port())
					shown := row.own && a.Server == "rs1"
					if shown {
						own[a.Server] = append(own[a.Server], self)
					} else {
						own[a.Server] = append(own[a.Server], a.Remote)
					}
					if a.Server == "rs1" && !row.own {
						hidden++
					}
					if shown && a.Remote != self || !shown && !r.IsLocal(a.Remote.Addr()) {
						if wrong++; wrong < 4 {
							t.Errorf("%s took %s for %s", a.Server, self, a.Remote)
						}
					}
				}}
			res, err := l.Run(t.Context(), r.Client)
			if err != nil || res.OK != l.Requests || len(res.ByServer) != 2 {
				t.Fatalf("%d of %d requests answered by %v, %v: %v", res.OK, l.Requests, res.ByServer, err, res.Errors)
			}
			t.Logf("%d connections in %s, %d wrong", res.OK, res.Duration.Round(time.Millisecond), wrong)
		})
	}
	for _, s := range []*realServer{believes, doubts} {
		want := own[s.ns.Role()]
		await(t, "the last request to be logged", func() error {
			got, err := s.nginx.Clients()
			if err == nil && len(got) != len(want) {
				err = fmt.Errorf("%d requests in the log, want %d", len(got), len(want))
			}
			if err != nil {
				return err
			}
			slices.SortFunc(got, netip.AddrPort.Compare)
			slices.SortFunc(want, netip.AddrPort.Compare)
			if !slices.Equal(got, want) {
				t.Errorf("the log of %s is not the clients that it answered", s.ns.Role())
			}
			return nil
		})
		n := uint64(len(want))
		counters := map[string]uint64{"handshake": n, "given": n - hidden, "unshowable": hidden}
		if s == doubts {
			counters = map[string]uint64{"refused": n}
		}
		if diff := cmp.Diff(counters, s.status()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", s.ns.Role(), diff)
		}
	}
	believes.ends(r)
	if err := doubts.Terminate(limit); err != nil {
		t.Error(err)
	}
	if got := doubts.status(); got != nil {
		t.Errorf("attached after the end: %v", got)
	}
	d.stop()
}

// clients are all addresses of the client in a family.
func (r *rig) clients(f testbed.Family) (out []netip.Addr) {
	for i := range r.Options.ClientAddrs {
		out = append(out, r.ClientAddr(f, i))
	}
	return out
}

// ends kills `rs toa`, after which nginx sees local addresses again, and starts it
// again, after which it sees clients.
func (s *realServer) ends(r *rig) {
	s.t.Helper()
	seen := func(when string, own bool) {
		s.t.Helper()
		l := testbed.HTTPLoad{To: r.vip(testbed.V4, 0, unaware.Each), Requests: 20, OnAnswer: func(self netip.AddrPort, a testbed.HTTPReply) {
			if a.Server == s.ns.Role() && own != (a.Remote == self) {
				s.t.Errorf("%s: %s was taken for %s", when, self, a.Remote)
			}
		}}
		if res, err := l.Run(s.t.Context(), r.Client); err != nil || res.OK != l.Requests || res.ByServer[s.ns.Role()] == 0 {
			s.t.Errorf("%s: %v %+v", when, err, res)
		}
	}
	s.Kill()
	await(s.t, "the kernel to detach", func() error {
		if got := s.status(); got != nil {
			return fmt.Errorf("%v is attached", got)
		}
		return nil
	})
	seen("killed", false)
	s.start("10.0.1.0/24")
	seen("started again", true)
	if err := s.Terminate(limit); err != nil {
		s.t.Error(err)
	}
	seen("ended", false)
}

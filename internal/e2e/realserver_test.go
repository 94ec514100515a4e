package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

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
	s.Process, err = s.ns.StartProcess(s.t.Context(), testbed.ProcessOptions{Path: s.path, Args: args, Ready: "ready", Prepare: asNobody})
	if err != nil {
		s.t.Fatal(err)
	}
}

// asNobody takes all rights from a command but those that the documentation says it
// needs.
func asNobody(c *testbed.Cmd) {
	const nobody = 65534
	c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	c.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
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

// unawareRow is a service of the unaware nginx.
type unawareRow struct {
	name string
	kind kind
	port uint16
	own  bool // the server can show the client's address
}

var unawareRows = []unawareRow{
	{"v4", kinds[0], unaware.Each, true},
	{"v6", kinds[1], unaware.Each, true},
	{"v4 deferred", kinds[0], unaware.Deferred, true},
	{"v4 by a socket for both", kinds[0], unaware.Both, true},
	{"v6 by a socket for both", kinds[1], unaware.Both, true},
	{"NAT64 by a socket for both", kinds[4], unaware.Both, true},
	{"NAT64 by an IPv4 socket", kinds[4], unaware.Each, false},
}

// TestRealServers: nginx, which knows nothing of TOA, sees and logs every client's own
// address and port, v4, v6 and NAT64, as long as its server believes the local
// addresses; where it does not, TOA changes nothing.
func TestRealServers(t *testing.T) {
	r := network(t, testbed.TopologyOptions{ClientAddrs: 20}, testbed.SnifferOptions{})
	all := append(r.services(kinds[0]), r.services(kinds[1])...)
	for _, row := range unawareRows {
		all = append(all, r.service(row.kind, fmt.Sprint(row.port), row.port, row.port))
	}
	d := program{args: []string{"--workers", "1"}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	var locals []string
	for _, f := range testbed.Families {
		locals = append(locals, r.LocalAddr(f, 0).String()+"-"+r.LocalAddr(f, 3).String()) // as in the configuration
	}
	believes := startRealServer(t, r.Topology.Servers[0], locals...)
	doubts := startRealServer(t, r.Topology.Servers[1], "203.0.113.0/24", "2001:db8:bad::/48")
	m := &meetings{r: r, believes: believes.ns.Role(), logged: map[string][]netip.AddrPort{}}
	for _, row := range unawareRows {
		t.Run(row.name, func(t *testing.T) { m.run(t, row) })
	}
	n := believes.check(m.logged)
	if diff := cmp.Diff(map[string]uint64{"handshake": n, "given": n - m.hidden, "unshowable": m.hidden}, believes.status()); diff != "" {
		t.Errorf("who believes (-want +got)\n%s", diff)
	}
	n = doubts.check(m.logged)
	if diff := cmp.Diff(map[string]uint64{"refused": n}, doubts.status()); diff != "" {
		t.Errorf("who doubts (-want +got)\n%s", diff)
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

// meetings are who met whom.
type meetings struct {
	r        *rig
	believes string // the server that believes TOA

	mu     sync.Mutex
	logged map[string][]netip.AddrPort // what a server's log must say, in any order
	hidden uint64                      // clients that the believing server could not show
	wrong  int
}

// run makes connections to a service.
func (m *meetings) run(t *testing.T, row unawareRow) {
	m.wrong = 0
	l := testbed.HTTPLoad{To: netip.AddrPortFrom(m.r.VIP(row.kind.client, row.kind.vip), row.port), Requests: load().requests, From: m.r.clients(row.kind.client),
		OnAnswer: func(self netip.AddrPort, a testbed.HTTPReply) {
			m.mu.Lock()
			defer m.mu.Unlock()
			a.Remote = netip.AddrPortFrom(a.Remote.Addr().Unmap(), a.Remote.Port())
			shown := row.own && a.Server == m.believes
			must := a.Remote // one of many
			if shown {
				must = self
			} else if a.Server == m.believes {
				m.hidden++
			}
			m.logged[a.Server] = append(m.logged[a.Server], must)
			if a.Remote != must || !shown && !m.r.IsLocal(must.Addr()) {
				if m.wrong++; m.wrong < 4 {
					t.Errorf("%s took %s for %s", a.Server, self, a.Remote)
				}
			}
		}}
	res, err := l.Run(t.Context(), m.r.Client)
	if err != nil || res.OK != l.Requests || len(res.ByServer) != 2 {
		t.Fatalf("%d of %d requests answered by %v, %v: %v", res.OK, l.Requests, res.ByServer, err, res.Errors)
	}
	t.Logf("%d connections in %s, %d wrong", res.OK, res.Duration.Round(time.Millisecond), m.wrong)
}

// check compares the server's log with what must be in it and returns how much that is.
func (s *realServer) check(logged map[string][]netip.AddrPort) uint64 {
	s.t.Helper()
	want := logged[s.ns.Role()]
	var got []netip.AddrPort
	await(s.t, "the last request to be logged", func() (err error) {
		if got, err = s.nginx.Clients(); err == nil && len(got) != len(want) {
			err = fmt.Errorf("%d requests in the log, want %d", len(got), len(want))
		}
		return err
	})
	slices.SortFunc(got, netip.AddrPort.Compare)
	slices.SortFunc(want, netip.AddrPort.Compare)
	if !slices.Equal(got, want) {
		s.t.Errorf("the log of %s is not the clients that it answered", s.ns.Role())
	}
	return uint64(len(want))
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

package control

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// logged is a line of the connection log.
type logged struct {
	Time                                time.Time
	Service, Protocol, Mode, End, State string
	Client, VIP, Local, Backend         netip.AddrPort
	Worker                              int
	Duration, Idle                      float64
	PacketsTo                           uint32 `json:"packets_to"`
	PacketsFrom                         uint32 `json:"packets_from"`
	BytesTo                             uint64 `json:"bytes_to"`
	BytesFrom                           uint64 `json:"bytes_from"`
}

// loggedIn reads files of a connection log, which may not be there yet.
func loggedIn(t *testing.T, paths ...string) (all []logged) {
	t.Helper()
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var l logged
			if !strings.HasSuffix(line, "\n") {
				break // it is being written
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatalf("%s: %q: %v", p, line, err)
			}
			all = append(all, l)
		}
	}
	return all
}

// TestConnectionLog: what nginx says of who has asked it, and what the connection log says,
// is the same. A reload switches the log on and leads it elsewhere.
func TestConnectionLog(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1, Queues: 2})
	group, err := testbed.NewCgroup(w.Servers[0].Role())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, group.Close()) })
	nginx, err := testbed.StartLoggedNginx(t.Context(), w.Servers[0], group, t.TempDir(), testbed.NginxPorts{Each: 9080, Both: 9081, Deferred: 9082})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nginx.Kill)
	backend := netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), 9080)
	vip := netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one", "flows"), filepath.Join(dir, "two")
	text := func(log, file string) string {
		s := testbed.Service{Name: "web", Family: testbed.V4, Port: testbed.VIPPortHTTP, BackendPort: backend.Port(), Protocol: "tcp", Mode: "dnat", Extra: "connection_log: " + log}
		return w.Config([]testbed.Service{s}, append(small, "workers: 2", "timeouts: {tcp_time_wait: 1s, tcp_close: 1s}", "connection_log_file: "+file, "connection_log_size: 0")...)
	}
	d := w.run(text("off", one))
	reload := func(log, file string) {
		t.Helper()
		c, err := config.Parse("test.yaml", []byte(text(log, file)), config.Override{Flag: "test", Key: "admin_socket", Value: d.cfg.AdminSocket})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Reload(t.Context(), c, false); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(n int) {
		t.Helper()
		r, err := testbed.HTTPLoad{To: vip, Requests: n, Concurrency: 4}.Run(t.Context(), w.Client)
		if err != nil || r.OK != n {
			t.Fatalf("%v %+v", err, r)
		}
	}
	ask(10)
	forgotten := func() bool {
		s, err := d.Stats(t.Context())
		check(t, err)
		return s.Flows == 0
	}
	eventually(t, "they are forgotten", forgotten)
	reload("full", one)
	ask(40)
	eventually(t, "all are logged", func() bool { return len(loggedIn(t, one)) == 40 })
	reload("full", two)
	ask(20)
	eventually(t, "all are logged elsewhere", func() bool { return len(loggedIn(t, two)) == 20 })
	c := admin.NewClient(d.cfg.AdminSocket)
	defer c.Close()
	var diff string
	eventually(t, "all are counted", func() bool { // once they are in the file
		stats, err := c.Stats(t.Context())
		check(t, err)
		diff = cmp.Diff(&admin.ConnectionLogStats{Written: 60}, stats.ConnectionLog)
		return diff == "" || stats.ConnectionLog.Written >= 60
	})
	if diff != "" {
		t.Error(diff)
	}

	clients, err := nginx.Clients()
	if err != nil || len(clients) != 70 {
		t.Fatalf("%d requests: %v", len(clients), err)
	}
	var want, got []string
	for _, c := range clients[10:] {
		want = append(want, c.String())
	}
	workers := map[int]bool{}
	for _, l := range loggedIn(t, one, two) {
		got = append(got, l.Client.String())
		workers[l.Worker] = true
		if l.Service != "web" || l.Backend != backend || l.End != "fin" || l.State != "time_wait" || l.Mode != "dnat" || l.Protocol != "tcp" ||
			l.VIP != vip || l.Local.IsValid() || l.PacketsTo < 4 || l.PacketsFrom < 3 || l.BytesFrom < 200 || time.Since(l.Time) > time.Minute || l.Duration > 30 || l.Idle < 1 {
			t.Errorf("%+v", l)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(workers) != 2 {
		t.Errorf("workers %v, (-nginx +l4fwd)\n%s", workers, diff)
	}
	d.end()
}

// TestConnectionLogAtTheEnd: what has ended by the end of the daemon is in the file, also
// where nobody looked for it before.
func TestConnectionLogAtTheEnd(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	file := filepath.Join(t.TempDir(), "flows")
	s := testbed.Services(0, "full-nat", "", "wrr")
	for i := range s {
		s[i].Extra = strings.TrimSpace(s[i].Extra + "\n    connection_log: full")
	}
	d := w.run(w.Config(s, append(small, "timeouts: {tcp_time_wait: 100ms, tcp_close: 100ms}", "connection_log_file: "+file)...))
	w.ask(w.VIP(testbed.V4, 0), 20)
	stats, err := d.Stats(t.Context())
	check(t, err)
	opened := int(stats.Opened)
	eventually(t, "the flows end", func() bool {
		s, err := d.Stats(t.Context())
		check(t, err)
		return s.Flows == 0
	})
	d.end()
	if got := loggedIn(t, file); len(got) != opened || opened == 0 {
		t.Errorf("%d of %d flows in the log", len(got), opened)
	}
}

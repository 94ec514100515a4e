package control

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// registry is an etcd in the load balancer's namespace, and a client that writes.
type registry struct {
	*testbed.Etcd
	t      *testing.T
	client *clientv3.Client
}

func (w *world) startEtcd() *registry {
	w.t.Helper()
	e, err := testbed.StartEtcd(context.Background(), w.LB, w.t.TempDir(), netip.MustParseAddrPort("127.0.0.1:2379"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if out := e.Output(); w.t.Failed() {
			w.t.Logf("etcd runs: %v\n%s", e.Running(), out[max(0, len(out)-2000):])
		}
		e.Kill()
	})
	r := &registry{Etcd: e, t: w.t}
	if r.client, err = e.Client(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.client.Close() })
	return r
}

// put writes a document below the services.
func (r *registry) put(key, format string, args ...any) {
	r.t.Helper()
	if _, err := r.client.Put(r.t.Context(), "/l4fwd/services/"+key, fmt.Sprintf(format, args...)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *registry) remove(prefix string) {
	r.t.Helper()
	if _, err := r.client.Delete(r.t.Context(), "/l4fwd/services/"+prefix, clientv3.WithPrefix()); err != nil {
		r.t.Fatal(err)
	}
}

// bare is a configuration without services, but for what etcd says.
func (w *world) bare(state string, more ...string) string {
	return strings.Replace(w.Config(nil, append(small, append(more,
		"discovery: {etcd: {endpoints: [\"http://127.0.0.1:2379\"], timeout: 3s, state_dir: "+state+"}}")...)...), "services:\n", "services: []\n", 1)
}

// web is a document of a service of the first VIP.
func (w *world) web() string {
	return fmt.Sprintf(`{"address":%q,"protocol":"tcp","mode":"dnat"}`, netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP))
}

// rs is a document of one of its backends.
func (w *world) rs(i int) string {
	return fmt.Sprintf(`{"address":%q}`, netip.AddrPortFrom(w.ServerAddr(testbed.V4, i), testbed.PortHTTP))
}

// discovered waits until discovery's status is as wanted.
func (d *daemon) discovered(what string, is func(*admin.DiscoveryStatus) bool) *admin.DiscoveryStatus {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s, err := d.Status(d.t.Context())
		if err != nil {
			d.t.Fatal(err)
		}
		if is(s.Discovery) {
			m, err := d.sample(d.t.Context())
			if err != nil || m.Discovery == nil || m.Discovery.Refused != s.Discovery.Refused {
				d.t.Errorf("%v: metrics say %+v, status %+v", err, m.Discovery, s.Discovery)
			}
			return s.Discovery
		}
		if time.Now().After(end) {
			d.t.Fatalf("not %s: %+v\n%s", what, s.Discovery, d.said())
		}
	}
}

func (d *daemon) backendsFound(n int) *admin.DiscoveryStatus {
	d.t.Helper()
	return d.discovered(fmt.Sprintf("%d backends", n), func(s *admin.DiscoveryStatus) bool {
		return s.Backends == n && s.InForce == s.Revision && s.Refusal == ""
	})
}

// A service that only etcd knows, from nothing to packets; documents that are wrong; a
// reload of the file beside it; etcd killed, and l4fwd started again without it.
func TestDiscovery(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	etcd := w.startEtcd()
	state := filepath.Join(t.TempDir(), "state")
	text := w.bare(state)
	d := w.run(text)
	d.discovered("connected", func(s *admin.DiscoveryStatus) bool { return s.Connected && s.Error == "" })
	d.backendsFound(0)
	etcd.put("web", "%s", w.web())
	etcd.put("web/backends/a", "%s", w.rs(0))
	d.backendsFound(1)
	vip := w.VIP(testbed.V4, 0)
	w.ask(vip, 5)
	etcd.put("web/backends/b", "%s", w.rs(1))
	d.backendsFound(2)
	open := w.call(vip, testbed.VIPPortHTTP)
	w.mustSay(open)
	if r := w.ask(vip, 10); len(r.ByServer) != 2 {
		t.Errorf("%v", r.ByServer)
	}

	// What is wrong is said, and changes nothing; what is right beside it holds.
	etcd.put("web", `{"address":"here"}`)
	etcd.put("local", `{"address":"%v:80","protocol":"tcp","mode":"dnat","backends":[%s]}`, w.ServerAddr(testbed.V4, 1), w.rs(0))
	s := d.discovered("refused", func(s *admin.DiscoveryStatus) bool { return s.Refused == 2 })
	if s.Backends != 2 || !strings.HasPrefix(s.Problems[0], "/l4fwd/services/local: refused: ") ||
		!strings.HasPrefix(s.Problems[1], "/l4fwd/services/web: refused, its version of revision ") {
		t.Errorf("%+v", s)
	}
	r, err := d.Reload(t.Context(), d.parse(text+"log_level: warn\n"), true)
	if err != nil || len(r.Changes) != 1 || len(r.Warnings) != 2 || !strings.HasPrefix(r.Warnings[0], "etcd: /l4fwd/services/local: refused") {
		t.Errorf("%v %+v", err, r)
	}
	// A reload of the file keeps what etcd says, and the file wins.
	mine := strings.Replace(text, "services: []", "services:\n"+fmt.Sprintf(
		"  - {name: mine, address: \"%v:81\", protocol: tcp, mode: dnat, backends: [{address: \"%v:%d\"}]}\n", vip, w.ServerAddr(testbed.V4, 0), testbed.PortHTTP), 1)
	if r := d.reload(mine); len(r.Changes) != 1 {
		t.Errorf("%+v", r)
	}
	d.backendsFound(2)
	w.mustSay(open)
	etcd.put("web", "%s", w.web())
	etcd.put("local", `{"address":"%v:81","protocol":"tcp","mode":"dnat","backends":[%s]}`, vip, w.rs(0))
	// The two may come one after the other.
	want := fmt.Sprintf("/l4fwd/services/local: refused: address: %v:81 tcp is already services[0]", vip)
	d.discovered("refused as "+want, func(s *admin.DiscoveryStatus) bool {
		return s.Refused == 1 && s.InForce == s.Revision && s.Problems[0] == want
	})
	etcd.remove("local")
	d.reload(text)
	d.backendsFound(2)

	etcd.Kill()
	d.discovered("lost", func(s *admin.DiscoveryStatus) bool { return !s.Connected && s.Error != "" })
	w.mustSay(open)
	w.ask(vip, 5)
	d.end()
	w.clean()

	d = w.run(text)
	s = d.discovered("recalled", func(s *admin.DiscoveryStatus) bool { return s.Recalled && strings.Contains(s.Error, "refused") })
	if s.Connected || s.Backends != 2 {
		t.Errorf("%+v", s)
	}
	w.ask(vip, 5)
	// Wiped, which is kept, over a restart too, until there is something again.
	check(t, os.RemoveAll(etcd.DataDir()))
	check(t, etcd.Restart(context.Background()))
	d.discovered("empty and kept", func(s *admin.DiscoveryStatus) bool {
		return s.Connected && s.Refused == 1 && s.Backends == 2 && !s.Recalled
	})
	w.ask(vip, 5)
	d.end()
	d = w.run(text)
	d.discovered("empty and kept", func(s *admin.DiscoveryStatus) bool { return s.Connected && s.Refused == 1 && s.Backends == 2 })
	w.ask(vip, 5)
	etcd.put("web", "%s", w.web())
	etcd.put("web/backends/b", "%s", w.rs(1))
	d.backendsFound(1)
	if r := w.ask(vip, 5); len(r.ByServer) != 1 {
		t.Errorf("%v", r.ByServer)
	}
	d.end()
	w.clean()
}

// A thousand changes of etcd under load are few reloads, and fail no request.
func TestDiscoveryUnderLoad(t *testing.T) {
	changes := 1000
	if testing.Short() {
		changes = 200
	}
	w := newWorld(t, testbed.TopologyOptions{})
	etcd := w.startEtcd()
	d := w.run(w.bare("off", "drain_timeout: 30s")) // who goes is back before, on a busy machine too
	etcd.put("web", "%s", w.web())
	etcd.put("web/backends/a", "%s", w.rs(0))
	d.backendsFound(1)
	vip := w.VIP(testbed.V4, 0)
	ctx, stop := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for ctx.Err() == nil {
			r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(vip, testbed.VIPPortHTTP), Requests: 50, Concurrency: 2}.Run(t.Context(), w.Client)
			if err != nil || r.Failed > 0 {
				t.Errorf("%v %v", err, r.Errors)
				return
			}
		}
	}()
	reloads := func() int { return d.logs.FilterMessage("as etcd says").Len() }
	began, before := time.Now(), reloads()
	for i := range changes {
		switch i % 4 {
		case 0:
			etcd.put("web/backends/b", "%s", w.rs(1))
		case 1:
			etcd.put("web", `%s,"scheduler":"rr"}`, strings.TrimSuffix(w.web(), "}"))
		case 2:
			etcd.remove("web/backends/b")
		case 3:
			etcd.put("web", "%s", w.web())
		}
	}
	most := 3 + int(time.Since(began)/(100*time.Millisecond))
	etcd.put("web/backends/b", "%s", w.rs(1))
	d.backendsFound(2)
	stop()
	<-loaded
	if n := reloads() - before; n > most || n < 1 {
		t.Errorf("%d reloads, at most %d were to be", n, most)
	}
	d.noneLost()
	d.end()
	w.clean()
}

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// health is what the stats say of each backend: a service's name, its backend's number,
// the state.
func (s stats) health() map[string][]string {
	out := map[string][]string{}
	for _, svc := range s.Services {
		for _, b := range svc.Backends {
			out[svc.Name] = append(out[svc.Name], b.Health.State)
		}
	}
	return out
}

// toldHealth are the log's last words on a backend of a service.
var toldHealth = regexp.MustCompile(`backend is (up|down)\s+\{"service": "([^"]+)", "backend": "([^"]+)"`)

// untilHealth waits until the backends of all services are in the states, and the workers
// know.
func (d *daemon) untilHealth(want ...string) stats {
	d.t.Helper()
	found := d.until(fmt.Sprintf("backends that are %v", want), func(s stats) bool {
		h := s.health()
		for _, got := range h {
			if !slices.Equal(got, want) {
				return false
			}
		}
		return len(h) > 0
	})
	// The statistics are ahead of the workers, who hear of it in the turn of the loop that
	// writes it down: after that turn the loop answers again.
	await(d.t, "the loop to hear of it", func() error {
		told := make(map[string]string)
		for _, m := range toldHealth.FindAllStringSubmatch(d.Output(), -1) {
			told[m[2]+" "+m[3]] = m[1]
		}
		for _, svc := range found.Services {
			for i, b := range svc.Backends {
				// Of one that its first check finds up nothing is said.
				if last, ok := told[svc.Name+" "+b.Address]; last != want[i] && (ok || want[i] != "up") {
					return fmt.Errorf("%s of %s is %q in the log, want %s", b.Address, svc.Name, last, want[i])
				}
			}
		}
		return nil
	})
	d.stats()
	return found
}

// batch is some requests, and when they began.
type batch struct {
	began  time.Time
	result testbed.LoadResult
}

// pour makes requests in batches until stop, in a family; from begins to end is one
// connection each.
func (r *rig) pour(t *testing.T, to netip.AddrPort) (stop func() []batch) {
	ctx, cancel := context.WithCancel(t.Context())
	var all []batch
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			b := batch{began: time.Now()}
			// Its own context: what began is to end.
			b.result, _ = testbed.HTTPLoad{To: to, Requests: 20, Concurrency: 4, Timeout: 5 * time.Second}.Run(context.WithoutCancel(ctx), r.Client)
			all = append(all, b)
		}
	})
	return func() []batch {
		cancel()
		wg.Wait()
		return all
	}
}

// deaf makes a server drop all that comes, or hear again.
func deaf(t *testing.T, ns *testbed.Namespace, on bool) {
	t.Helper()
	for _, c := range map[bool][]string{
		true:  {"add table inet deaf", "add chain inet deaf in { type filter hook input priority 0; policy drop; }"},
		false: {"delete table inet deaf"},
	}[on] {
		if out, err := ns.Command(t.Context(), "nft", c).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v\n%s", c, err, out)
		}
	}
}

// checked is how often servers are looked at: none is taken for dead since the machine is
// busy for a moment.
const checked = "interval: 1s, timeout: 1s, fast_interval: 300ms, rise: 2, fall: 2"

// healthBound is within what a dead server is known: an interval and fall timeouts.
const healthBound = 3 * time.Second

// TestHealthChecks: of two servers under load one dies, so that it refuses or so that it
// is silent, and comes back. From the moment that it is known to be down no new request
// fails, and afterwards it has its share again.
func TestHealthChecks(t *testing.T) {
	for i, row := range []struct {
		mode, check string
		oneArm      bool
		silent      bool
	}{
		{dnat, "type: http, path: /", false, true},
		{fullNAT, "type: tcp", false, false},
		{fullNAT, "type: http, expect_body: server", true, true},
	} {
		if testing.Short() && i > 0 {
			break
		}
		t.Run(fmt.Sprintf("%s, %s", row.mode, row.check), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{OneArm: row.oneArm}, testbed.SnifferOptions{Every: 20})
			services := testbed.Services(0, row.mode, "", "wrr")
			services = slices.DeleteFunc(services, func(s testbed.Service) bool { return !strings.HasPrefix(s.Name, "web") })
			for i := range services {
				services[i].Extra = "health_check: {" + row.check + ", " + checked + "}"
			}
			d := program{}.start(t, r.LB, r.Config(services))
			r.warmUp()
			d.untilHealth("up", "up")
			r.diesAndReturns(t, d, row.silent)
			d.stop()
		})
	}
}

func (r *rig) diesAndReturns(t *testing.T, d *daemon, silent bool) {
	t.Helper()
	var stops []func() []batch
	for _, f := range testbed.Families {
		stops = append(stops, r.pour(t, r.vip(f, 0, r.webPort())))
	}
	time.Sleep(300 * time.Millisecond)
	died := time.Now()
	if silent {
		deaf(t, r.Topology.Servers[0], true)
	} else if err := r.servers[0].Close(); err != nil {
		t.Error(err)
	}
	s := d.untilHealth("down", "up")
	known := time.Now()
	// Being known can be late on a busy machine, so it is not what is judged.
	t.Logf("down after %v, %v is the bound", known.Sub(died), healthBound)
	for _, svc := range s.Services {
		if h := svc.Backends[0].Health; h.Reason == "" {
			t.Errorf("%s: no reason is given: %+v", svc.Name, h)
		}
	}
	for _, f := range testbed.Families {
		load := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: 100, Timeout: 10 * time.Second}
		res, err := load.Run(t.Context(), r.Client)
		if err != nil || res.OK != 100 || len(res.ByServer) != 1 {
			t.Errorf("with one server down: %v, %d of 100, %v, %v", err, res.OK, res.ByServer, res.Errors)
		}
	}
	for _, stop := range stops {
		failed := 0
		for _, b := range stop() {
			failed += b.result.Failed
			if b.began.After(known) && b.result.Failed > 0 {
				t.Errorf("%d requests failed that began %v after the server was known to be down: %v",
					b.result.Failed, b.began.Sub(known), b.result.Errors)
			}
		}
		t.Logf("%d requests failed in all", failed)
	}
	if silent {
		deaf(t, r.Topology.Servers[0], false)
	} else {
		r.reopen(t)
	}
	d.untilHealth("up", "up")
	for _, f := range testbed.Families {
		load := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: 100, Timeout: 10 * time.Second}
		res, err := load.Run(t.Context(), r.Client)
		if err != nil || res.OK != 100 || len(res.ByServer) != 2 {
			t.Errorf("when it is back: %v, %d of 100, %v, %v", err, res.OK, res.ByServer, res.Errors)
		}
	}
}

// reopen starts the first server again.
func (r *rig) reopen(t *testing.T) {
	t.Helper()
	o := testbed.ServerOptions{}
	for _, f := range testbed.Families {
		o.Addrs = append(o.Addrs, r.ServerAddr(f, 0))
		if r.Options.ServerVIPs > 0 {
			o.Addrs = append(o.Addrs, r.VIP(f, 0))
		}
	}
	s, err := testbed.StartServer(r.Topology.Servers[0], o)
	if err != nil {
		t.Fatal(err)
	}
	r.servers[0] = s // whoever closes them all has the same slice
}

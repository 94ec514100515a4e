package control

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

const metricsAt = "127.0.0.1:9464"

// page is a page of metrics as somebody on the load balancer's host reads it.
func (w *world) page(path string) (string, error) { return w.pageAt(metricsAt, path) }

func (w *world) pageAt(at, path string) (string, error) {
	t := &http.Transport{DialContext: w.LB.Dialer(5 * time.Second).DialContext}
	defer t.CloseIdleConnections()
	r, err := (&http.Client{Transport: t}).Get("http://" + at + path)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r.Body)
	if err = errors.Join(err, r.Body.Close()); err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

// figure is the value of a series.
func figure(t *testing.T, page, series string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Errorf("no series %s", series)
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Error(err)
	}
	return v
}

// TestMetrics: what Prometheus reads is what clients have seen, and how long handshakes
// took is told for the side that was slow.
func TestMetrics(t *testing.T) {
	const slowServer, slowClient, requests = 100 * time.Millisecond, 40 * time.Millisecond, 6
	w := newWorld(t, testbed.TopologyOptions{Impaired: true, Queues: 2, StaticNeighbours: true})
	late := func(by time.Duration) testbed.Plan {
		return testbed.Plan{Rules: []testbed.Rule{{Way: testbed.ToClient, Segment: testbed.SYNACK, Action: testbed.Delay, Delay: by}}}
	}
	w.ServerWire.Plan(testbed.PortHTTP, late(slowServer))
	w.ClientWire.Plan(testbed.VIPPortHTTP, late(slowClient))
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr", 1, 0), append(small, "workers: 2", "metrics_listen: "+metricsAt)...))
	idle, err := w.page("/metrics/detail")
	if err != nil {
		t.Fatal(err)
	}
	w.ask(w.VIP(testbed.V4, 0), requests)
	const web = "web-full-nat-v4-0"
	if n := figure(t, idle, `l4fwd_service_handshake_seconds_count{service="`+web+`",side="backend"}`); n != 0 {
		t.Errorf("%v handshakes before the first", n)
	}
	time.Sleep(1100 * time.Millisecond) // as long as a page is kept
	page, err := w.page("/metrics")
	detail, err2 := w.page("/metrics/detail")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for series, want := range map[string]float64{
		"l4fwd_flows_opened_total": requests, "l4fwd_workers": 2, `l4fwd_nic_up{nic="l1"}`: 1,
		`l4fwd_service_backends{service="` + web + `",state="up"}`:                           1,
		`l4fwd_service_backends{service="` + web + `",state="draining"}`:                     1,
		`l4fwd_drops_total{reason="internal"}`:                                               0,
		`l4fwd_handshake_seconds_count{side="backend"}`:                                      requests,
		`l4fwd_handshake_seconds_count{side="client"}`:                                       requests,
		`l4fwd_handshake_seconds_bucket{side="backend",le="0.065536"}`:                       0,
		`l4fwd_handshake_seconds_bucket{side="client",le="0.032768"}`:                        0,
		`l4fwd_service_handshake_seconds_count{service="` + web + `",side="client"}`:         requests,
		`l4fwd_service_handshake_seconds_count{service="hash-full-nat-v4-0",side="backend"}`: 0,
	} {
		if got := figure(t, page+detail, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	backend := `l4fwd_backend_flows_opened_total{service="` + web + `",backend="` + netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), testbed.PortHTTP).String()
	if n := figure(t, detail, backend+`",worker="0"}`) + figure(t, detail, backend+`",worker="1"}`); n != requests {
		t.Errorf("%v flows opened to the backend, want %d", n, requests)
	}
	for side, least := range map[string]time.Duration{"backend": slowServer, "client": slowClient} {
		if got := figure(t, page, `l4fwd_handshake_seconds_sum{side="`+side+`"}`); got < requests*least.Seconds() {
			t.Errorf("%d handshakes of the %s took %v s, each at least %v", requests, side, got, least)
		}
	}
	for _, series := range []string{
		`l4fwd_packets_total{direction="to_clients"}`, `l4fwd_bytes_total{direction="to_backends"}`, `l4fwd_outcomes_total{outcome="forwarded"}`,
	} {
		if figure(t, page, series) == 0 {
			t.Errorf("%s is 0", series)
		}
	}
	figure(t, detail, `l4fwd_worker_stage_seconds_total{worker="1",stage="parse"}`) // of one round in a thousand, so of any value
	d.end()
	w.clean()
	if _, err := w.page("/metrics"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("metrics after the end: %v", err)
	}
}

// TestMetricsPortTaken: somebody has the port already. Traffic goes on.
func TestMetricsPortTaken(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	l, err := w.LB.Listen("tcp", metricsAt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, l.Close()) })
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), append(small, "metrics_listen: "+metricsAt)...))
	if d.logs.FilterMessage("no metrics will be served").Len() != 1 {
		t.Errorf("nothing was said\n%s", d.said())
	}
	w.ask(w.VIP(testbed.V4, 0), 3)
	d.end()
	w.clean()
}

// TestMetricsHealth: backends are told by what they are there for.
func TestMetricsHealth(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	services := testbed.Services(0, "full-nat", "none", "wrr", 1, 0)[:2]
	services[0].Extra = "health_check: {type: tcp, interval: 200ms, timeout: 200ms}"
	services[1].Extra, services[1].BackendPort = services[0].Extra, 4 // where nobody listens
	d := w.run(w.Config(services, append(small, "metrics_listen: "+metricsAt)...))
	type states struct{ Up, Draining, Down, UpOfFirst, Weight, Checked float64 }
	var got [2]states
	want := [2]states{{Up: 1, Draining: 1, UpOfFirst: 1, Weight: 1, Checked: 1}, {Down: 2, Weight: 1, Checked: 1}}
	for end := time.Now().Add(15 * time.Second); got != want && time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		page, err := w.page("/metrics")
		detail, err2 := w.page("/metrics/detail")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		for i, s := range services {
			of := func(state string) float64 {
				return figure(t, page, `l4fwd_service_backends{service="`+s.Name+`",state="`+state+`"}`)
			}
			backend := `{service="` + s.Name + `",backend="` + netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), s.BackendPort).String() + `"`
			got[i] = states{
				Up: of("up"), Draining: of("draining"), Down: of("down"),
				UpOfFirst: figure(t, detail, "l4fwd_backend_up"+backend+"}"), Weight: figure(t, detail, "l4fwd_backend_weight"+backend+"}"),
			}
			result := [2]string{"passed", "failed"}[i]
			if figure(t, detail, "l4fwd_backend_checks_total"+backend+`,result="`+result+`"}`) > 0 {
				got[i].Checked = 1
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	d.end()
	w.clean()
}

// TestCopied: a list comes over whole, whatever its length, and no more of it at a time
// than was asked for.
func TestCopied(t *testing.T) {
	d := idle(t) // so that whoever asks does it himself
	for n := range 12 {
		list := make([]int, n)
		for i := range list {
			list[i] = i + 1
		}
		got, err := copied(t.Context(), d, 0, 4, func(_ *dataplane.Worker, at int, to []int) int {
			if len(to) != 4 {
				t.Errorf("%d at a time", len(to))
			}
			return copy(to, list[at:])
		})
		if diff := cmp.Diff(list, append([]int{}, got...)); err != nil || diff != "" {
			t.Errorf("%d: %v %s", n, err, diff)
		}
	}
}

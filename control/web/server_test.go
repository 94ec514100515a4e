package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// hostile is what must stay text.
const hostile = `<img src=x onerror=alert(1)>`

// site is a Source of a small site.
type site struct {
	services int    // beyond the two
	long     string // in their names
	asked    atomic.Int64
	fails    error
	bare     bool // there are no backends
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (s *site) Status(context.Context) (admin.Status, error) {
	s.asked.Add(1)
	return admin.Status{PID: 77, Started: start, Config: "/etc/l4fwd.yaml", Workers: 1, Services: 2, Backends: 3}, s.fails
}

func (s *site) Stats(context.Context) (admin.Stats, error) {
	return admin.Stats{Flows: 14, Opened: 50, Dropped: 9, Verdicts: map[string]uint64{"forwarded": 99, "no_backend": 4, "no_flow": 5},
		Workers: []admin.WorkerStats{{Received: 100, Sent: 90, Flows: 14, BusySeconds: 1.5}},
		Links: []admin.LinkStats{{Name: "eth1", Up: true, Queues: []afxdp.Stats{
			{Received: 60, Transmitted: 50, Kernel: afxdp.KernelStats{RxDropped: 1, RxRingFull: 2}}, {Received: 40, Transmitted: 40}}}}}, nil
}

func (s *site) Services(context.Context) ([]admin.ServiceInfo, error) {
	out := []admin.ServiceInfo{
		{Name: hostile, Address: netip.MustParseAddrPort("192.0.2.10:80"), Protocol: "tcp", Mode: "dnat", Backends: 2, Taking: 1, Flows: 30, Active: 9},
		{Name: "dns", Address: netip.MustParseAddrPort("192.0.2.11:53"), Protocol: "udp", Mode: "full-nat", Backends: 1, Taking: 1, Flows: 20, Active: 5},
	}
	for i := range s.services {
		out = append(out, admin.ServiceInfo{Name: fmt.Sprint("more-", i, s.long)})
	}
	return out, nil
}

var (
	checked  = admin.BackendHealth{State: health.Down, Since: start, Reason: "refused"}
	doubtful = admin.BackendHealth{State: health.Up, Since: start, Suspect: &health.Suspicion{Since: start, Reason: "passive: 14 of 20 connections refused " + hostile}}
)

func (s *site) Backends(context.Context, string) ([]admin.BackendInfo, error) {
	if s.bare {
		return nil, admin.Refusal(admin.ErrNotFound, errors.New("no service is called so"))
	}
	return []admin.BackendInfo{
		{Service: hostile, Address: netip.MustParseAddrPort("10.0.1.20:80"), State: admin.BackendUp, Weight: 1, Configured: 1, BytesTo: 10, BytesFrom: 100},
		{Service: hostile, Address: netip.MustParseAddrPort("10.0.1.21:80"), State: admin.BackendDown, Health: &checked, BytesTo: 1, BytesFrom: 2},
		{Service: "dns", Address: netip.MustParseAddrPort("10.0.1.20:80"), State: admin.BackendUp, Health: &doubtful},
	}, nil
}

var changes = []health.Change{{At: start, From: health.Up, To: health.Down, Reason: "refused"}}

func (s *site) Health(context.Context, string) ([]admin.CheckedBackend, error) {
	return []admin.CheckedBackend{{Service: hostile, Address: netip.MustParseAddrPort("10.0.1.21:80"), Health: checked, History: changes}}, nil
}

// ask sends a request to a server that nothing listens for.
func ask(s *Server, method, path string) *httptest.ResponseRecorder {
	w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(context.Background(), method, path, nil)
	r.Host = "127.0.0.1:9480"
	s.http.Handler.ServeHTTP(w, r)
	return w
}

func decoded[T any](t *testing.T, w *httptest.ResponseRecorder) (out T) {
	t.Helper()
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFiles: what there is is served with its type and the policy, and nothing else is.
func TestFiles(t *testing.T) {
	s := New(&site{}, Options{})
	for path, want := range map[string]string{
		"/": "200 text/html; charset=utf-8", "/style.css": "200 text/css; charset=utf-8", "/page.js": "200 text/javascript; charset=utf-8", "/orders.js": "200 text/javascript; charset=utf-8",
		"/icon.svg": "200 image/svg+xml", "/api/overview": "200 application/json", "/api/backends": "200 application/json",
		"/page": "404 text/plain; charset=utf-8", "/page/": "404 text/plain; charset=utf-8", "/api/": "404 text/plain; charset=utf-8",
		"/v1/status": "404 text/plain; charset=utf-8",
	} {
		w := ask(s, http.MethodGet, path)
		if got := fmt.Sprint(w.Code, " ", w.Header().Get("Content-Type")); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		if w.Header().Get("Content-Security-Policy") != policy || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, w.Header())
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if w := ask(s, method, "/api/overview"); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

// TestNoHTML: the script makes no HTML out of text, and the page has nothing that the
// policy would refuse.
func TestNoHTML(t *testing.T) {
	s := New(&site{}, Options{})
	for _, f := range files {
		path := strings.TrimSuffix(f.path, "{$}")
		body := ask(s, http.MethodGet, path).Body.String()
		for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick", "https://"} {
			if strings.Contains(body, word) {
				t.Errorf("%s has %s", path, word)
			}
		}
	}
	if body := ask(s, http.MethodGet, "/api/overview").Body.String(); strings.Contains(body, "<") {
		t.Errorf("the answer could be taken for HTML: %s", body)
	}
}

func TestOverview(t *testing.T) {
	got := decoded[overview](t, ask(New(&site{}, Options{}), http.MethodGet, "/api/overview"))
	if len(got.Drops) != 2 || got.Drops[0].Reason != "no_flow" || got.Drops[0].Count != 5 || got.Drops[0].Means == "" || got.Drops[1].Do == "" {
		t.Errorf("drops %+v", got.Drops)
	}
	services, _ := (&site{}).Services(context.Background())
	status, _ := (&site{}).Status(context.Background())
	want := overview{
		At: got.At, Status: status, Flows: 14, Found: 2, Points: []point{}, Drops: got.Drops,
		Services: []service{{services[0], 1, 0, 11, 102}, {services[1], 0, 1, 0, 0}},
		Workers:  []worker{{100, 90, 14, 1.5}}, NICs: []nic{{"eth1", true, 2, 100, 90, 3}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestFind: many services are found by name and address, and so many are sent at most.
func TestFind(t *testing.T) {
	s := New(&site{services: 1000}, Options{})
	for find, want := range map[string][2]int{"": {500, 1002}, "192.0.2.1": {2, 2}, "dns": {1, 1}, "more-99": {11, 11}, "nobody": {0, 0}} {
		got := decoded[overview](t, ask(s, http.MethodGet, "/api/overview?find="+find))
		if (len(got.Services) != want[0]) || got.Found != want[1] || got.Services == nil {
			t.Errorf("%q: %d of %d, want %v", find, len(got.Services), got.Found, want)
		}
	}
}

// TestBackends: a backend's history is that of its service.
func TestBackends(t *testing.T) {
	got := decoded[map[string][]backend](t, ask(New(&site{}, Options{}), http.MethodGet, "/api/backends?service=dns&service=nobody&service=%3Cimg+src=x+onerror=alert(1)%3E"))
	all, _ := (&site{}).Backends(context.Background(), "")
	want := map[string][]backend{hostile: {{all[0], nil}, {all[1], changes}}, "dns": {{all[2], nil}}, "nobody": {}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestCost: ten readers at a time ask the daemon once.
func TestCost(t *testing.T) {
	src := &site{}
	s := New(src, Options{})
	done := make(chan int)
	for range 10 {
		go func() { done <- ask(s, http.MethodGet, "/api/overview").Code }()
	}
	for range 10 {
		if code := <-done; code != http.StatusOK {
			t.Errorf("status %d", code)
		}
	}
	if n := src.asked.Load(); n > 2 { // two if it took more than a second
		t.Errorf("asked %d times", n)
	}
}

// TestNoBackends: that there are none is no failure.
func TestNoBackends(t *testing.T) {
	got := decoded[map[string][]backend](t, ask(New(&site{bare: true}, Options{}), http.MethodGet, "/api/backends?service=dns"))
	if diff := cmp.Diff(map[string][]backend{"dns": {}}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestRefused: what the daemon says reaches the reader, and whoever comes when too many
// are there is told so.
func TestRefused(t *testing.T) {
	s := New(&site{fails: errors.New("not now")}, Options{})
	if w := ask(s, http.MethodGet, "/api/overview"); w.Code != http.StatusServiceUnavailable || w.Body.String() != "status: not now\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for range atATime {
		s.turns <- struct{}{}
	}
	if w := ask(s, http.MethodGet, "/api/backends"); w.Code != http.StatusServiceUnavailable || w.Body.String() != "too many at a time\n" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// unread is whoever does not read what he has asked for.
type unread struct {
	*httptest.ResponseRecorder
	asked chan<- struct{}
	until <-chan struct{}
}

func (u unread) Write(b []byte) (int, error) {
	u.asked <- struct{}{}
	<-u.until
	return u.ResponseRecorder.Write(b)
}

// TestUnread: those who do not read their answers keep nobody else from his.
func TestUnread(t *testing.T) {
	s := New(&site{}, Options{})
	asked, until := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	for range atATime {
		all.Go(func() {
			s.http.Handler.ServeHTTP(unread{httptest.NewRecorder(), asked, until}, httptest.NewRequest(http.MethodGet, "/api/overview", nil))
		})
		<-asked
	}
	if w := ask(s, http.MethodGet, "/api/overview"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	close(until)
	all.Wait()
}

// TestUnreadLarge: but no more large ones wait than there are turns.
func TestUnreadLarge(t *testing.T) {
	s := New(&site{services: 600, long: strings.Repeat("x", 1000)}, Options{})
	asked, until := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	for range atATime {
		all.Go(func() {
			s.http.Handler.ServeHTTP(unread{httptest.NewRecorder(), asked, until}, httptest.NewRequest(http.MethodGet, "/api/overview", nil))
		})
		<-asked
	}
	if w := ask(s, http.MethodGet, "/api/overview"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
	close(until)
	all.Wait()
	if w := ask(s, http.MethodGet, "/api/overview"); w.Code != http.StatusOK || w.Body.Len() <= mostUnread {
		t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
	}
}

// TestServe: a page is served by TCP, until Shutdown.
func TestServe(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(&site{}, Options{})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	r, err := http.Get("http://" + l.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Body.Close(); err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s %v", r.Status, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(s.Shutdown(ctx), <-done); err != nil {
		t.Error(err)
	}
}

func TestHistory(t *testing.T) {
	var h history
	stats := func(packets, bytes uint64) *admin.Stats {
		return &admin.Stats{Flows: 3, Opened: packets / 10, Dropped: 7,
			Workers:  []admin.WorkerStats{{Received: packets}},
			Services: []admin.ServiceStats{{Backends: []admin.BackendStats{{BytesTo: bytes}}}}}
	}
	h.add(start, stats(100, 500))
	h.add(start, stats(100, 500)) // no time has passed
	h.add(start.Add(2*time.Second), stats(300, 1500))
	h.add(start.Add(4*time.Second), stats(300, 200)) // a backend is gone
	want := []point{
		{At: start.Add(2 * time.Second).UnixMilli(), Bits: 4000, Packets: 100, Opened: 10, Flows: 3},
		{At: start.Add(4 * time.Second).UnixMilli(), Flows: 3},
	}
	if diff := cmp.Diff(want, h.list()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for i := range 3 * most {
		h.add(start.Add(time.Duration(i+10)*every), stats(0, 0))
	}
	if got := h.list(); len(got) != most || got[most-1].At != start.Add((3*most+9)*every).UnixMilli() {
		t.Errorf("%d points", len(got))
	}
}

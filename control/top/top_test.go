package top

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// samples are two of a small site, two seconds apart.
func samples() (before, now *Sample) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	backend := func(service, addr string, state admin.BackendState, active int64, flows, to, from uint64) admin.BackendInfo {
		return admin.BackendInfo{Service: service, Address: netip.MustParseAddrPort(addr), State: state, Weight: 10,
			Active: active, Flows: flows, BytesTo: to, BytesFrom: from}
	}
	status := admin.Status{PID: 77, Started: start.Add(-time.Hour), Services: 2, Backends: 3, Reloads: 1}
	before = &Sample{At: start, Status: status,
		Stats: admin.Stats{Opened: 100, Dropped: 5, Verdicts: map[string]uint64{"forwarded": 1, "no_backend": 5},
			Workers: []admin.WorkerStats{{Received: 1000, Sent: 900, BusySeconds: 10}},
			Links:   []admin.LinkStats{{Name: "eth1", Up: true, Queues: []afxdp.Stats{{Received: 50}}}}},
		Backends: []admin.BackendInfo{
			backend("web", "10.0.1.20:80", admin.BackendUp, 5, 10, 1000, 5000),
			backend("web", "10.0.1.21:80", admin.BackendUp, 9, 90, 1000, 1000),
		}}
	now = &Sample{At: start.Add(2 * time.Second), Status: status,
		Stats: admin.Stats{Flows: 14, Opened: 5100, Dropped: 9, Verdicts: map[string]uint64{"forwarded": 9, "no_backend": 9},
			Workers: []admin.WorkerStats{{Received: 3001000, Sent: 2000900, BusySeconds: 11, Flows: 14}, {Flows: 2}},
			Links:   []admin.LinkStats{{Name: "eth1", Up: true, Queues: []afxdp.Stats{{Received: 250}}}, {Name: "eth2"}}},
		Backends: []admin.BackendInfo{
			backend("web", "10.0.1.20:80", admin.BackendUp, 6, 14, 251000, 505000),
			backend("web", "10.0.1.21:80", admin.BackendDown, 8, 290, 1000, 1000),
			backend("dns", "10.0.1.30:53", admin.BackendDrained, 0, 3, 0, 0), // new
		}}
	for i := range now.Backends { // one that is down is that first
		now.Backends[i].Health = &admin.BackendHealth{Suspect: &health.Suspicion{Since: start, Reason: "passive: 14 of 20 connections refused"}}
	}
	return before, now
}

func TestFrame(t *testing.T) {
	before, now := samples()
	want := strings.Split(strings.TrimPrefix(`
l4fwd 03:04:07  up 1h0m2s  pid 77  services 2  backends 3  reloads 1
flows 14  opened 2.50k/s  expired 0/s   packets in 1.50M/s  out 1.00M/s  dropped 2/s

WORKER   BUSY                               IN/S     OUT/S  HANDED/S     FLOWS
0        [||||||||||          ]  50.0%     1.50M     1.00M         0        14
1        [                    ]   0.0%         0         0         0         2

INTERFACE        STATE      IN/S     OUT/S    LOST/S
eth1             up          100         0         0
eth2             down          0         0         0

drops: no_backend 2/s   (l4fwd drops)

SERVICE BACKEND      STATE     WEIGHT    ACTIVE    NEW/S  TO BIT/S      FROM
web     10.0.1.20:80 suspect       10         6        2     1.00M     2.00M
dns     10.0.1.30:53 drained       10         0        0         0         0
web     10.0.1.21:80 down          10         8      100         0         0
3 backends by traffic, 1 suspect   (l4fwd health)`, "\n"), "\n")
	if diff := cmp.Diff(want, Frame(before, now, 100, 40, ByTraffic)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestOrders(t *testing.T) {
	before, now := samples()
	for by, want := range map[Order]string{ByTraffic: "20 30 21", ByNew: "21 20 30", ByActive: "21 20 30", ByName: "30 20 21"} {
		var got []string
		for _, l := range Frame(before, now, 100, 40, by) {
			if i := strings.Index(l, " 10.0.1."); i > 0 {
				got = append(got, l[i+8:i+10])
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("by %s: %v, want %s", by, got, want)
		}
	}
	seen := []Order{ByTraffic}
	for o := ByTraffic.Next(); o != ByTraffic; o = o.Next() {
		seen = append(seen, o)
	}
	if len(seen) != 4 || len(slices.Compact(seen)) != 4 {
		t.Errorf("orders in a circle: %v", seen)
	}
}

// TestFits: whatever the terminal's size, nothing is wider or higher; and a daemon that
// was started again between the samples makes no rate negative.
func TestFits(t *testing.T) {
	before, now := samples()
	for height := 1; height < 30; height++ {
		for width := 1; width < 90; width += 7 {
			lines := Frame(now, before, width, height, ByNew) // time and counters run backwards
			if len(lines) > height {
				t.Fatalf("%d lines of %d", len(lines), height)
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l) > width || strings.Contains(l, "-1") && !strings.Contains(l, "up -") {
					t.Fatalf("%d by %d: %q", width, height, l)
				}
			}
		}
	}
	before.At = now.At
	Frame(before, now, 80, 25, ByTraffic)
}

func TestScale(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1: "1", 1.5: "1.50", 9.999: "10", 42.4: "42", 999.4: "999", 999.6: "1.00k",
		1234: "1.23k", 12345: "12.3k", 123456: "123k", 9_999_999: "10.0M", 1e9: "1.00G", 5e13: "50T"} {
		if got := scale(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

func ExampleFrame() {
	s := &Sample{At: time.Unix(0, 0).UTC()}
	fmt.Println(Frame(s, s, 20, 1, ByName)[0])
	// Output: l4fwd 00:00:00  up 2
}

package web

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// shop is a Source and an Orderer of a site with something of everything on the page.
type shop struct {
	began time.Time
	mu    sync.Mutex
	order map[string]admin.Ordered // by backend
}

func newShop() *shop {
	now := time.Now()
	return &shop{began: now.Add(-time.Hour), order: map[string]admin.Ordered{
		"shop/10.0.1.21:8443": {Action: admin.Weigh, Weight: 5, Since: now.Add(-12 * time.Minute)},
		"mail/10.0.1.41:25":   {Action: admin.Drain, Since: now.Add(-26 * time.Hour)},
	}}
}

// since is what a counter of so many a second has come to.
func (s *shop) since(rate float64) uint64 { return uint64(time.Since(s.began).Seconds() * rate) }

func (s *shop) Status(context.Context) (admin.Status, error) {
	return admin.Status{PID: 4711, Started: time.Now().Add(-51 * time.Hour), Config: "/etc/l4fwd/l4fwd.yaml", Reloads: 3}, nil
}

func (s *shop) Stats(context.Context) (admin.Stats, error) {
	out := admin.Stats{Flows: 48213, Opened: s.since(2400), Dropped: s.since(13),
		Verdicts: map[string]uint64{"no_flow": 8123 + s.since(9), "no_backend": 412, "bad_ip_checksum": 77 + s.since(4), "ttl_exceeded": 12}}
	out.Services = []admin.ServiceStats{{Backends: []admin.BackendStats{{BytesTo: s.since(300e6)}}}}
	for i := range 4 {
		out.Workers = append(out.Workers, admin.WorkerStats{Received: s.since(310000 + float64(i)*9000), Flows: 12000 + i*37,
			BusySeconds: time.Since(s.began).Seconds() * (0.31 + 0.07*float64(i))})
	}
	for _, n := range []string{"eth1", "enp129s0f1np1"} {
		out.Links = append(out.Links, admin.LinkStats{Name: n, Up: n == "eth1", Queues: []afxdp.Stats{{Received: s.since(600000), Transmitted: s.since(590000)}, {}}})
	}
	return out, nil
}

func (s *shop) Services(context.Context) ([]admin.ServiceInfo, error) {
	return []admin.ServiceInfo{
		{Name: "shop", Address: netip.MustParseAddrPort("192.0.2.10:443"), Protocol: "tcp", Mode: "full-nat", Scheduler: "wlc", Backends: 3, Taking: 2, Flows: s.since(1900), Active: 41233},
		{Name: "dns", Address: netip.MustParseAddrPort("[2001:db8:10::53]:53"), Protocol: "udp", Mode: "dnat", Scheduler: "maglev", Backends: 2, Taking: 2, Flows: s.since(480), Active: 6980},
		{Name: "mail", Address: netip.MustParseAddrPort("192.0.2.25:25"), Protocol: "tcp", Mode: "dsr-l2", Scheduler: "rr", Backends: 2, Taking: 1, Flows: s.since(2), Active: 1},
	}, nil
}

func (s *shop) Backends(context.Context, string) ([]admin.BackendInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	up := &admin.BackendHealth{State: health.Up, Since: now.Add(-50 * time.Hour)}
	doubtful := &admin.BackendHealth{State: health.Up, Since: now.Add(-50 * time.Hour), Suspect: &health.Suspicion{
		Since: now.Add(-3 * time.Minute), Reason: "passive: 14 of 20 connections refused"}}
	refused := &admin.BackendHealth{State: health.Down, Since: now.Add(-4 * time.Minute), Reason: "dial tcp 10.0.1.22:8443: connection refused"}
	out := []admin.BackendInfo{
		{Service: "shop", Address: netip.MustParseAddrPort("10.0.1.20:8443"), Configured: 10, Health: up, Flows: s.since(980), Active: 20911, BytesTo: s.since(9e6), BytesFrom: s.since(190e6)},
		{Service: "shop", Address: netip.MustParseAddrPort("10.0.1.21:8443"), Configured: 10, Health: up, Flows: s.since(920), Active: 20322, BytesTo: s.since(5e6), BytesFrom: s.since(90e6)},
		{Service: "shop", Address: netip.MustParseAddrPort("10.0.1.22:8443"), Configured: 10, Health: refused, State: admin.BackendDown},
		{Service: "dns", Address: netip.MustParseAddrPort("[2001:db8:1::30]:53"), Configured: 1, Flows: s.since(240), Active: 3490, BytesTo: s.since(30e3), BytesFrom: s.since(80e3)},
		{Service: "dns", Address: netip.MustParseAddrPort("[2001:db8:1::31]:53"), Configured: 1, Health: doubtful, Flows: s.since(240), Active: 3490, BytesTo: s.since(30e3), BytesFrom: s.since(81e3)},
		{Service: "mail", Address: netip.MustParseAddrPort("10.0.1.40:25"), Configured: 1, Flows: s.since(2)},
		{Service: "mail", Address: netip.MustParseAddrPort("10.0.1.41:25"), Configured: 1, Active: 1},
	}
	for i := range out {
		b := &out[i]
		if b.Weight = b.Configured; b.State == "" {
			b.State = admin.BackendUp
		}
		o, ok := s.order[b.Service+"/"+b.Address.String()]
		if !ok {
			continue
		}
		b.Ordered, b.Weight = &o, o.Weight
		switch {
		case o.Action == admin.Disable:
			b.State, b.Active = admin.BackendDisabled, 0
		case b.Weight == 0:
			b.State = admin.BackendDrained
		}
	}
	return out, nil
}

func (s *shop) Health(context.Context, string) ([]admin.CheckedBackend, error) {
	now := time.Now()
	return []admin.CheckedBackend{{Service: "shop", Address: netip.MustParseAddrPort("10.0.1.22:8443"), History: []health.Change{
		{At: now.Add(-50 * time.Hour), From: health.Unknown, To: health.Up}, {At: now.Add(-4 * time.Minute), From: health.Up, To: health.Down, Reason: "connection refused"}}}}, nil
}

func (s *shop) Order(ctx context.Context, o admin.Order) (out []admin.BackendInfo, err error) {
	was, err := s.Backends(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, b := range was {
		key := b.Service + "/" + b.Address.String()
		if o.Backend != key && o.Backend != b.Address.String() {
			continue
		}
		s.mu.Lock()
		delete(s.order, key)
		if o.Action != admin.Enable {
			s.order[key] = admin.Ordered{Action: o.Action, Weight: o.Weight, Since: time.Now()}
		}
		s.mu.Unlock()
		out = append(out, b)
	}
	if out == nil {
		return nil, admin.Refusal(admin.ErrNotFound, errors.New("no service has the backend"))
	}
	return out, nil
}

// fill gives a page the ten minutes that it would have to wait for.
func (h *history) fill() {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range most {
		x := float64(k)
		h.points = append(h.points, point{
			At: now.Add(-time.Duration(most-k) * every).UnixMilli(), Bits: (2.2 + 0.3*math.Sin(x/14) + 0.05*math.Sin(x*7)) * 1e9, Packets: 3e5,
			Opened: 2300 + 200*math.Sin(x/9) + 40*math.Sin(x*5), Flows: int(47000 + 1500*math.Sin(x/20)), Dropped: math.Floor(14 + 60*math.Exp(-(x-80)*(x-80)/30)),
		})
	}
}

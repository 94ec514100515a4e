package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/docs"
)

// mostServices bounds what one answer lists.
const mostServices = 500

// snapshot is what was true at a time. It is not changed any more.
type snapshot struct {
	at       time.Time
	status   admin.Status
	stats    admin.Stats
	services []service
	backends map[string][]backend // by service
}

// service is a row of the page.
type service struct {
	admin.ServiceInfo
	Down      int    `json:"down"`    // backends, say health checks
	Suspect   int    `json:"suspect"` // say clients' connections
	BytesTo   uint64 `json:"bytes_to"`
	BytesFrom uint64 `json:"bytes_from"`
}

// backend is a row of a service that is open.
type backend struct {
	admin.BackendInfo
	History []health.Change `json:"history,omitempty"` // of its health, oldest first
}

// worker and nic count since the start, or since the NIC came into service.
type (
	worker struct {
		Received    uint64  `json:"received"`
		Sent        uint64  `json:"sent"`
		Flows       int     `json:"flows"`
		BusySeconds float64 `json:"busy_seconds"`
	}
	nic struct {
		Name     string `json:"name"`
		Up       bool   `json:"up"`
		Queues   int    `json:"queues"`
		Received uint64 `json:"received"`
		Sent     uint64 `json:"sent"`
		Lost     uint64 `json:"lost"` // came too fast
	}
)

// drop is a reason for which packets were dropped, with the words of drops.md.
type drop struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	Means  string `json:"means"`
	Do     string `json:"do"`
}

// overview is the answer that a page draws itself from.
type overview struct {
	At       int64        `json:"at"`      // Unix milliseconds
	Buttons  bool         `json:"buttons"` // there are some, for who has the token
	Status   admin.Status `json:"status"`
	Flows    int          `json:"flows"`
	Services []service    `json:"services"`
	Found    int          `json:"found"` // services, of which at most 500 are listed
	Workers  []worker     `json:"workers"`
	NICs     []nic        `json:"nics"`
	Drops    []drop       `json:"drops"`
	Points   []point      `json:"points"`
}

// take asks source for everything.
func take(ctx context.Context, source Source) (*snapshot, error) {
	n := &snapshot{at: time.Now(), backends: make(map[string][]backend)}
	var err error
	if n.status, err = source.Status(ctx); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if n.stats, err = source.Stats(ctx); err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	services, err := source.Services(ctx)
	if err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	backends, err := source.Backends(ctx, "")
	if err != nil && !errors.Is(err, admin.ErrNotFound) { // that is: there are none
		return nil, fmt.Errorf("backends: %w", err)
	}
	checked, err := source.Health(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	histories := make(map[health.Key][]health.Change, len(checked))
	for _, c := range checked {
		histories[health.Key{Service: c.Service, Backend: c.Address}] = c.History
	}
	for _, b := range backends {
		n.backends[b.Service] = append(n.backends[b.Service], backend{b, histories[health.Key{Service: b.Service, Backend: b.Address}]})
	}
	for _, s := range services {
		row := service{ServiceInfo: s}
		for i := range n.backends[s.Name] {
			b := &n.backends[s.Name][i]
			row.BytesTo, row.BytesFrom = row.BytesTo+b.BytesTo, row.BytesFrom+b.BytesFrom
			if b.State == admin.BackendDown {
				row.Down++
			}
			if b.Suspect() {
				row.Suspect++
			}
		}
		n.services = append(n.services, row)
	}
	return n, nil
}

// overview is what is to be seen at a glance, of the services whose name or address has
// find in it.
func (s *Server) overview(n *snapshot, find string) overview {
	o := overview{
		At: n.at.UnixMilli(), Buttons: s.guard.Ready(), Status: n.status, Flows: n.stats.Flows, Points: s.history.list(),
		Services: []service{}, Workers: []worker{}, NICs: []nic{}, Drops: dropsOf(&n.stats),
	}
	for _, row := range n.services {
		if !strings.Contains(row.Name, find) && !strings.Contains(row.Address.String(), find) {
			continue
		}
		if o.Found++; o.Found <= mostServices {
			o.Services = append(o.Services, row)
		}
	}
	for _, w := range n.stats.Workers {
		o.Workers = append(o.Workers, worker{w.Received, w.Sent, w.Flows, w.BusySeconds})
	}
	for _, l := range n.stats.Links {
		row := nic{Name: l.Name, Up: l.Up, Queues: len(l.Queues)}
		for _, q := range l.Queues {
			row.Received, row.Sent = row.Received+q.Received, row.Sent+q.Transmitted
			row.Lost += q.Kernel.RxDropped + q.Kernel.RxRingFull
		}
		o.NICs = append(o.NICs, row)
	}
	return o
}

// backendsOf are the backends of services, an empty list of those that there are not.
func (n *snapshot) backendsOf(services []string) map[string][]backend {
	out := make(map[string][]backend, len(services))
	for _, s := range services {
		out[s] = append([]backend{}, n.backends[s]...)
	}
	return out
}

// explained are the rows of drops.md by reason.
var explained = sync.OnceValue(func() map[string]docs.Drop {
	out := make(map[string]docs.Drop)
	for _, d := range docs.Drops() {
		out[d.Reason] = d
	}
	return out
})

// dropsOf are the reasons that there were, most frequent first.
func dropsOf(s *admin.Stats) []drop {
	out := []drop{}
	for v := range dataplane.NumVerdicts {
		if n := s.Verdicts[v.String()]; n > 0 && v.IsDrop() {
			d := explained()[v.String()]
			out = append(out, drop{v.String(), n, d.Means, d.Do})
		}
	}
	slices.SortFunc(out, func(a, b drop) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason)) })
	return out
}

package web

import (
	"sync"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
)

const (
	every = 5 * time.Second // a point of the history
	most  = 120             // points: ten minutes
)

// point is what was done in the seconds before a time.
type point struct {
	At      int64   `json:"at"`      // Unix milliseconds
	Bits    float64 `json:"bits"`    // a second, of IP packets as received, both directions
	Packets float64 `json:"packets"` // a second, received
	Opened  float64 `json:"opened"`  // flows a second
	Dropped float64 `json:"dropped"` // packets a second
	Flows   int     `json:"flows"`   // in the table
}

// totals are the counters that points are made of.
type totals struct {
	at                              time.Time
	bytes, packets, opened, dropped uint64
}

// history holds the last points, oldest first.
type history struct {
	mu     sync.Mutex
	before totals
	points []point
}

// add notes a point; the first call only where to count from.
func (h *history) add(at time.Time, s *admin.Stats) {
	now := totals{at: at, opened: s.Opened, dropped: s.Dropped}
	for i := range s.Workers {
		now.packets += s.Workers[i].Received
	}
	for i := range s.Services {
		for j := range s.Services[i].Backends {
			b := &s.Services[i].Backends[j]
			now.bytes += b.BytesTo + b.BytesFrom
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.before
	h.before = now
	seconds := at.Sub(was.at).Seconds()
	if was.at.IsZero() || seconds <= 0 {
		return
	}
	// A backend that a reload removes takes its bytes out of the sum.
	rate := func(was, now uint64) float64 {
		if now < was {
			return 0
		}
		return float64(now-was) / seconds
	}
	h.points = append(h.points, point{
		At: at.UnixMilli(), Bits: 8 * rate(was.bytes, now.bytes), Packets: rate(was.packets, now.packets),
		Opened: rate(was.opened, now.opened), Dropped: rate(was.dropped, now.dropped), Flows: s.Flows,
	})
	if n := len(h.points) - most; n > 0 {
		h.points = append(h.points[:0], h.points[n:]...)
	}
}

// list is a copy of the points.
func (h *history) list() []point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]point{}, h.points...)
}

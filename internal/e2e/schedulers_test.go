package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestSchedulers opens connections that stay, over two workers, and looks how many
// each of two real servers has.
func TestSchedulers(t *testing.T) {
	const conns, most = 40, 6
	r := network(t, testbed.TopologyOptions{Queues: 2}, testbed.SnifferOptions{})
	rows := []struct {
		name, scheduler, extra string
		weights                []int
		limit                  int
		want                   [2]int64
		off                    int64 // allowed deviation
	}{
		{name: "wrr", scheduler: "wrr", weights: []int{3, 1}, want: [2]int64{30, 10}, off: 3},
		{name: "lc", scheduler: "lc", want: [2]int64{20, 20}, off: 2},
		{name: "wlc", scheduler: "wlc", weights: []int{1, 3}, want: [2]int64{10, 30}, off: 2},
		{name: "p2c", scheduler: "p2c", want: [2]int64{20, 20}, off: 2},
		// Of every second mode, Full-NAT here: with DNAT a client's port that is still that of a
		// connection to another service, at the same server, gets the other server.
		{name: "sticky", scheduler: "rr", extra: "persistence: {timeout: 10m}", want: [2]int64{40, 0}},
		{name: "maglev", scheduler: "maglev", extra: "hash_table_size: 1021", want: [2]int64{20, 20}, off: 16},
		{name: "limited", scheduler: "wlc", limit: most, want: [2]int64{most, most},
			extra: "timeouts: {tcp_fin_wait: 1s, tcp_last_ack: 1s, tcp_time_wait: 1s, tcp_close_wait: 1s, tcp_syn_sent: 1s}"},
	}
	var services []testbed.Service
	for i, row := range rows {
		for _, f := range testbed.Families {
			services = append(services, testbed.Service{
				Name: fmt.Sprintf("%s-%s", row.name, f), Family: f, Port: uint16(9600 + i), BackendPort: testbed.PortHash,
				Protocol: "tcp", Mode: []string{fullNAT, dnat}[i%2], Scheduler: row.scheduler,
				Weights: row.weights, MaxConnections: row.limit, Extra: row.extra,
			})
		}
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(append(services, testbed.Services(0, fullNAT, "", "wrr")...)))
	r.warmUp()
	for i, row := range rows {
		for _, f := range testbed.Families {
			t.Run(fmt.Sprintf("%s-%s", row.name, f), func(t *testing.T) {
				to := netip.AddrPortFrom(r.VIP(f, 0), uint16(9600+i))
				n := conns
				if row.limit > 0 {
					n = 2 * row.limit
				}
				c, err := r.Client.OpenConns(t.Context(), to, n)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				if err := c.Exchange(1000, 1000, limit); err != nil {
					t.Error(err)
				}
				got := d.activeOf(t.Name()[len("TestSchedulers/"):])
				if row.name == "sticky" {
					slices.SortFunc(got[:], func(a, b int64) int { return int(b - a) })
				}
				for k := range got {
					if off := got[k] - row.want[k]; off > row.off || off < -row.off {
						t.Errorf("servers have %v connections, want %v", got, row.want)
						break
					}
				}
				if row.limit > 0 {
					r.full(t, d, to, c)
				}
			})
		}
	}
	d.stop()
}

// activeOf is how many flows each of a service's two backends has.
func (d *daemon) activeOf(service string) (active [2]int64) {
	for _, s := range d.stats().Services {
		if s.Name == service {
			for i, b := range s.Backends {
				active[i] = b.Active
			}
		}
	}
	return active
}

// full wants no connection more let in to a service whose backends are full, before
// some of those there are, c, have ended.
func (r *rig) full(t *testing.T, d *daemon, to netip.AddrPort, c *testbed.Conns) {
	t.Helper()
	before := d.stats().Verdicts["backends_full"]
	if one, err := r.Client.Dialer(1500*time.Millisecond).Dial("tcp", to.String()); err == nil {
		t.Errorf("connected to a service that is full: %v", one.Close())
	}
	if after := d.stats().Verdicts["backends_full"]; after == before {
		t.Error("no drop was counted")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	one, err := r.Client.Dialer(limit).Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = one.Close()
}

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// shortUDP lets UDP flows go quickly, so that what was full empties, and not before it is
// full, on a busy machine neither.
const shortUDP = "timeouts: {udp_one_way: 15s, udp_two_way: 15s}"

// TestTableFull: a full table refuses new flows and counts them; those it has
// go on, and when some have gone there is room again.
func TestTableFull(t *testing.T) {
	const flows = 1024
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	d := program{}.start(t, r.LB, r.Config(testbed.Services(0, fullNAT, "", "wrr"), fmt.Sprint("max_flows: ", flows), shortUDP))
	r.exhaust(d, 2*flows, []string{"table_full", "bucket_full"}, func(opened, all int) error {
		// Buckets of a small table fill unevenly.
		if all > flows || opened < flows/2 {
			return fmt.Errorf("%d flows were opened in a table of %d, which then held %d", opened, flows, all)
		}
		return nil
	})
}

// TestPortsExhausted: the same for local ports, of which every one is used.
func TestPortsExhausted(t *testing.T) {
	const ports, locals, servers = 3, 4, 2
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	d := program{}.start(t, r.LB, r.Config(testbed.Services(0, fullNAT, "", "wrr"), "local_port_range: 20000-20002", shortUDP))
	r.exhaust(d, 100, []string{"ports_exhausted"}, func(opened, _ int) error {
		if opened != ports*locals*servers {
			return fmt.Errorf("%d flows, want %d: every port of every local address to every server", opened, ports*locals*servers)
		}
		return nil
	})
}

// exhaust opens more UDP flows than there is room for, in each family, beside
// TCP connections that must not notice.
func (r *rig) exhaust(d *daemon, sockets int, reasons []string, fitted func(opened, all int) error) {
	t := r.t
	t.Helper()
	heard := r.hearAll()
	r.warmUp()
	for _, f := range testbed.Families {
		// A TCP flow has other ports than a UDP flow of the same number.
		conns, err := r.Client.OpenConns(t.Context(), r.vip(f, 0, testbed.PortHash), 4)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns.Close() })
		if err := conns.Exchange(1000, 1000, limit); err != nil {
			t.Error(err)
		}
		before := d.stats()
		after := r.crowd(d, r.vip(f, 0, testbed.PortEcho), sockets, before, reasons)
		if err := fitted(int(after.Opened-before.Opened), after.Flows); err != nil {
			t.Error(err)
		}
		if err := conns.Exchange(1000, 1000, limit); err != nil {
			t.Errorf("while full: %v", err)
		}
		d.until("flows to go", func(s stats) bool { return s.Flows < 100 && s.Flows < before.Flows+5 })
		if res, err := (testbed.Echo{To: r.vip(f, 0, testbed.PortEcho), Sockets: 10, Timeout: limit}).Run(t.Context(), r.Client); err != nil || res.OK != 10 {
			t.Errorf("with room again: %+v, %v", res, err)
		}
	}
	noneReset(t, heard)
	d.stop()
}

// lot is how many ask at a time: so few that a busy machine has room for their datagrams
// on all of their way.
const lot = 128

// crowd has more sockets ask than there is room for, lot by lot, each until every one has
// its answer or has been counted as refused for one of the reasons: in the end some are.
func (r *rig) crowd(d *daemon, to netip.AddrPort, sockets int, before stats, reasons []string) (after stats) {
	r.t.Helper()
	var answered atomic.Uint64
	var refused uint64
	for sent := 0; sent < sockets; {
		e := testbed.Echo{To: to, Sockets: min(lot, sockets-sent), Timeout: limit, OnAnswer: func() { answered.Add(1) }}
		sent += e.Sockets
		ctx, enough := context.WithCancel(r.t.Context())
		defer enough()
		ended := make(chan struct{})
		var res testbed.EchoResult
		go func() {
			defer close(ended)
			res, _ = e.Run(ctx, r.Client) // which is told when to end
		}()
		after = d.until(fmt.Sprintf("%s: each of %d datagrams to be answered or counted as %v", to, sent, reasons), func(s stats) bool {
			refused = 0
			for _, reason := range reasons {
				refused += s.Verdicts[reason] - before.Verdicts[reason]
			}
			// A flow without an answer yet may have had to make room for another.
			return answered.Load()+refused+s.Evicted-before.Evicted == uint64(sent)
		})
		enough()
		if <-ended; res.Wrong > 0 || res.OK+res.Lost != e.Sockets {
			r.t.Errorf("%s: %+v", to, res)
		}
	}
	if refused == 0 {
		r.t.Errorf("%s: none of %d was refused", to, sockets)
	}
	return after
}

// TestNoBackend: a service whose servers all have weight 0 stays silent and
// counts.
func TestNoBackend(t *testing.T) {
	for _, mode := range []string{fullNAT, dnat} {
		t.Run(mode, func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
			d := program{}.start(t, r.LB, r.Config(testbed.Services(0, mode, "", "wrr", 0, 0)))
			for _, f := range testbed.Families {
				c, err := r.Client.Dialer(quiet).Dial("tcp", netip.AddrPortFrom(r.VIP(f, 0), testbed.VIPPortHTTP).String())
				if err == nil {
					_ = c.Close()
				}
				if !timedOut(err) {
					t.Errorf("TCP: %v, want silence", err)
				}
				res, err := testbed.Echo{To: r.vip(f, 0, testbed.PortEcho), Timeout: quiet}.Run(t.Context(), r.Client)
				if err != nil || res.Lost != 1 {
					t.Errorf("UDP: %+v, %v", res, err)
				}
			}
			if s := d.stats(); s.Verdicts["no_backend"] < 4 || s.Opened != 0 {
				t.Errorf("stats: %+v", s)
			}
			noResets(t, r.client, r.behind[0], r.behind[1])
			d.stop()
		})
	}
}

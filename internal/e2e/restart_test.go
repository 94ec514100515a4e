package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestSilentConnections: kill -9 and a restart within 5 s. The flow table dies
// with the process, so old connections do not go on; but as long as they are
// silent nobody may reset them, and l4fwd and the kernel below it do not even
// if they speak.
func TestSilentConnections(t *testing.T) {
	for _, c := range []struct {
		mode    string
		oneArm  bool
		routing bool // the kernel under l4fwd is a router
	}{{fullNAT, false, false}, {fullNAT, true, true}, {dnat, false, false}} {
		t.Run(fmt.Sprintf("%s/one-arm=%t/ip_forward=%t", c.mode, c.oneArm, c.routing), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{OneArm: c.oneArm, Queues: 2}, testbed.SnifferOptions{})
			if err := r.Forwarding(c.routing); err != nil {
				t.Fatal(err)
			}
			silentConnections(t, r, scene{oneArm: c.oneArm, workers: 2, mode: c.mode})
		})
	}
}

func silentConnections(t *testing.T, r *rig, s scene) {
	const conns = 8
	everywhere := r.hearAll()
	d := r.start(s)
	r.warmUp()
	var silent, loud []*testbed.Conns
	for _, f := range testbed.Families {
		for _, list := range []*[]*testbed.Conns{&silent, &loud} {
			c, err := r.Client.OpenConns(t.Context(), r.vip(f, 0, testbed.PortHash), conns)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			if err := c.Exchange(1000, 1000, limit); err != nil {
				t.Fatal(err)
			}
			*list = append(*list, c)
		}
	}
	noneReset(t, everywhere)

	killed := time.Now()
	d.Kill()
	if on := attached(t, r.LB, r.LBDevices()); len(on) > 0 {
		t.Errorf("XDP is still attached to %v after kill -9", on)
	}
	// These speak to nobody for a while; the kernel must not answer for l4fwd.
	speak(t, loud, "without l4fwd")
	noneReset(t, everywhere)

	d = r.start(s)
	if gap := time.Since(killed); gap > 5*time.Second {
		t.Logf("the restart took %s on this machine: more than the 5 s that are promised for", gap)
	}
	r.warmUp() // new connections work
	hold := 5 * time.Second
	if testing.Short() {
		hold = 2 * time.Second
	}
	time.Sleep(hold) // the proof is that nothing happens
	noneReset(t, everywhere)

	before := d.stats().Verdicts["no_flow"]
	speak(t, silent, "although its flow is gone")
	if now := d.stats().Verdicts["no_flow"]; now <= before {
		t.Errorf("no_flow counted %d before and %d after connections without a flow spoke", before, now)
	}
	noneReset(t, everywhere)
	d.stop()
}

// speak has all connections send; nobody may answer.
func speak(t *testing.T, all []*testbed.Conns, when string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if err := c.Exchange(1000, 1000, quiet); err == nil {
				t.Errorf("a connection goes on %s", when)
			}
		})
	}
	wg.Wait()
}

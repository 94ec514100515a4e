package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestRaceDetector runs l4fwd built with the race detector with two workers
// that hand packets over, a NIC that goes and returns, and everything the
// control plane does meanwhile. Any report is in the log, which every test
// searches. The detector does not see the kernel's side of the rings.
func TestRaceDetector(t *testing.T) {
	s := scene{workers: 2, mode: fullNAT}
	r := &rig{Topology: testbed.Up(t, testbed.TopologyOptions{Queues: 2}), t: t}
	servers, err := r.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	r.servers = servers
	t.Cleanup(func() { _ = testbed.CloseServers(servers) })
	p := program{race: true, args: []string{"--workers", fmt.Sprint(s.workers)}}
	d := p.start(t, r.LB, r.Config(append(testbed.Services(0, fullNAT, "toa", "wrr", weights...), testbed.Services(1, dnat, "", "maglev")...)))
	r.warmUp()
	for vip := range 2 {
		for _, f := range testbed.Families {
			l := testbed.HTTPLoad{To: r.vip(f, vip, testbed.VIPPortHTTP), Requests: 300, Timeout: limit}
			if res, err := l.Run(t.Context(), r.Client); err != nil || res.OK != l.Requests {
				t.Errorf("%d of %d requests answered, %v: %v", res.OK, l.Requests, err, res.Errors)
			}
			e := testbed.Echo{To: r.vip(f, vip, testbed.PortEcho), Sockets: 20, Count: 5, Timeout: limit}
			if res, err := e.Run(t.Context(), r.Client); err != nil || res.OK != 100 {
				t.Errorf("UDP echo: %+v, %v", res, err)
			}
			tr := testbed.Transfer{To: r.vip(f, vip, testbed.PortHash), Up: 4 << 20, Down: 4 << 20}
			if _, err := tr.Run(t.Context(), r.Client); err != nil {
				t.Error(err)
			}
		}
	}
	var handed uint64
	for _, w := range d.stats().Workers {
		handed += w.HandedOver
	}
	if handed == 0 {
		t.Error("the workers have handed nothing over")
	}
	stop := r.background()
	r.cut(d, false)
	r.mend(d, false)
	stop()
	d.stop()
}

// TestStatsFile: the file says what the log says after SIGUSR1.
func TestStatsFile(t *testing.T) {
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	d := r.start(scene{workers: 1, mode: fullNAT})
	r.warmUp()
	want := d.stats()
	await(t, "the stats file to catch up", func() error {
		b, err := os.ReadFile(d.statsFile)
		if err != nil {
			return err
		}
		var got stats
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("half a stats file? %v\n%s", err, b)
		}
		if got.Opened < want.Opened || got.forwarding() < want.forwarding() || len(got.Services) != len(want.Services) {
			return fmt.Errorf("file %+v, log %+v", got, want)
		}
		return nil
	})
	d.stop()
}

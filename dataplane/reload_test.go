package dataplane

import (
	"fmt"
	"testing"
)

// TestFlowsOutliveTheirService: a service and its local address are taken out
// of the configuration; flows go on whatever queue their packets come by, new
// ones are refused.
func TestFlowsOutliveTheirService(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		t.Run(vip, func(t *testing.T) {
			const workers = 3
			r := newRig(t, workers, testSpec())
			g := NewRegistry(workers)
			snap, err := g.Build(testSpec())
			if err != nil {
				t.Fatal(err)
			}
			r.dp.Publish(snap)
			var all []*conv
			for i := range 30 {
				all = append(all, r.open(i%workers, fmt.Sprintf("198.51.100.7:%d", 20000+i), vip))
			}
			spec := testSpec()
			spec.Locals = spec.Locals[1:]
			kept := spec.Services[:0]
			for _, s := range spec.Services {
				if s.VIP.Addr != endpoint(vip, 6).Addr {
					kept = append(kept, s)
				}
			}
			spec.Services = kept
			if snap, err = g.Build(spec); err != nil {
				t.Fatal(err)
			}
			r.dp.Publish(snap)
			for _, c := range all {
				for c.worker = range workers {
					c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
					c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})
				}
			}
			before := r.counts().Opened
			if out := r.deliver(0, 0, build(t, seg{src: "198.51.100.9:999", dst: vip, syn: true})); len(out) != 0 || r.counts().Opened != before {
				t.Errorf("a new flow to a service that is gone: %+v", out)
			}
		})
	}
}

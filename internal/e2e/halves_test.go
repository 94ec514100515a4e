package e2e

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// halves are the services of a DNAT whose two halves know nothing of each other.
func halves(weights ...int) []testbed.Service {
	out := testbed.Services(0, dnat, "", "wrr", weights...)
	for i := range out {
		back := out[i]
		out[i].Extra = "replies: elsewhere"
		back.Name, back.Mode = back.Name+"-return", "snat"
		out = append(out, back)
	}
	return out
}

// TestHalves: the forward half of DNAT sees clients only, the return half servers
// only, and between them connections work as by one. Here both are of one process,
// but answers have no flow to go by: as many as the forward half has, all of the
// clients' half.
func TestHalves(t *testing.T) {
	all := []scene{{false, 1, dnat}, {true, 2, dnat}}
	if !testing.Short() {
		all = append(all, scene{false, 2, dnat}, scene{true, 1, dnat})
	}
	for _, s := range all {
		t.Run(s.String(), func(t *testing.T) {
			z := load()
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{Every: z.sampled})
			d := program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(r.t, r.LB, r.Config(halves(weights...)))
			r.warmUp()
			before := d.stats()
			for _, f := range testbed.Families {
				t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
				t.Run(f.String()+"/udp", func(t *testing.T) { r.echo(t, s, f) })
				t.Run(f.String()+"/bulk", func(t *testing.T) {
					tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: z.bytes, Down: z.bytes, Seed: 1}
					if _, err := tr.Run(t.Context(), r.Client); err != nil {
						t.Fatal(err)
					}
				})
			}
			after := d.stats()
			if diff := cmp.Diff(map[string]uint64{}, after.drops(before)); diff != "" {
				t.Errorf("drops (-want +got)\n%s", diff)
			}
			if after.Verdicts["replied"] == before.Verdicts["replied"] || after.Verdicts["passed"] != before.Verdicts["passed"] {
				t.Errorf("%v", after.Verdicts)
			}
			r.checkAddresses(s.mode)
			d.stop()
		})
	}
}

package e2e

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestNAT64: IPv6 clients get answers from IPv4 servers, beside IPv4 clients of
// the same servers by the same local addresses, and meet nobody but the VIP.
func TestNAT64(t *testing.T) {
	rows := []scene{{false, 1, fullNAT}, {true, 2, fullNAT}}
	if !testing.Short() {
		rows = append(rows, scene{true, 1, fullNAT}, scene{false, 2, fullNAT})
	}
	for _, s := range rows {
		t.Run(s.String(), func(t *testing.T) {
			z := load()
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{Every: z.sampled})
			r.toa = true
			r.nat64(t, s, z)
		})
	}
}

func (r *rig) nat64(t *testing.T, s scene, z sizes) {
	all := r.services(kind{fullNAT, testbed.V6, testbed.V4, 0, ""}, weights...)
	all = append(all, r.services(kind{fullNAT, testbed.V4, testbed.V4, 0, ""}, weights...)...)
	d := program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	before := d.stats()
	t.Run("http", func(t *testing.T) { r.http(t, s, testbed.V6) }) // TOA included
	t.Run("udp", func(t *testing.T) { r.echo(t, s, testbed.V6) })
	t.Run("http/v4", func(t *testing.T) { r.http(t, s, testbed.V4) })
	if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
		t.Errorf("drops (-want +got)\n%s", diff)
	}
	t.Run("transfer", func(t *testing.T) {
		tr := testbed.Transfer{To: r.vip(testbed.V6, 0, testbed.PortHash), Up: z.bytes, Down: z.bytes, Seed: 1}
		res, err := tr.Run(t.Context(), r.Client)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d MiB each way in %s", z.bytes>>20, res.Duration)
	})
	// The MSS in the SYN-ACK leaves room, so nothing was too big on its way.
	if n := d.stats().Verdicts["too_big"]; n > 0 {
		t.Errorf("%d packets were too big", n)
	}
	r.checkAddresses(fullNAT)
	r.checkTOA(s)
	for i, b := range r.behind {
		six := false
		for _, clients := range b.TOA() {
			six = six || testbed.FamilyOf(clients[0].Addr()) == testbed.V6
		}
		if !six {
			t.Errorf("rs%d has seen no TOA option with an IPv6 address", i+1)
		}
		if n := b.Report(); n.V6 > n.ICMP {
			t.Errorf("rs%d has seen %d IPv6 packets", i+1, n.V6)
		}
	}
	d.stop()
}

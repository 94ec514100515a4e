package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestOnePacket: every datagram of a socket goes to a real server of its own, all
// of them are answered, by the VIP, and no flow outlives its answer by long.
func TestOnePacket(t *testing.T) {
	const vips = 2 // DNAT behind the second
	for _, workers := range []int{1, 2} {
		r := network(t, testbed.TopologyOptions{Queues: workers}, testbed.SnifferOptions{})
		var services []testbed.Service
		for vip, mode := range []string{fullNAT, dnat} {
			for _, s := range testbed.Services(vip, mode, "", "rr") {
				if s.Protocol == "udp" {
					s.Extra = "one_packet: true"
				}
				services = append(services, s)
			}
		}
		d := program{args: []string{"--workers", fmt.Sprint(workers)}}.start(t, r.LB, r.Config(services))
		r.warmUp()
		before := d.stats()
		for _, f := range testbed.Families {
			for vip := range vips {
				// One socket's datagrams are all at one worker, and take its turns.
				e := testbed.Echo{To: r.vip(f, vip, testbed.PortEcho), Count: 40, Size: 200, Timeout: 10 * time.Second}
				res, err := e.Run(t.Context(), r.Client)
				want := map[string]int{"rs1": e.Count / 2, "rs2": e.Count / 2}
				if diff := cmp.Diff(want, res.ByServer); diff != "" || err != nil || res.OK != e.Count || res.Wrong != 0 {
					t.Errorf("%d workers, %s: %+v, %v; by server (-want +got)\n%s", workers, e.To, res, err, diff)
				}
			}
		}
		await(t, "no flow of a datagram", func() error {
			n := int64(0)
			for _, s := range d.stats().Services {
				for _, b := range s.Backends {
					if strings.HasPrefix(s.Name, "echo") { // warmUp has flows of others
						n += b.Active
					}
				}
			}
			if n != 0 {
				return fmt.Errorf("%d flows", n)
			}
			return nil
		})
		if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
			t.Errorf("drops (-want +got)\n%s", diff)
		}
		d.stop()
	}
}

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestFragments: datagrams of 8,000 bytes, which the client's kernel and the
// servers' cut and put together, pass both ways, and not one is lost; TCP beside
// them is what it was.
func TestFragments(t *testing.T) {
	rows := []scene{{false, 1, fullNAT}, {false, 2, dnat}, {true, 2, fullNAT}}
	if !testing.Short() {
		rows = scenes(false)
	}
	for _, s := range rows {
		t.Run(s.String(), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{})
			r.farApart()
			d := r.start(s)
			r.warmUp()
			before := d.stats()
			// First what asks the sniffers for TOA, then what keeps them busy.
			for _, f := range testbed.Families {
				t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
			}
			for _, f := range testbed.Families {
				t.Run(f.String()+"/udp", func(t *testing.T) { r.echoLarge(t, s, f) })
			}
			if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
				t.Errorf("drops (-want +got)\n%s", diff)
			}
			// What the client sees leave it, and arrive, is five whole fragments and
			// a short one for each datagram.
			want := uint64(load().echoes) * 2 * uint64(len(testbed.Families)) * 12
			await(t, "all fragments at the client", func() error {
				if n := r.client.Report().Fragments; n != want {
					return fmt.Errorf("%d fragments, want %d", n, want)
				}
				return nil
			})
			r.checkAddresses(s.mode)
			d.stop()
		})
	}
}

// farApart lets the ends put IPv4 datagrams together however many other fragments
// of the same source come in between. By default Linux gives up at 64: many
// clients' fragments behind one address are more (net.ipv4.ipfrag_max_dist).
func (r *rig) farApart() {
	r.t.Helper()
	for _, ns := range append([]*testbed.Namespace{r.Client}, r.Topology.Servers...) {
		if err := ns.Sysctl("net.ipv4.ipfrag_max_dist", "0"); err != nil {
			r.t.Fatal(err)
		}
	}
}

// echoLarge is echo with datagrams that no frame holds.
func (r *rig) echoLarge(t *testing.T, s scene, f testbed.Family) {
	e := testbed.Echo{To: r.vip(f, 0, testbed.PortEcho), Sockets: load().echoes, Count: 2, Size: 8000, Timeout: 10 * time.Second, AtATime: 16}
	res, err := e.Run(t.Context(), r.Client)
	if err != nil || res.OK != e.Sockets*e.Count || res.Wrong != 0 || res.Moved != 0 {
		t.Errorf("UDP echo: %+v, %v", res, err)
	}
	r.checkPeers(t, s, f, res.ByRemote)
	t.Logf("%d datagrams of %d bytes each way", res.OK, e.Size)
}

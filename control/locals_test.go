package control

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestLocalsAreForgotten: more local addresses come and go than there are ids, and a
// connection keeps its own all the while.
func TestLocalsAreForgotten(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1, Queues: 2})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "", "wrr"), append(small, "workers: 2", "drain_timeout: 0s")...))
	base := d.cfg
	open := w.call(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP)
	w.mustSay(open)
	none := func() {
		t.Helper()
		eventually(t, "the former ones are forgotten", func() bool {
			left := 0
			check(t, d.onLoop(t.Context(), func() { left, _ = d.registry.LeftLocals() }))
			return left == 0
		})
	}
	const atATime = 30000
	for turn := range 4 {
		c := *base
		first := netip.AddrFrom4([4]byte{10, 128 + byte(turn), 0, 1})
		last := netip.AddrFrom4([4]byte{10, 128 + byte(turn), atATime >> 8, atATime & 255})
		c.LocalAddresses = append(slices.Clone(base.LocalAddresses), config.LocalRange{First: first, Last: last, Ports: base.LocalPorts})
		none()
		if _, err := d.Reload(t.Context(), &c, false); err != nil {
			t.Fatal(err)
		}
		w.mustSay(open)
	}
	if _, err := d.Reload(t.Context(), base, false); err != nil {
		t.Fatal(err)
	}
	none()
	w.mustSay(open)
	w.ask(w.VIP(testbed.V4, 0), 8)
	d.noneLost()
	d.end()
	w.clean()
}

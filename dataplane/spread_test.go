package dataplane

import (
	"fmt"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// TestEightQueueNIC: packets arrive where a NIC with 8 queues puts them. Where
// that is known at least 99 % of the replies meet their flow without being
// handed over, in truth all; where it is not, the local port names the owner and
// the others are handed over. Either way every flow is served.
func TestEightQueueNIC(t *testing.T) {
	for _, workers := range []int{2, 4, 8} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d workers, known %v", workers, known), func(t *testing.T) {
				spec := soakSpec()
				spec.Services = slices.DeleteFunc(spec.Services, func(s ServiceSpec) bool { return s.Mode != conntrack.FullNAT })
				nic := microsoftNIC(t, workers)
				var told *rss.Spread
				if known {
					told = nic.told(t)
				}
				const flows = 5_000
				s := newSoak(t, workers, flows, spec, told)
				replies, strays := 0, 0
				s.spray = func(nicNumber int, w *wire) int {
					arrives := nic.worker(w.src, w.dst, w.sport, w.dport)
					if nicNumber == 1 { // a reply
						tu := packet.Tuple{Src: w.src, Dst: w.dst, SrcPort: w.sport, DstPort: w.dport}
						replies++
						if arrives != s.dp.Workers[0].owners.reply(&tu) {
							strays++
						}
					}
					return arrives
				}
				s.run(flows, false)
				n := s.counts()
				t.Logf("%d replies, %d to be handed over; %d of %d packets were", replies, strays, n.Verdicts[HandedOver], n.Received)
				if n.Drops() != 0 || n.Opened < flows || replies < flows || n.Adopted != n.Verdicts[HandedOver] {
					t.Errorf("%+v", n)
				}
				if known && (strays*100 > replies || n.Verdicts[HandedOver]*100 > n.Received) {
					t.Error("more than 1 % of replies are not at home")
				}
				if others := replies * (workers - 1) / workers; !known && (strays < others*9/10 || strays > others*11/10) {
					t.Errorf("%d replies handed over, expected about %d", strays, others)
				}
				for _, w := range s.dp.Workers {
					if c := w.Counts(); c.Opened < n.Opened/uint64(workers)/2 {
						t.Errorf("worker %d has %d of %d flows", w.ID(), c.Opened, n.Opened)
					}
				}
				s.quiet()
			})
		}
	}
}

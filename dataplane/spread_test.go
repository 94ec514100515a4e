package dataplane

import (
	"encoding/hex"
	"fmt"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// microsoftKey is the key of "Verifying the RSS hash calculation", which many
// drivers have as their default.
const microsoftKey = "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"

// eightQueues is a NIC with 8 queues and that key, over so many workers.
func eightQueues(t *testing.T, workers int) *rss.Spread {
	t.Helper()
	key, err := hex.DecodeString(microsoftKey)
	if err != nil {
		t.Fatal(err)
	}
	indirection := make([]uint32, 128)
	for i := range indirection {
		indirection[i] = uint32(i % 8)
	}
	s, err := rss.New(key, indirection, workers)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

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
				nic := eightQueues(t, workers)
				told := nic
				if !known {
					told = nil
				}
				const flows = 5_000
				s := newSoak(t, workers, flows, spec, told)
				replies, strays := 0, 0
				s.spray = func(nicNumber int, w *wire) int {
					tu := packet.Tuple{Src: w.src, Dst: w.dst, SrcPort: w.sport, DstPort: w.dport}
					arrives := nic.Worker(&tu)
					if nicNumber == 1 { // a reply
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

package dataplane

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/packet"
)

// limitedSpec is a UDP service with backends of the limits given.
func limitedSpec(k balance.Kind, limits ...uint32) Spec {
	spec := testSpec()
	s := spec.Services[9] // dnat4u
	s.Scheduler, s.Backends, s.HashSlots = k, nil, 251
	for i, n := range limits {
		s.Backends = append(s.Backends, BackendSpec{
			Endpoint: endpoint(fmt.Sprintf("10.0.1.%d:5000", 20+i), packet.ProtoUDP), Weight: 1, MaxConnections: n,
		})
	}
	spec.Services = []ServiceSpec{s}
	return spec
}

// datagrams gives worker so many datagrams of clients of their own and returns how
// many went on.
func (r *rig) datagrams(worker, from, n int) (sent int) {
	r.t.Helper()
	for i := range n {
		c := from + i
		sent += len(r.deliver(worker, 0, build(r.t, seg{src: fmt.Sprintf("198.51.100.%d:%d", 1+c/60000, 1024+c%60000), dst: "192.0.2.11:5000", udp: true})))
	}
	return sent
}

// active is how many flows each backend has.
func (r *rig) active() []int64 {
	var sum []BackendCount
	for _, w := range r.dp.Workers {
		for id, c := range w.BackendCounts() {
			if id == len(sum) {
				sum = append(sum, BackendCount{})
			}
			sum[id].Add(&c)
		}
	}
	out := make([]int64, len(sum))
	for id := range sum {
		out[id] = sum[id].Active
	}
	return out
}

// TestMaxConnections: with whatever scheduler and on however many workers, every
// backend gets as many flows as it may have and not one more, and as many again when
// those have ended.
func TestMaxConnections(t *testing.T) {
	for _, k := range []balance.Kind{
		balance.RoundRobin, balance.WeightedRoundRobin, balance.LeastConn, balance.WeightedLeastConn,
		balance.SourceHash, balance.Maglev, balance.TwoChoices,
	} {
		for _, workers := range []int{1, 3} {
			t.Run(fmt.Sprint(k, workers), func(t *testing.T) {
				spec := limitedSpec(k, 5, 40, 1)
				r := newRig(t, workers, spec)
				for round := range 2 {
					if sent := r.datagrams(round%workers, 100*round, 60); sent != 46 {
						t.Errorf("%d let in, 46 may be", sent)
					}
					if diff := cmp.Diff([]int64{5, 40, 1}, r.active()); diff != "" {
						t.Error(diff)
					}
					if n := r.counts().Verdicts[DropBackendsFull]; n != uint64(14*(round+1)) {
						t.Errorf("%d dropped", n)
					}
					for range 20 { // they idle out, in portions
						r.now += int64(30 * time.Second)
						r.step()
					}
					if diff := cmp.Diff([]int64{0, 0, 0}, r.active()); diff != "" {
						t.Error(diff)
					}
				}
			})
		}
	}
}

// TestNoLimitBesideOne: a backend without a limit takes what the others do not.
func TestNoLimitBesideOne(t *testing.T) {
	r := newRig(t, 2, limitedSpec(balance.RoundRobin, 3, 0))
	if sent := r.datagrams(0, 0, 50); sent != 50 {
		t.Errorf("%d let in", sent)
	}
	if diff := cmp.Diff([]int64{3, 47}, r.active()); diff != "" {
		t.Error(diff)
	}
}

// TestLimitChanges: a limit that comes late or is lowered ends no flow, and lets
// nobody in before there are fewer; one that is raised lets more in.
func TestLimitChanges(t *testing.T) {
	const workers = 2
	r := newRig(t, workers, limitedSpec(balance.RoundRobin, 0))
	g := NewRegistry(workers)
	next := 0
	for i, step := range []struct {
		limit  uint32
		active int64 // after 20 more have tried
	}{{0, 20}, {10, 20}, {20, 20}, {25, 25}, {21, 25}, {0, 45}, {50, 50}, {46, 50}, {51, 51}} {
		snap, err := g.Build(limitedSpec(balance.RoundRobin, step.limit))
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
		r.datagrams(i%workers, next, 20)
		next += 20
		if diff := cmp.Diff([]int64{step.active}, r.active()); diff != "" {
			t.Errorf("step %d, limit %d: %s", i, step.limit, diff)
		}
	}
}

// TestLimitOutlivesDraining: flows that end while their service drains leave room for
// others once it is back, and those that live on still count.
func TestLimitOutlivesDraining(t *testing.T) {
	const workers, limit = 2, 10
	spec := limitedSpec(balance.RoundRobin, limit)
	draining := limitedSpec(balance.RoundRobin, limit)
	draining.Services[0].Draining = true
	r := newRig(t, workers, spec)
	_, publish := r.publisher(workers)
	publish(spec)
	for round := range 3 {
		r.datagrams(round%workers, 1000*round, 2*limit)
		publish(draining)
		publish(spec)
		r.datagrams(round%workers, 1000*round+100, limit)
		if diff := cmp.Diff([]int64{limit}, r.active()); diff != "" {
			t.Errorf("round %d, with all flows alive: %s", round, diff)
		}
		publish(draining)
		for range 20 { // they idle out, in portions
			r.now += int64(30 * time.Second)
			r.step()
		}
		publish(spec)
	}
	r.datagrams(0, 9000, 2*limit)
	if diff := cmp.Diff([]int64{limit}, r.active()); diff != "" {
		t.Errorf("at last: %s", diff)
	}
}

// TestLeasesAreGivenBack: with leases of many flows the limit is never overrun, what
// one worker leaves another may use, and what is held in vain is bounded.
func TestLeasesAreGivenBack(t *testing.T) {
	const workers, limit = 4, 4 * 64 * 8 // leases of 8
	snap, err := NewRegistry(workers).Build(limitedSpec(balance.RoundRobin, limit))
	if err != nil {
		t.Fatal(err)
	}
	l := snap.leases[0]
	if l.chunk != 8 {
		t.Fatalf("leases of %d", l.chunk)
	}
	var ws []*Worker
	for id := range workers {
		w := &Worker{id: id, snap: snap, here: &snap.Locality[id]}
		w.ways = w.here.ways
		ws = append(ws, w)
	}
	open := func(w *Worker) bool {
		if !w.hold(0) {
			return false
		}
		w.here.Backends[0].Active++
		w.tell(0)
		return true
	}
	total := func() (n int64) {
		for _, w := range ws {
			n += w.here.Backends[0].Active
		}
		return n
	}
	for open(ws[0]) {
	}
	if total() != limit {
		t.Fatalf("one worker has %d of %d", total(), limit)
	}
	for i := range limit { // all end, and another worker opens as many as it can
		ws[0].ended(0)
		for open(ws[1]) {
		}
		if lost := limit - total(); lost < 0 || lost > 2*(l.chunk-1) {
			t.Fatalf("after %d: %d of %d", i, total(), limit)
		}
	}
	// All at once, as fast as they can.
	var all sync.WaitGroup
	for _, w := range ws {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := range 20_000 {
				if i%3 == 0 && w.here.Backends[0].Active > 0 {
					w.ended(0)
				} else {
					open(w)
				}
			}
		}()
	}
	all.Wait()
	var held int64
	for _, w := range ws {
		held += w.here.held[0]
		if w.here.Backends[0].Active > w.here.held[0] {
			t.Errorf("worker %d has %d flows and may have %d", w.id, w.here.Backends[0].Active, w.here.held[0])
		}
	}
	if left := l.from.left.Load(); held+left != limit {
		t.Errorf("%d held, %d left of %d", held, left, limit)
	}
	if snap.loads.Sum(0) != uint64(total()) {
		t.Errorf("%d told, %d there", snap.loads.Sum(0), total())
	}
}

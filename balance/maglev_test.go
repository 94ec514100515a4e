package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// owners is the table as ids, what two Sets can be compared by.
func owners(s *Set) []uint32 {
	out := make([]uint32, len(s.order))
	for i, b := range s.order {
		out[i] = s.ids[b]
	}
	return out
}

func moved(a, b []uint32) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestSlots(t *testing.T) {
	for _, m := range slotSizes {
		if err := checkSlots(m, 1); err != nil {
			t.Error(err)
		}
	}
	for _, c := range [][2]int{{0, 65537}, {1, 65537}, {655, 65537}, {656, 131101}, {1000, 131101}, {MaxBackends, MaxSlots}} {
		if got := Slots(c[0]); got != c[1] {
			t.Errorf("Slots(%d) = %d, want %d", c[0], got, c[1])
		}
	}
}

// slowTable is the definition: each slot's backend is the one that comes to it first,
// of equals the first by identity.
func slowTable(backends []Backend, m uint32, seed uint64) []uint16 {
	times := []uint64{0}
	for k := range m - 1 {
		times = append(times, times[k]+unit/uint64(m-k))
	}
	first, out := make([]uint64, m), make([]uint16, m)
	for i := range backends {
		w := newWalk(&backends[i], m, seed)
		for w.passed < m {
			if t := w.when(times); i == 0 || t < first[w.slot] {
				first[w.slot], out[w.slot] = t, uint16(i)
			}
			w.passed, w.slot = w.passed+1, (w.slot+w.skip)%m
		}
	}
	return out
}

func TestMaglevLikeDefinition(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {1, 1}, {3, 1, 2}, same(20, 1), {655, 100, 7}} {
		for _, m := range []uint32{251, 65537} {
			b := farm(weights...)
			slices.SortFunc(b, compareIdentity)
			if !slices.Equal(slowTable(b, m, 9), maglevTable(b, m, 9)) {
				t.Errorf("weights %v, %d slots: tables differ", weights, m)
			}
		}
	}
}

// Shares of the table follow the weights, each within five standard deviations.
func TestMaglevShares(t *testing.T) {
	many := make([]uint32, 1000)
	for i := range many {
		many[i] = uint32(i%100 + 1)
	}
	for _, weights := range [][]uint32{same(3, 1), same(100, 1), same(1000, 7), {1, 2, 3}, {1, 1, 100}, {65535, 1000, 1000}, many} {
		t.Run(fmt.Sprint(len(weights), weights[0]), func(t *testing.T) {
			s := mustNew(t, Maglev, farm(weights...), 1)
			var sum float64
			for _, w := range weights {
				sum += float64(w)
			}
			count := make([]float64, len(weights))
			for _, id := range owners(s) {
				count[id-100]++
			}
			worst := 0.0
			for i, w := range weights {
				due := float64(len(s.order)) * float64(w) / sum
				worst = max(worst, math.Abs(count[i]-due)/due)
				if d := math.Abs(count[i] - due); d > 5*math.Sqrt(due*(1-float64(w)/sum)/2)+1 {
					t.Errorf("backend %d: %v slots, %v due", i, count[i], due)
				}
			}
			t.Logf("worst: %.1f %% of what is due", 100*worst)
		})
	}
}

// Every live backend has a slot even where its share is below one.
func TestMaglevNobodyStarves(t *testing.T) {
	for _, c := range []struct {
		slots   int
		weights []uint32
	}{
		{251, append([]uint32{65535}, same(250, 1)...)},
		{251, append([]uint32{65535}, same(100, 1)...)},
		{0, append([]uint32{65535}, same(5000, 1)...)},
	} {
		s := mustNewOf(t, Policy{Kind: Maglev, Slots: c.slots}, farm(c.weights...), 1)
		seen := map[uint32]bool{}
		for _, id := range owners(s) {
			seen[id] = true
		}
		if len(seen) != len(c.weights) {
			t.Errorf("%d of %d backends have a slot", len(seen), len(c.weights))
		}
	}
}

func TestHashKindsIgnoreOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := farm(rapid.SliceOfN(rapid.Uint32Range(0, 9), 1, 30).Draw(t, "weights")...)
		kind := rapid.SampledFrom([]Kind{SourceHash, Maglev}).Draw(t, "kind")
		one, err := New(Policy{Kind: kind, Slots: 251}, b, 7)
		if err != nil {
			t.Fatal(err)
		}
		two, err := New(Policy{Kind: kind, Slots: 251}, rapid.Permutation(b).Draw(t, "order"), 7)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(owners(one), owners(two)) {
			t.Fatal("another order of the backends gave another table")
		}
	})
}

func TestMaglevSeeds(t *testing.T) {
	b := farm(same(10, 1)...)
	n := moved(owners(mustNew(t, Maglev, b, 1)), owners(mustNew(t, Maglev, b, 2)))
	if share := float64(n) / 65537; share < 0.85 || share > 0.95 {
		t.Errorf("another seed moved %.2f of the table, want about 0.90", share)
	}
}

// When one of N leaves or comes back, its own slots move and no others, whatever the
// weights. The bound wanted is 2/N.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{2, 3, 10, 50, 100, 200, 500, 1000} {
		for _, heaviest := range []uint32{1, 7} {
			t.Run(fmt.Sprint(n, heaviest), func(t *testing.T) {
				var weights []uint32
				for i := range n {
					weights = append(weights, uint32(i)%heaviest+1)
				}
				slots := Slots(n)
				with := owners(mustNew(t, Maglev, farm(weights...), 3))
				r := rand.New(rand.NewPCG(uint64(n), 1))
				for range 3 {
					gone := r.IntN(n)
					w := slices.Clone(weights)
					w[gone] = 0
					without := owners(mustNew(t, Maglev, farm(w...), 3))
					if slices.Contains(without, uint32(100+gone)) {
						t.Fatal("the backend that left is still in the table")
					}
					its := 0
					for _, id := range with {
						if id == uint32(100+gone) {
							its++
						}
					}
					m := moved(with, without)
					if m != its {
						t.Errorf("%d slots moved, though backend %d had %d", m, gone, its)
					}
					if heaviest == 1 && m > 2*slots/n {
						t.Errorf("%d slots moved, more than 2/%d of %d", m, n, slots)
					}
				}
			})
		}
	}
}

func TestMaglevTablesEqualAcrossMachines(t *testing.T) {
	// Pinned: a change here moves every flow of a fleet under upgrade.
	s := mustNew(t, Maglev, farm(1, 2, 3), 0x1234)
	want := []uint32{102, 102, 102, 101, 102, 100, 100, 100, 102, 101, 101, 102, 101, 101, 101, 102}
	got := owners(s)[:16]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

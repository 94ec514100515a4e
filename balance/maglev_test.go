package balance

import (
	"fmt"
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

func TestTableSizeIsPrime(t *testing.T) {
	for d := 2; d*d <= tableSize; d++ {
		if tableSize%d == 0 {
			t.Fatalf("divisible by %d", d)
		}
	}
}

// slowTable is the paper's definition with whole permutations written out.
func slowTable(backends []Backend, turns []uint16, seed uint64) []uint16 {
	next := make([][]uint32, len(backends))
	for i, b := range backends {
		w := newWalk(b.Identity, seed)
		for j := range uint64(tableSize) {
			next[i] = append(next[i], uint32((uint64(w.slot)+j*uint64(w.skip))%tableSize))
		}
	}
	table := slices.Repeat([]int{-1}, tableSize)
	for n := 0; n < tableSize; n++ {
		b := turns[n%len(turns)]
		for table[next[b][0]] >= 0 {
			next[b] = next[b][1:]
		}
		table[next[b][0]] = int(b)
	}
	out := make([]uint16, tableSize)
	for i, b := range table {
		out[i] = uint16(b)
	}
	return out
}

func TestMaglevLikeDefinition(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {1, 1}, {3, 1, 2}, same(20, 1)} {
		b := farm(weights...)
		slices.SortFunc(b, compareIdentity)
		w := make([]uint32, len(b))
		for i := range b {
			w[i] = b[i].Weight
		}
		if !slices.Equal(slowTable(b, turns(w), 9), maglevTable(b, turns(w), 9)) {
			t.Errorf("weights %v: tables differ", weights)
		}
	}
}

// A share of the table is within 1 % of the weight's, as far as whole turns allow.
func TestMaglevShares(t *testing.T) {
	for _, weights := range [][]uint32{same(3, 1), same(100, 1), {1, 2, 3}, {100, 1}, {65535, 1, 1}} {
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
			for i, w := range weights {
				due := tableSize * float64(w) / sum
				if d := count[i] - due; d > due/100+2 || d < -due/100-2 {
					t.Errorf("backend %d: %v slots, %v due", i, count[i], due)
				}
			}
		})
	}
}

// Every live backend has a slot even where its share is below one.
func TestMaglevNobodyStarves(t *testing.T) {
	weights := append([]uint32{1 << 31}, same(5000, 1)...)
	s := mustNew(t, Maglev, farm(weights...), 1)
	seen := map[uint32]bool{}
	for _, id := range owners(s) {
		seen[id] = true
	}
	if len(seen) != len(weights) {
		t.Errorf("%d of %d backends have a slot", len(seen), len(weights))
	}
}

func TestHashKindsIgnoreOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := farm(rapid.SliceOfN(rapid.Uint32Range(0, 9), 1, 30).Draw(t, "weights")...)
		kind := rapid.SampledFrom([]Kind{SourceHash, Maglev}).Draw(t, "kind")
		one, err := New(kind, b, 7)
		if err != nil {
			t.Fatal(err)
		}
		two, err := New(kind, rapid.Permutation(b).Draw(t, "order"), 7)
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
	if share := float64(n) / tableSize; share < 0.85 || share > 0.95 {
		t.Errorf("another seed moved %.2f of the table, want about 0.90", share)
	}
}

// When one of N leaves (or comes back), its own 1/N of the table moves, and of
// the rest less than that again as long as N is a hundredth of the table or
// less. Beyond, the rest is what the method costs: about 1 % of the table.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{2, 3, 10, 50, 100, 200, 500, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			before := owners(mustNew(t, Maglev, farm(same(n, 1)...), 3))
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for range 5 {
				w := same(n, 1)
				gone := r.IntN(n)
				w[gone] = 0
				after := owners(mustNew(t, Maglev, farm(w...), 3))
				if slices.Contains(after, uint32(100+gone)) {
					t.Fatal("the backend that left is still in the table")
				}
				limit := 2 * tableSize / n
				if n > tableSize/650 {
					limit = tableSize/n + tableSize/75
				}
				if m := moved(before, after); m > limit {
					t.Errorf("%d slots moved, limit %d", m, limit)
				}
			}
		})
	}
}

// The same for weights of all sorts: at most twice the share of who leaves,
// and 2 % for turns that fall differently.
func TestMaglevDisruptionWeighted(t *testing.T) {
	weights := make([]uint32, 40)
	var sum uint32
	for i := range weights {
		weights[i] = uint32(i%7 + 1)
		sum += weights[i]
	}
	before := owners(mustNew(t, Maglev, farm(weights...), 3))
	worst := 0.0
	for gone := range weights {
		w := slices.Clone(weights)
		w[gone] = 0
		m := moved(before, owners(mustNew(t, Maglev, farm(w...), 3)))
		share := float64(weights[gone]) / float64(sum)
		extra := float64(m)/tableSize - share
		worst = max(worst, extra)
		if extra > share+0.02 {
			t.Errorf("backend %d: share %.3f, moved %.3f", gone, share, float64(m)/tableSize)
		}
	}
	t.Logf("moved beyond the share of who left: at most %.2f %%", 100*worst)
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

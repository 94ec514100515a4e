package balance

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

var kinds = []Kind{RoundRobin, WeightedRoundRobin, SourceHash, Maglev}

// farm is backends 10.0.0.1:80, 10.0.0.2:80, ... with the weights given and
// ids 100, 101, ...
func farm(weights ...uint32) []Backend {
	var out []Backend
	for i, w := range weights {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i) + 1})
		out = append(out, Backend{ID: uint32(100 + i), Weight: w, Identity: Identity(packet.AddrFrom(a), 80)})
	}
	return out
}

func same(n int, w uint32) []uint32 { return slices.Repeat([]uint32{w}, n) }

func mustNew(t testing.TB, k Kind, b []Backend, seed uint64) *Set {
	t.Helper()
	s, err := New(k, b, seed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewErrors(t *testing.T) {
	tests := []struct {
		name     string
		kind     Kind
		backends []Backend
		want     error
	}{
		{"zero kind", 0, farm(1), ErrKind},
		{"unknown kind", 5, farm(1), ErrKind},
		{"too many", RoundRobin, make65536(1), ErrTooManyBackends},
		{"drained do not count", RoundRobin, make65536(0), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.kind, tt.backends, 1); !errors.Is(err, tt.want) {
				t.Errorf("New() = %v, want %v", err, tt.want)
			}
		})
	}
}

func make65536(w uint32) []Backend { return farm(same(65536, w)...) }

func TestKindNames(t *testing.T) {
	got := []string{Kind(0).String()}
	for _, k := range kinds {
		got = append(got, fmt.Sprint(k, k.KeyFields()))
	}
	want := []string{"Kind(0)", "rr 0", "wrr 0", "sh 1", "maglev 3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPickOrder(t *testing.T) {
	tests := []struct {
		name    string
		kind    Kind
		weights []uint32
		want    []uint32
	}{
		{"rr", RoundRobin, []uint32{1, 1, 1}, []uint32{100, 101, 102, 100, 101}},
		{"rr does not weigh", RoundRobin, []uint32{9, 1}, []uint32{100, 101, 100, 101}},
		{"rr leaves out the drained", RoundRobin, []uint32{1, 0, 1}, []uint32{100, 102, 100, 102}},
		{"wrr smooth", WeightedRoundRobin, []uint32{5, 1, 1}, []uint32{100, 100, 101, 100, 102, 100, 100, 100}},
		{"wrr leaves out the drained", WeightedRoundRobin, []uint32{0, 1, 2}, []uint32{102, 101, 102}},
		{"alone", WeightedRoundRobin, []uint32{7}, []uint32{100, 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustNew(t, tt.kind, farm(tt.weights...), 1)
			var st State
			var got []uint32
			for range tt.want {
				id, _ := s.Pick(&st, 0, 0)
				got = append(got, id)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPickNobody(t *testing.T) {
	sets := map[string]*Set{"zero": {}}
	for _, k := range kinds {
		sets[k.String()+" empty"] = mustNew(t, k, nil, 1)
		sets[k.String()+" drained"] = mustNew(t, k, farm(0, 0), 1)
	}
	for name, s := range sets {
		t.Run(name, func(t *testing.T) {
			st := s.Start(1, 2)
			for try := -1; try < 3; try++ {
				if id, ok := s.Pick(&st, 1, try); ok {
					t.Errorf("try %d: Pick() = %d, true", try, id)
				}
			}
		})
	}
}

// Any set, any state, any hash: the tries give every live backend once, none
// of weight 0, and then say that there is no more.
func TestPickTriesCoverAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		weights := rapid.SliceOfN(rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32Range(1, 3), rapid.Uint32()), 0, 40).Draw(t, "weights")
		b := farm(weights...)
		s, err := New(kind, b, rapid.Uint64().Draw(t, "seed"))
		if err != nil {
			t.Fatal(err)
		}
		want := []uint32{}
		for _, x := range b {
			if x.Weight > 0 {
				want = append(want, x.ID)
			}
		}
		if s.Len() != len(want) || s.Kind() != kind {
			t.Fatalf("Len() = %d, Kind() = %v", s.Len(), s.Kind())
		}
		st := State{next: rapid.Uint32().Draw(t, "state")}
		for range 3 {
			h := rapid.Uint64().Draw(t, "hash")
			got := []uint32{}
			for try := 0; ; try++ {
				id, ok := s.Pick(&st, h, try)
				if !ok {
					break
				}
				got = append(got, id)
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		}
	})
}

// A second choice leaves the turns as they were and is the same when repeated.
func TestPickTriesKeepTurns(t *testing.T) {
	s := mustNew(t, RoundRobin, farm(1, 1, 1, 1), 1)
	var st State
	for i := range uint32(12) {
		if id, _ := s.Pick(&st, uint64(i), 0); id != 100+i%4 {
			t.Fatalf("turn %d: %d", i, id)
		}
		a, _ := s.Pick(&st, uint64(i), 1)
		b, _ := s.Pick(&st, uint64(i), 1)
		if a != b || a == 100+i%4 {
			t.Fatalf("turn %d: second choice %d, then %d", i, a, b)
		}
	}
}

// Second choices of one backend's flows go to all the others alike.
func TestPickSecondChoiceSpreads(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			s := mustNew(t, k, farm(same(11, 1)...), 1)
			r := rand.New(rand.NewPCG(1, 2))
			var st State
			count := make([]float64, 11)
			n := 0.0
			for range 110_000 {
				h := r.Uint64()
				if id, _ := s.Pick(&st, h, 0); id != 105 {
					continue
				}
				id, _ := s.Pick(&st, h, 1)
				count[id-100]++
				n++
			}
			if count[5] != 0 {
				t.Fatalf("chosen again %v times", count[5])
			}
			checkChi(t, slices.Delete(count, 5, 6), same(10, 1))
		})
	}
}

// checkChi compares counts with the weights by a chi-square test, bound at
// about six standard deviations.
func checkChi(t *testing.T, count []float64, weights []uint32) {
	t.Helper()
	var sum, n, chi float64
	for i, w := range weights {
		sum += float64(w)
		n += count[i]
	}
	for i, w := range weights {
		due := n * float64(w) / sum
		chi += (count[i] - due) * (count[i] - due) / due
	}
	df := float64(len(weights) - 1)
	if limit := df + 6*math.Sqrt(2*df); chi > limit {
		t.Errorf("chi-square %.1f > %.1f; counts %v for weights %v", chi, limit, count, weights)
	}
}

func TestDistribution(t *testing.T) {
	weights := []uint32{1, 2, 3, 4, 10, 1, 7, 0, 4}
	var live []uint32
	for _, w := range weights {
		if w > 0 {
			live = append(live, w)
		}
	}
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			s := mustNew(t, k, farm(weights...), 42)
			st := s.Start(1, 3)
			count := make([]float64, len(weights))
			for i := range uint32(64_000) {
				// Sequential addresses and ports, as bad as real ones get.
				client := packet.Addr4([]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
				id, ok := s.Pick(&st, s.Key(client, uint16(1024+i%7)), 0)
				if !ok {
					t.Fatal("no backend")
				}
				count[id-100]++
			}
			if count[7] != 0 {
				t.Errorf("drained backend got %v", count[7])
			}
			want := live
			if k == RoundRobin {
				want = same(len(live), 1)
			}
			checkChi(t, slices.Delete(count, 7, 8), want)
		})
	}
}

// Entropy in the high or the low half of the caller's hash alone is enough.
func TestPickWeakHash(t *testing.T) {
	s := mustNew(t, Maglev, farm(same(10, 1)...), 1)
	for _, shift := range []int{0, 32, 48} {
		t.Run(fmt.Sprint(shift), func(t *testing.T) {
			count := make([]float64, 10)
			for i := range uint64(1 << 16) {
				id, _ := s.Pick(nil, i<<shift, 0)
				count[id-100]++
			}
			checkChi(t, count, same(10, 1))
		})
	}
}

func TestKeyFields(t *testing.T) {
	a, b := packet.Addr4([]byte{192, 0, 2, 1}), packet.AddrFrom(netip.MustParseAddr("2001:db8::1"))
	for _, k := range kinds {
		s, other := mustNew(t, k, farm(1), 1), mustNew(t, k, farm(1), 2)
		if s.Key(a, 1) == s.Key(b, 1) || s.Key(a, 1) == other.Key(a, 1) {
			t.Errorf("%v: Key ignores the address or the seed", k)
		}
		if port := s.Key(a, 1) != s.Key(a, 2); port != (k != SourceHash) {
			t.Errorf("%v: Key uses the port: %v", k, port)
		}
	}
}

// Workers of one machine begin at different backends; together they are even.
func TestStart(t *testing.T) {
	s := mustNew(t, WeightedRoundRobin, farm(same(8, 1)...), 1)
	var got []uint32
	for w := range 4 {
		st := s.Start(w, 4)
		id, _ := s.Pick(&st, 0, 0)
		got = append(got, id)
	}
	if diff := cmp.Diff([]uint32{100, 102, 104, 106}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range [][2]int{{-1, 4}, {4, 4}, {0, 0}, {5, -1}} {
		if st := s.Start(bad[0], bad[1]); st != (State{}) {
			t.Errorf("Start(%v) = %v", bad, st)
		}
	}
}

func TestPickAllocs(t *testing.T) {
	client := packet.Addr4([]byte{192, 0, 2, 1})
	for _, k := range kinds {
		s := mustNew(t, k, farm(1, 2, 3, 0), 1)
		var st State
		n := testing.AllocsPerRun(1000, func() {
			h := s.Key(client, 1)
			for try := range 4 {
				s.Pick(&st, h, try)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations", k, n)
		}
	}
}

// A loose bound, ten times what is wanted (50 ms): other work shares the machine.
func TestNewTime(t *testing.T) {
	weights := make([]uint32, 1000)
	for i := range weights {
		weights[i] = uint32(i)
	}
	best := time.Hour
	for range 20 {
		start := time.Now()
		mustNew(t, Maglev, farm(weights...), 1)
		if best = min(best, time.Since(start)); best <= 500*time.Millisecond {
			return
		}
	}
	t.Errorf("1,000 backends took %v", best)
}

func BenchmarkNew(b *testing.B) {
	for _, n := range []int{10, 1000} {
		weights := make([]uint32, n)
		for i := range weights {
			weights[i] = uint32(i%100 + 1)
		}
		backends := farm(weights...)
		for _, k := range []Kind{WeightedRoundRobin, Maglev} {
			b.Run(fmt.Sprintf("%v-%d", k, n), func(b *testing.B) {
				for b.Loop() {
					mustNew(b, k, backends, 1)
				}
			})
		}
	}
}

func BenchmarkPick(b *testing.B) {
	client := packet.Addr4([]byte{192, 0, 2, 1})
	for _, k := range kinds {
		b.Run(k.String(), func(b *testing.B) {
			s := mustNew(b, k, farm(same(100, 3)...), 1)
			var st State
			var port uint16
			b.ReportAllocs()
			for b.Loop() {
				port++
				s.Pick(&st, s.Key(client, port), 0)
			}
		})
	}
}

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

// slowLeast is what least does, without a tournament.
type slowLeast struct {
	load, start []uint64
	clock       uint64
}

func (l *slowLeast) pick(weights []uint32, more uint64) int {
	best := 0
	for i := range weights {
		p, q := l.load[i]*uint64(weights[best]), l.load[best]*uint64(weights[i])
		if p < q || p == q && l.start[i] < l.start[best] {
			best = i
		}
	}
	l.load[best] += more
	l.clock = max(l.clock, l.start[best])
	l.start[best] = l.clock + stride/uint64(weights[best])
	return best
}

func TestLeastAgainstScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.OneOf(rapid.Uint32Range(1, 3), rapid.Uint32Range(1, MaxWeight)), 1, 70).Draw(t, "weights")
		kind := rapid.SampledFrom([]Kind{LeastConn, WeightedLeastConn}).Draw(t, "kind")
		s, err := New(Policy{Kind: kind, Refuses: true}, farm(weights...), 1)
		if err != nil {
			t.Fatal(err)
		}
		workers := rapid.IntRange(1, 5).Draw(t, "workers")
		loads := NewLoads(workers).Grow(1000)
		st := s.Start(rapid.IntRange(0, workers-1).Draw(t, "worker"), workers, loads)
		twin := slowLeast{load: make([]uint64, len(weights))}
		// As it is after so many choices that starts wrap.
		chosen := rapid.SampledFrom([]uint64{0, 1<<63 - stride, math.MaxUint64 - stride}).Draw(t, "chosen")
		least := &st.view.least
		least.clock = chosen
		for i := range least.leaves {
			twin.start = append(twin.start, least.leaves[i].start)
			least.leaves[i].start += chosen
		}
		tick := uint32(0)
		t.Repeat(map[string]func(*rapid.T){
			"pick": func(t *rapid.T) {
				s.Look(&st, tick)
				id, ok := s.Pick(&st, 1, 0)
				want := 100 + uint32(twin.pick(s.weights, uint64(workers)))
				if nobody := slices.Min(twin.load) >= full; ok == nobody || ok && id != want {
					t.Fatalf("picked %d, %v; want %d", id, ok, want)
				}
			},
			"refuse": func(*rapid.T) {
				s.Look(&st, tick)
				if _, ok := s.Pick(&st, 1, 0); ok {
					i := twin.pick(s.weights, uint64(workers))
					s.Refuse(&st)
					twin.load[i] = full
				} else {
					twin.pick(s.weights, uint64(workers))
				}
			},
			"tick": func(t *rapid.T) {
				tick++
				for i := range weights {
					n := rapid.Int64Range(0, 1<<20).Draw(t, "flows")
					loads.Set(i%workers, 100+uint32(i), n)
					twin.load[i] = loads.Sum(100 + uint32(i))
				}
			},
		})
	})
}

// Nothing is read that no tick asks for; what one call leaves the next goes on with,
// and the tick's end takes nothing away.
func TestLookReadsSoMuch(t *testing.T) {
	const n, workers = 1000, 16 // 256 backends a call
	s := mustNew(t, LeastConn, farm(same(n, 1)...), 1)
	loads := NewLoads(workers).Grow(2000)
	st := s.Start(0, workers, loads)
	read := func() (got int) {
		for i := range st.view.least.leaves {
			if st.view.least.leaves[i].load == 7 {
				got++
			}
		}
		return got
	}
	s.Look(&st, 1) // all at once, the first time
	for i := range n {
		loads.Set(i%workers, uint32(100+i), 7)
	}
	var got []int
	for _, tick := range []uint32{1, 2, 2, 3, 3, 3} {
		s.Look(&st, tick)
		got = append(got, read())
	}
	for range 3 {
		s.Look(&st, 3)
	}
	got = append(got, read())
	if diff := cmp.Diff([]int{0, 256, 512, 768, 1000, 1000, 1000}, got); diff != "" {
		t.Error(diff)
	}
	if st.view.due != 0 {
		t.Errorf("%d are still to be read", st.view.due)
	}
}

// A backend that comes in empty gets no more in a tick than what evens it out, though
// several workers find it empty at the same time.
func TestLeastDoesNotOverrunTheNewOne(t *testing.T) {
	const n, workers, flows = 10, 8, 100
	s := mustNew(t, LeastConn, farm(same(n, 1)...), 1)
	loads := NewLoads(workers).Grow(1000)
	for i := range n - 1 {
		for w := range workers {
			loads.Set(w, uint32(100+i), flows)
		}
	}
	given := 0
	for w := range workers {
		st := s.Start(w, workers, loads)
		s.Look(&st, 1)
		for range 3 * flows {
			if id, _ := s.Pick(&st, 0, 0); id == 100+n-1 {
				given++
			}
		}
	}
	// Evened out, each has (9 × 800 + 8 × 300) / 10 = 960.
	if given < 900 || given > 1020 {
		t.Errorf("%d of %d flows went to the new one, 960 due", given, 3*flows*workers)
	}
}

// Backends without flows take turns by weight, for each worker from elsewhere.
func TestLeastTurns(t *testing.T) {
	s := mustNew(t, WeightedLeastConn, farm(1, 1, 4), 1)
	for worker, want := range [][]uint32{{100, 101, 102, 102, 102, 102}, {101, 102, 100, 102, 102, 102}} {
		st := s.Start(worker*2, 4, NewLoads(4).Grow(1000))
		var got []uint32
		for tick := range uint32(6) { // all have ended by the next tick
			s.Look(&st, tick)
			id, _ := s.Pick(&st, 0, 0)
			got = append(got, id)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("worker %d: %s", worker, diff)
		}
	}
}

// farmhand simulates workers that open flows, which end some time later.
type farmhand struct {
	s      *Set
	r      *rand.Rand
	loads  *Loads
	states []State
	active [][]int64  // by worker and backend
	ends   [][][2]int // by tick, worker and backend
	opened []float64  // by backend
	tick   int
	life   func(backend int) int // ticks
}

func newFarmhand(s *Set, workers, backends, ticks int, life func(*rand.Rand, int) int) *farmhand {
	f := &farmhand{
		s: s, r: rand.New(rand.NewPCG(7, 11)), loads: NewLoads(workers).Grow(100 + backends),
		ends: make([][][2]int, 10*ticks), opened: make([]float64, backends),
	}
	f.life = func(b int) int { return life(f.r, b) }
	for w := range workers {
		f.states = append(f.states, s.Start(w, workers, f.loads))
		f.active = append(f.active, make([]int64, backends))
	}
	return f
}

// run is a tick with so many new flows.
func (f *farmhand) run(flows int) {
	f.tick++
	for _, e := range f.ends[f.tick] {
		f.count(e[0], e[1], -1)
	}
	for range flows {
		w := f.r.IntN(len(f.states))
		if f.s.Looks() {
			f.s.Look(&f.states[w], uint32(f.tick))
		}
		id, _ := f.s.Pick(&f.states[w], f.r.Uint64(), 0)
		b := int(id - 100)
		f.opened[b]++
		f.count(w, b, 1)
		end := f.tick + 1 + f.life(b)
		if end < len(f.ends) {
			f.ends[end] = append(f.ends[end], [2]int{w, b})
		}
	}
}

func (f *farmhand) count(w, b int, n int64) {
	f.active[w][b] += n
	f.loads.Set(w, uint32(100+b), f.active[w][b])
}

func (f *farmhand) flows(b int) (n float64) {
	for w := range f.active {
		n += float64(f.active[w][b])
	}
	return n
}

// Flows come and go, on four workers: every scheduler gives new flows out by weight.
func TestSharesOfLivingFlows(t *testing.T) {
	weights := []uint32{1, 2, 3, 4, 10, 1, 7, 4, 0}
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			const ticks = 400
			f := newFarmhand(mustNew(t, k, farm(weights...), 5), 4, len(weights), ticks,
				func(r *rand.Rand, _ int) int { return int(r.ExpFloat64() * 20) })
			for range ticks {
				f.run(150)
			}
			want := weights[:8]
			if k == RoundRobin || k == LeastConn {
				want = same(8, 1)
			}
			if f.opened[8] != 0 {
				t.Error("a drained backend got flows")
			}
			checkChi(t, f.opened[:8], want)
		})
	}
}

// Where flows of one backend last ten times as long, it is the kinds that count
// that give it fewer: as many at a time as its weight says, and not new ones.
func TestCountingEvensOut(t *testing.T) {
	weights := []uint32{2, 1, 1, 2, 4}
	for _, c := range []struct {
		kind Kind
		most float64 // deviation of the flows from the share
	}{
		{LeastConn, 0.02}, {WeightedLeastConn, 0.02}, {TwoChoices, 0.10}, {WeightedRoundRobin, math.Inf(1)},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			const ticks = 600
			f := newFarmhand(mustNew(t, c.kind, farm(weights...), 5), 4, len(weights), ticks,
				func(r *rand.Rand, b int) int {
					if b == 0 {
						return int(r.ExpFloat64() * 200)
					}
					return int(r.ExpFloat64() * 20)
				})
			for range ticks {
				f.run(200)
			}
			var sum, all float64
			for i, w := range weights {
				all += f.flows(i)
				if c.kind == LeastConn {
					w = 1
				}
				sum += float64(w)
			}
			worst := 0.0
			for i, w := range weights {
				if c.kind == LeastConn {
					w = 1
				}
				worst = max(worst, math.Abs(f.flows(i)/(all*float64(w)/sum)-1))
			}
			t.Logf("%.0f flows, the worst deviates by %.1f %%", all, 100*worst)
			if worst > c.most || math.IsInf(c.most, 1) && worst < 0.5 {
				t.Errorf("a backend's flows deviate by %.2f from its share", worst)
			}
		})
	}
}

// rr and wrr are exact: each worker gives every backend its weight, in every period,
// wherever it begins.
func TestTurnsAreExact(t *testing.T) {
	weights := []uint32{5, 1, 0, 12, 7}
	for _, k := range []Kind{RoundRobin, WeightedRoundRobin} {
		s := mustNew(t, k, farm(weights...), 1)
		for worker := range 3 {
			st := s.Start(worker, 3, nil)
			want := []uint32{5, 1, 0, 12, 7}
			if k == RoundRobin {
				want = []uint32{1, 1, 0, 1, 1}
			}
			for range 3 {
				got := make([]uint32, len(weights))
				for range s.order {
					id, _ := s.Pick(&st, 0, 0)
					got[id-100]++
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%v, worker %d: %s", k, worker, diff)
				}
			}
		}
	}
}

// What is refused is not given before the next tick, the others are, and in the end
// nobody.
func TestRefuse(t *testing.T) {
	for _, k := range kinds {
		for _, n := range []int{1, 2, 3, 64, 65, 130} {
			t.Run(fmt.Sprint(k, n), func(t *testing.T) {
				s := mustNewOf(t, Policy{Kind: k, Refuses: true, Slots: 251}, farm(same(n, 1)...), 1)
				st, _ := begin(s)
				for tick := range uint32(3) {
					refused := map[uint32]bool{}
					for h := uint64(0); ; h++ {
						s.Look(st, tick)
						id, ok := s.Pick(st, h, int(h)%min(n, 3))
						if !ok {
							break
						}
						if refused[id] {
							t.Fatalf("tick %d: %d was refused", tick, id)
						}
						refused[id] = true
						s.Refuse(st)
						s.Refuse(st) // as if once
					}
					if len(refused) != n {
						t.Fatalf("tick %d: nobody left after %d of %d", tick, len(refused), n)
					}
				}
			})
		}
	}
}

// A full backend's flows do not all go to one other.
func TestRefusedSpreads(t *testing.T) {
	s := mustNewOf(t, Policy{Kind: RoundRobin, Refuses: true}, farm(same(100, 1)...), 1)
	st, _ := begin(s)
	s.Look(st, 1)
	id, _ := s.Pick(st, 0, 0)
	s.Refuse(st)
	count := make([]float64, 100)
	for h := range uint64(100_000) {
		st.next = 0 // its turn
		got, _ := s.Pick(st, h, 0)
		count[got-100]++
	}
	if id != 100 || count[0] != 0 {
		t.Fatalf("%d refused, given %v times", id, count[0])
	}
	for i, n := range count[1:] { // who follows a refused one has its share too
		if n < 700 || n > 2400 {
			t.Errorf("backend %d got %v of 100,000", i+1, n)
		}
	}
}

// A Set that refuses nothing takes no notice of Refuse.
func TestRefuseUnasked(t *testing.T) {
	for _, k := range kinds {
		s := mustNew(t, k, farm(1), 1)
		st, _ := begin(s)
		s.Pick(st, 0, 0)
		s.Refuse(st)
		if _, ok := s.Pick(st, 0, 0); !ok {
			t.Errorf("%v: refused", k)
		}
	}
}

// A Set's State that was made for none, or another one, chooses all the same.
func TestStrangeState(t *testing.T) {
	for _, k := range kinds {
		s := mustNew(t, k, farm(1, 1), 1)
		st := State{next: 1 << 31, first: 77}
		s.Look(&st, 1)
		for try := range 2 {
			if _, ok := s.Pick(&st, 1, try); !ok {
				t.Errorf("%v: nobody", k)
			}
		}
		st.Carry(&State{next: 5, first: 1})
		if st.next != 5 {
			t.Error("the place is lost")
		}
	}
}

func TestLoads(t *testing.T) {
	old := NewLoads(3).Grow(1)
	old.Set(2, 5, 40)
	grown := old.Grow(5000)
	grown.Set(0, 5, 2)
	old.Set(1, 5, -1)
	grown.Set(1, 4999, 9)
	grown.Set(0, 7, -3)
	got := []uint64{old.Sum(5), grown.Sum(5), grown.Sum(4999), grown.Sum(0), grown.Sum(7)}
	if diff := cmp.Diff([]uint64{41, 41, 9, 0, 0}, got); diff != "" {
		t.Error(diff)
	}
}

package balance

import (
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// slowTurns is the definition of the smooth weighted round robin, one backend
// at a time.
func slowTurns(weights []uint32) []uint16 {
	var sum int64
	for _, w := range weights {
		sum += int64(w)
	}
	credit := make([]int64, len(weights))
	var out []uint16
	for range sum {
		lead := 0
		for i, w := range weights {
			credit[i] += int64(w)
			if credit[i] > credit[lead] {
				lead = i
			}
		}
		credit[lead] -= sum
		out = append(out, uint16(lead))
	}
	return out
}

func TestTurns(t *testing.T) {
	tests := []struct {
		name    string
		weights []uint32
		want    []uint16
	}{
		{"nobody", nil, []uint16{}},
		{"alone", []uint32{1}, []uint16{0}},
		{"equal", []uint32{1, 1, 1}, []uint16{0, 1, 2}},
		{"one heavy", []uint32{5, 1, 1}, []uint16{0, 0, 1, 0, 2, 0, 0}},
		{"one two", []uint32{1, 2}, []uint16{1, 0, 1}},
		{"heavy last", []uint32{1, 1, 4}, []uint16{2, 0, 2, 1, 2, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, turns(tt.weights)); diff != "" {
				t.Errorf("turns(%v) (-want +got):\n%s", tt.weights, diff)
			}
		})
	}
}

func TestTurnsLikeDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SliceOfN(rapid.Uint32Range(1, 40), 1, 40).Draw(t, "weights")
		if diff := cmp.Diff(slowTurns(w), turns(w)); diff != "" {
			t.Fatalf("turns(%v) (-want +got):\n%s", w, diff)
		}
	})
}

// Smooth: in every prefix of the sequence no backend is further than one turn
// ahead of, nor more than the known bound of the method behind, its share.
func TestTurnsSmooth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SliceOfN(rapid.Uint32Range(1, 200), 1, 10).Draw(t, "weights")
		var sum float64
		for _, x := range w {
			sum += float64(x)
		}
		count := make([]float64, len(w))
		for step, b := range turns(w) {
			count[b]++
			for i := range w {
				due := float64(step+1) * float64(w[i]) / sum
				if math.Abs(count[i]-due) > float64(len(w)) {
					t.Fatalf("%v: backend %d had %v turns of %v due after %d steps", w, i, count[i], due, step+1)
				}
			}
		}
	})
}

func TestReduce(t *testing.T) {
	tests := []struct {
		name       string
		give, want []uint32
	}{
		{"nobody", nil, nil},
		{"alone", []uint32{4294967295}, []uint32{1}},
		{"common divisor", []uint32{100, 200, 50}, []uint32{2, 4, 1}},
		{"as it is", []uint32{3, 5, 7}, []uint32{3, 5, 7}},
		{"longest exact period", []uint32{65535, 1}, []uint32{65535, 1}},
		{"scaled, never to none", []uint32{4294967295, 1}, []uint32{65534, 1}},
		{"scaled", []uint32{1 << 20, 1<<20 + 1}, []uint32{32767, 32767}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, reduce(tt.give)); diff != "" {
				t.Errorf("reduce(%v) (-want +got):\n%s", tt.give, diff)
			}
		})
	}
}

func TestReduceBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SliceOfN(rapid.Uint32Range(1, math.MaxUint32), 1, 3000).Draw(t, "weights")
		got := reduce(w)
		var sum, want uint64
		for i := range got {
			sum += uint64(got[i])
			want += uint64(w[i])
		}
		if sum > maxPeriod || slices.Contains(got, 0) {
			t.Fatalf("sum %d, weights %v", sum, got)
		}
		room := float64(maxPeriod - len(w))
		for i := range got {
			exact := float64(w[i]) / float64(want) * room
			if want > maxPeriod && sum > maxPeriod/4 && got[i] > 1 && math.Abs(float64(got[i])-exact) > 0.51 &&
				!exactDivision(w, got) {
				t.Fatalf("backend %d: weight %d of %d became %d, nearest to %v expected", i, w[i], want, got[i], exact)
			}
		}
	})
}

// exactDivision reports whether got is w divided by one number.
func exactDivision(w, got []uint32) bool {
	q := w[0] / got[0]
	for i := range w {
		if got[i]*q != w[i] {
			return false
		}
	}
	return true
}

package conntrack

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestCopyFrom: whatever comes and goes between two slices, a flow that stays is met
// once, as it is, and none twice.
func TestCopyFrom(tt *testing.T) {
	dir := testDirectory()
	rapid.Check(tt, func(t *rapid.T) {
		tab := newTest(tt, Options{Flows: 500, HalfOpen: 500})
		flows := 0
		insert := func() Ref {
			e := numbered(flows)
			flows++
			return mustInsert(tt, tab, &e, dir, 0)
		}
		stay := map[Ref]uint16{}
		for range rapid.IntRange(0, 150).Draw(t, "flows") {
			r := insert()
			stay[r] = tab.Entry(r).ClientPort
		}
		remove := func(what string, oneIn int) {
			for _, r := range slices.Sorted(maps.Keys(stay)) { // the same draws for the same seed
				if rapid.IntRange(0, oneIn-1).Draw(t, what) == 0 {
					tab.Remove(r)
					delete(stay, r)
				}
			}
		}
		remove("goes early", 4)
		room := rapid.IntRange(1, 40).Draw(t, "room")
		refs, to := make([]Ref, room), make([]Entry, room)
		met := map[uint16]int{}
		for next := Ref(1); next != 0; {
			var n int
			from := next
			if n, next = tab.CopyFrom(next, refs, to); next != 0 && next <= from {
				t.Fatalf("from %d to %d", from, next)
			}
			for i, r := range refs[:n] {
				if to[i] != *tab.Entry(r) {
					t.Fatalf("flow %d: %+v", r, to[i])
				}
				met[to[i].ClientPort]++
			}
			for range min(rapid.IntRange(0, 5).Draw(t, "come"), 400-flows) {
				insert()
			}
			remove("goes", 10)
		}
		for r, p := range stay {
			if met[p] != 1 {
				t.Fatalf("flow %d met %d times", r, met[p])
			}
		}
		for p, n := range met {
			if n != 1 {
				t.Fatalf("port %d met %d times", p, n)
			}
		}
	})
}

// A slice costs nobody memory.
func TestCopyFromAllocates(t *testing.T) {
	tab := newTest(t, Options{Flows: 100})
	refs, to := make([]Ref, 64), make([]Entry, 64)
	if n := testing.AllocsPerRun(10, func() { tab.CopyFrom(1, refs, to) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

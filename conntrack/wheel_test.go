package conntrack

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drain advances until the wheel has caught up and removes what expired.
func drain(t *Table, now uint32) []Ref {
	var all []Ref
	out := make([]Ref, 7)
	for {
		n := t.Advance(now, out)
		for _, r := range out[:n] {
			t.Remove(r)
		}
		all = append(all, out[:n]...)
		if n == 0 && (before(now, t.hdr.wheelNow) || t.Len() == 0) {
			return all
		}
	}
}

// insertAny puts in flow number i without caring for its state.
func insertAny(tb testing.TB, t *Table, i int, now uint32) Ref {
	e := numbered(i)
	return mustInsert(tb, t, &e, testDirectory(), now)
}

// TestWheelTwin compares the wheel with a map of deadlines: whatever is set
// when, a flow comes out at the first Advance at or after its deadline, or at
// the next tick if the wheel is past that already.
func TestWheelTwin(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		start := rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0, 1, 0xffff_ff00, 0xffff_ffff, 0x7fff_ffff, 0xff_ffff})).Draw(rt, "start")
		t, err := New(Options{Flows: 64, HalfOpen: 64, Lazy: true, Now: start, Secret: *secret(1)})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = t.Close() }()
		now := start
		twin := map[Ref]uint32{} // ticks of the deadline
		next := 0
		span := rapid.OneOf(rapid.Uint32Range(0, 300), rapid.Uint32Range(250, 70_000),
			rapid.Uint32Range(60_000, 20_000_000), rapid.Uint32Range(1, MaxTimeout))
		step := rapid.OneOf(rapid.Uint32Range(0, 3), rapid.Uint32Range(0, 300), rapid.Uint32Range(0, 10_000))
		rt.Repeat(map[string]func(*rapid.T){
			"insert": func(rt *rapid.T) {
				if t.Len() == t.Cap() {
					return
				}
				r := insertAny(tt, t, next, now)
				next++
				d := now + span.Draw(rt, "span")
				t.SetExpires(r, d)
				twin[r] = later(d, t.hdr.wheelNow)
			},
			"touch": func(rt *rapid.T) {
				for _, r := range slices.Sorted(maps.Keys(twin)) {
					if rapid.Bool().Draw(rt, "this") {
						d := now + span.Draw(rt, "span")
						t.SetExpires(r, d)
						twin[r] = later(d, t.hdr.wheelNow)
					}
				}
			},
			"remove": func(rt *rapid.T) {
				for _, r := range slices.Sorted(maps.Keys(twin)) {
					if rapid.Bool().Draw(rt, "this") {
						t.Remove(r)
						delete(twin, r)
						return
					}
				}
			},
			"advance": func(rt *rapid.T) {
				now += step.Draw(rt, "step")
				var want []Ref
				for r, d := range twin {
					if !before(now, d) {
						want = append(want, r)
						delete(twin, r)
					}
				}
				slices.Sort(want)
				got := drain(t, now)
				slices.Sort(got)
				if d := cmp.Diff(want, got); d != "" {
					rt.Fatalf("at %d: %s", now, d)
				}
			},
			"": func(rt *rapid.T) { checkWheel(rt, t) },
		})
	})
}

// checkWheel: every flow is linked once, where it comes up in time.
func checkWheel(rt *rapid.T, t *Table) {
	seen := 0
	for i := range uint32(len(t.hdr.wheelHead) * wheelChains) {
		slot, chain := i/wheelChains, i%wheelChains
		prev := uint32(0)
		for r := t.hdr.wheelHead[slot][chain]; r != 0; prev, r = r, t.entries[r].wheelNext {
			e := &t.entries[r]
			if prev != 0 && e.wheelPrev != prev || e.wheelSlot != uint16(slot+1) || chainOf(Ref(r)) != chain {
				rt.Fatalf("flow %d in slot %d, list %d: prev %d, slot %d", r, slot, chain, e.wheelPrev, e.wheelSlot)
			}
			if due := slotDue(t.hdr.wheelNow, slot); before(later(e.Expires, t.hdr.wheelNow), due) {
				rt.Fatalf("flow %d expires at %d, its slot comes at %d", r, e.Expires, due)
			}
			seen++
		}
	}
	if seen != t.Len() {
		rt.Fatalf("%d flows in the wheel, %d in the table", seen, t.Len())
	}
}

// TestWheelDays lets flows with deadlines of days live on traffic, then end.
func TestWheelDays(tt *testing.T) {
	const day = 24 * 3600 * TicksPerSecond
	t := newTest(tt, Options{Flows: 100, HalfOpen: 100, Now: 0xffff_0000})
	now := uint32(0xffff_0000)
	r := insertAny(tt, t, 0, now)
	t.SetExpires(r, now+3*day)
	// Refreshed for a month, with the wheel turned once a minute.
	for range 30 * 24 * 60 {
		now += 60 * TicksPerSecond
		if got := drain(t, now); len(got) != 0 {
			tt.Fatal("expired while alive")
		}
		t.SetExpires(r, now+3*day)
	}
	end := now + 3*day
	for ; before(now, end); now += 60 * TicksPerSecond {
		if got := drain(t, now); len(got) != 0 {
			tt.Fatalf("expired %d ticks early", end-now)
		}
	}
	if got := drain(t, end); !slices.Equal(got, []Ref{r}) {
		tt.Fatalf("got %v", got)
	}
}

// TestWheelBound: one Advance does a bounded amount of work, and what it left
// comes with the next ones.
func TestWheelBound(tt *testing.T) {
	t := newTest(tt, Options{Flows: 5000, HalfOpen: 5000})
	for i := range 5000 {
		insertAny(tt, t, i, 0)
	}
	now := uint32(insertTicks)
	out := make([]Ref, 64)
	total, calls := 0, 0
	for total < 5000 {
		n := t.Advance(now, out)
		for _, r := range out[:n] {
			t.Remove(r)
		}
		total += n
		if calls++; calls > 5000/64+2 {
			tt.Fatalf("%d of 5000 after %d calls", total, calls)
		}
	}
	if got := t.Stats().Expired; got != 5000 {
		tt.Errorf("stats say %d", got)
	}
	// A room of none: nothing is lost.
	r := insertAny(tt, t, 0, now)
	if n := t.Advance(now+insertTicks, nil); n != 0 {
		tt.Errorf("%d into nothing", n)
	}
	if got := drain(t, now+insertTicks); !slices.Equal(got, []Ref{r}) {
		tt.Errorf("got %v", got)
	}
}

// TestWheelReportsAgain: what nobody removed is reported a second later.
func TestWheelReportsAgain(tt *testing.T) {
	t := newTest(tt, Options{Flows: 10})
	r := insertAny(tt, t, 0, 0)
	out := make([]Ref, 4)
	if n := t.Advance(insertTicks, out); n != 1 || out[0] != r {
		tt.Fatalf("%d %v", n, out)
	}
	if n := t.Advance(insertTicks, out); n != 0 {
		tt.Error("reported twice at once")
	}
	if n := t.Advance(insertTicks+retryTicks, out); n != 1 {
		tt.Error("not reported again")
	}
	// A sign of life in between counts.
	t.SetExpires(r, 1000)
	if n := t.Advance(insertTicks+3*retryTicks, out); n != 0 {
		tt.Error("reported although alive")
	}
}

// TestWheelSlots: an entry's slot comes up no later than its deadline, no
// earlier than the slot's width before, and never in the past.
func TestWheelSlots(tt *testing.T) {
	check := func(fatalf func(string, ...any), base, ahead uint32) {
		slot := slotFor(base, base+ahead)
		due := slotDue(base, slot)
		width := uint32(1) << (slot / wheelSlots * wheelBits)
		if due-base > ahead || ahead-(due-base) >= width {
			fatalf("at %#x, %#x ahead: slot %#x comes up %#x ahead", base, ahead, slot, due-base)
		}
	}
	for _, base := range []uint32{0, 1, 255, 256, 511, 0xffff, 0x10000, 0xff_ffff, 0x7fff_ffff, 0xffff_ffff} {
		for _, ahead := range []uint32{0, 1, 255, 256, 257, 0xffff, 0x10000, 0x10001, 0xff_ffff, 0x100_0000, MaxTimeout} {
			check(tt.Fatalf, base, ahead)
		}
	}
	rapid.Check(tt, func(rt *rapid.T) {
		check(rt.Fatalf, rapid.Uint32().Draw(rt, "base"), rapid.Uint32Range(0, MaxTimeout).Draw(rt, "ahead"))
	})
	if slotFor(1000, 900) != slotFor(1000, 1000) {
		tt.Error("a deadline gone by is not due at once")
	}
}

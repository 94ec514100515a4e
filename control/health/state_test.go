package health

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMachine(t *testing.T) {
	for _, c := range []struct {
		name       string
		rise, fall int
		results    string // + good, - bad
		want       string // u unknown, U up, D down, after each
	}{
		{"the first result alone decides: up", 3, 3, "+++", "UUU"},
		{"the first result alone decides: down", 3, 3, "-++", "DDD"},
		{"rise in a row", 3, 3, "-+++", "DDDU"},
		{"fall in a row", 3, 3, "+---", "UUUD"},
		{"one good result forgets bad ones", 3, 3, "+--+--+---", "UUUUUUUUUD"},
		{"one bad result forgets good ones", 2, 2, "-+-+-++", "DDDDDDU"},
		{"1 and 1", 1, 1, "+-+-", "UDUD"},
		{"different", 1, 4, "+----+----", "UUUUDUUUUD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m machine
			got := ""
			for _, r := range c.results {
				before := m.state
				if changed := m.result(r == '+', c.rise, c.fall); changed != (m.state != before) {
					t.Errorf("after %s%c: changed is %v, from %v to %v", got, r, changed, before, m.state)
				}
				got += string("uUD"[m.state])
			}
			if got != c.want {
				t.Errorf("after %s: got %s, want %s", c.results, got, c.want)
			}
		})
	}
}

// The state follows from the last results alone: the last run of fall failures or
// rise successes, whichever is later, or the first result.
func TestMachineTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rise, fall := rapid.IntRange(1, 5).Draw(rt, "rise"), rapid.IntRange(1, 5).Draw(rt, "fall")
		results := rapid.SliceOfN(rapid.Bool(), 1, 60).Draw(rt, "results")
		var m machine
		for i, ok := range results {
			m.result(ok, rise, fall)
			want := Down
			if results[0] {
				want = Up
			}
			for end := 1; end <= i+1; end++ {
				if lastAre(results[:end], true, rise) {
					want = Up
				}
				if lastAre(results[:end], false, fall) {
					want = Down
				}
			}
			if m.state != want {
				rt.Fatalf("after %v: %v, want %v", results[:i+1], m.state, want)
			}
		}
	})
}

func lastAre(results []bool, ok bool, n int) bool {
	if len(results) < n {
		return false
	}
	for _, r := range results[len(results)-n:] {
		if r != ok {
			return false
		}
	}
	return true
}

func TestHistoryKeepsTheLast(t *testing.T) {
	var h history
	for i := range 100 {
		h = h.add(Change{At: time.Unix(int64(i), 0), To: Up})
	}
	if len(h) != maxHistory || h[0].At.Unix() != 100-maxHistory || h[maxHistory-1].At.Unix() != 99 {
		t.Errorf("%d changes from %v to %v", len(h), h[0].At, h[len(h)-1].At)
	}
	// Suspicions alone, with nothing between them, are one entry.
	for i := range 100 {
		h = h.add(Change{At: time.Unix(int64(100+i), 0), From: Up, To: Up})
	}
	if h[maxHistory-2].At.Unix() != 99 || h[maxHistory-1].At.Unix() != 199 {
		t.Errorf("after suspicions: %v", h)
	}
}

func TestStateAsText(t *testing.T) {
	for _, s := range []State{Unknown, Up, Down} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back State
		if err := json.Unmarshal(b, &back); err != nil || back != s || string(b) != `"`+s.String()+`"` {
			t.Errorf("%v: %s, back %v, %v", s, b, back, err)
		}
	}
	if err := new(State).UnmarshalText([]byte("sick")); err == nil {
		t.Error("sick is a state")
	}
}

func TestEffective(t *testing.T) {
	type m = Member
	for _, c := range []struct {
		name    string
		members []Member
		panic   int
		want    []Share
	}{
		{"nobody", nil, 50, []Share{}},
		{"all live", []m{{Weight: 1, Live: true, Percent: 100}, {Weight: 3, Live: true, Percent: 100}}, 0, []Share{{1, false}, {3, false}}},
		{"one down", []m{{Weight: 1, Percent: 100}, {Weight: 3, Live: true, Percent: 100}}, 0, []Share{{1, true}, {3, false}}},
		{"all down", []m{{Weight: 1, Percent: 100}, {Weight: 3, Percent: 100}}, 0, []Share{{1, true}, {3, true}}},
		{"all down is less than any share", []m{{Weight: 1, Percent: 100}, {Weight: 3, Percent: 100}}, 1, []Share{{1, false}, {3, false}}},
		{"just the share", []m{{Weight: 1, Percent: 100}, {Weight: 1, Live: true, Percent: 100}}, 50, []Share{{1, true}, {1, false}}},
		{"less than the share", []m{{Weight: 1, Percent: 100}, {Weight: 1, Percent: 100}, {Weight: 1, Live: true, Percent: 100}}, 50,
			[]Share{{1, false}, {1, false}, {1, false}}},
		{"drained ones do not count", []m{{Weight: 0, Percent: 100}, {Weight: 0, Percent: 100}, {Weight: 1, Live: true, Percent: 100}}, 50,
			[]Share{{0, true}, {0, true}, {1, false}}},
		{"a backup waits", []m{{Weight: 1, Live: true, Percent: 100}, {Weight: 2, Live: true, Backup: true, Percent: 100}}, 0,
			[]Share{{1, false}, {0, false}}},
		{"a backup steps in", []m{{Weight: 1, Percent: 100}, {Weight: 2, Live: true, Backup: true, Percent: 100}}, 50,
			[]Share{{1, true}, {2, false}}},
		{"the backup is down too", []m{{Weight: 1, Percent: 100}, {Weight: 2, Backup: true, Percent: 100}}, 0,
			[]Share{{1, true}, {0, true}}},
		{"the backup is down too, and panic", []m{{Weight: 1, Percent: 100}, {Weight: 2, Backup: true, Percent: 100}}, 10,
			[]Share{{1, false}, {0, true}}},
		{"all drained: the backup", []m{{Weight: 0, Live: true, Percent: 100}, {Weight: 2, Live: true, Backup: true, Percent: 100}}, 0,
			[]Share{{0, false}, {2, false}}},
		{"slow start", []m{{Weight: 1, Live: true, Percent: 30}, {Weight: 2, Live: true, Percent: 100}}, 0, []Share{{3, false}, {20, false}}},
		{"slow start of the largest", []m{{Weight: 65535, Live: true, Percent: 90}}, 0, []Share{{589815, false}}},
		{"one that went down has no slow start", []m{{Weight: 1, Percent: 10}, {Weight: 2, Live: true, Percent: 100}}, 0, []Share{{1, true}, {2, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Effective(c.members, c.panic)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Whatever checks say: while anybody with a weight is live somebody takes new flows,
// nobody found down does unless all do, and backups and others never do together.
func TestEffectiveProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		members := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) Member {
			return Member{
				Weight: rapid.Uint32Range(0, 3).Draw(rt, "weight"), Live: rapid.Bool().Draw(rt, "live"),
				Backup: rapid.Bool().Draw(rt, "backup"), Percent: 10 * rapid.IntRange(1, 10).Draw(rt, "percent"),
			}
		}), 0, 8).Draw(rt, "members")
		threshold := rapid.IntRange(0, 100).Draw(rt, "panic")
		hope, used, dead, backups, others := false, false, false, false, false
		for i, s := range Effective(members, threshold) {
			m := members[i]
			hope = hope || m.Live && m.Weight > 0
			if s.Down || s.Weight == 0 {
				if !s.Down && m.Weight != 0 && !m.Backup {
					rt.Fatalf("backend %d of %v has come to nothing", i, members)
				}
				continue
			}
			used, dead = true, dead || !m.Live
			backups, others = backups || m.Backup, others || !m.Backup
		}
		switch {
		case hope && !used:
			rt.Fatalf("nobody takes flows of %v", members)
		case dead && threshold == 0:
			rt.Fatalf("a dead one takes flows of %v", members)
		case dead && backups, backups && others:
			rt.Fatalf("backups and others, or dead ones, of %v", members)
		}
	})
}

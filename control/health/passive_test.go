package health

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// third is one more backend of web's service.
var third = Key{Service: "web", Backend: netip.MustParseAddrPort("10.0.0.3:80")}

// usualPassive is the configuration's defaults.
func usualPassive() *Passive {
	return &Passive{Failures: 5, Share: 50, Window: 10 * time.Second, DownFor: 30 * time.Second}
}

// findings is asIs and takes lists of none for none.
var findings = cmp.Options{asIs, cmp.Transformer("none", func(f []Finding) []Finding { return append([]Finding{}, f...) })}

// observer counts on and looks once a second.
type observer struct {
	watch   Watch
	policy  *Passive
	now     time.Time
	tallies map[Key]Tally
	keys    []Key
}

func observing(p *Passive, keys ...Key) *observer {
	o := &observer{policy: p, now: time.Unix(1e9, 0), tallies: map[Key]Tally{}, keys: keys}
	o.second(nil)
	return o
}

// second is what connections meet with in a second, and what follows.
func (o *observer) second(more map[Key]Tally) []Finding {
	var all []Observation
	for i, k := range o.keys {
		t, d := o.tallies[k], more[k]
		t.Add(&d)
		o.tallies[k] = t
		all = append(all, Observation{Key: k, Policy: o.policy, ID: i, Tally: t})
	}
	o.now = o.now.Add(time.Second)
	return o.watch.Look(o.now, all)
}

func TestWatch(t *testing.T) {
	type second = map[Key]Tally
	good := Tally{Answered: 20}
	down := func(p *Passive) { p.TakeDown = true }
	condemned := func(k Key, why string) Finding { return Finding{k, Condemned, why, 30 * time.Second} }
	suspected := func(k Key, why string) Finding { return Finding{Key: k, What: Suspected, Reason: why} }
	absolved := func(k Key) Finding { return Finding{Key: k, What: Absolved} }
	const dead, silent = "passive: 5 of 5 connections unanswered", "passive: 20 of 20 connections unanswered"
	for _, c := range []struct {
		name    string
		change  func(*Passive)
		seconds []second
		want    [][]Finding
	}{
		{"too few", nil, []second{{web: {Unanswered: 4}}}, [][]Finding{nil}},
		{"enough", nil, []second{{web: {Unanswered: 5}}}, [][]Finding{{suspected(web, dead)}}},
		{"enough by and by", nil, []second{{web: {Unanswered: 2}}, {web: {Refused: 2}}, {web: {Refused: 1}}},
			[][]Finding{nil, nil, {suspected(web, "passive: 2 of 5 connections unanswered, 3 refused")}}},
		{"too small a share", nil, []second{{web: {Answered: 6, Unanswered: 5}}}, [][]Finding{nil}},
		{"the share", nil, []second{{web: {Answered: 5, Unanswered: 5}}}, [][]Finding{{suspected(web, "passive: 5 of 10 connections unanswered")}}},
		{"resets are answered too", nil, []second{{web: {Answered: 10, Reset: 5}}}, [][]Finding{{suspected(web, "passive: 5 of 10 connections reset")}}},
		{"too long ago", nil, append(append([]second{{web: {Unanswered: 4}}}, make([]second, 10)...), second{web: {Unanswered: 4}}),
			make([][]Finding, 12)},
		{"still remembered", nil, append(append([]second{{web: {Unanswered: 4}}}, make([]second, 6)...), second{web: {Unanswered: 1}}),
			append(make([][]Finding, 7), []Finding{suspected(web, dead)})},
		{"each five anew", nil, []second{{web: {Unanswered: 5}}, {web: {Unanswered: 4}}, {web: {Unanswered: 1}}},
			[][]Finding{{suspected(web, dead)}, nil, {suspected(web, dead)}}},
		{"a good connection", nil, []second{{web: {Unanswered: 5}}, {web: {Answered: 1, Unanswered: 1}}, {web: {Answered: 2}}},
			[][]Finding{{suspected(web, dead)}, nil, {absolved(web)}}},
		{"silence", nil, append([]second{{web: {Unanswered: 5}}}, make([]second, 10)...),
			append([][]Finding{{suspected(web, dead)}}, append(make([][]Finding, 9), []Finding{absolved(web)})...)},
		{"suspects all", nil, []second{{web: {Unanswered: 5}, other: {Unanswered: 5}}}, [][]Finding{{suspected(web, dead), suspected(other, dead)}}},

		{"down", down, []second{{web: {Unanswered: 5}, other: good}}, [][]Finding{{condemned(web, dead)}}},
		{"down once", down, []second{{web: {Unanswered: 5}, other: good}, {web: {Unanswered: 50}, other: good}}, [][]Finding{{condemned(web, dead)}, nil}},
		{"down again", down, append(append([]second{{web: {Unanswered: 5}, other: good}}, make([]second, 29)...), second{web: {Unanswered: 5}, other: good}),
			append(append([][]Finding{{condemned(web, dead)}}, make([][]Finding, 29)...), []Finding{condemned(web, dead)})},
		{"nobody else answers", down, []second{{web: {Unanswered: 5}}}, [][]Finding{{suspected(web, dead)}}},
		{"the others fare no better", down, []second{{web: {Unanswered: 5}, other: {Answered: 3, Unanswered: 3}}}, [][]Finding{{suspected(web, dead)}}},
		{"all of them", down, []second{{web: {Unanswered: 50}, other: {Unanswered: 50}, third: {Unanswered: 50}}},
			[][]Finding{{suspected(web, "passive: 50 of 50 connections unanswered"), suspected(other, "passive: 50 of 50 connections unanswered"), suspected(third, "passive: 50 of 50 connections unanswered")}}},
		{"resets alone", down, []second{{web: {Answered: 10, Reset: 10}, other: good}}, [][]Finding{{suspected(web, "passive: 10 of 10 connections reset")}}},
		{"SYNs that no server answers, among good ones", down, slices.Repeat([]second{{web: {Answered: 2, Unanswered: 50}, other: good}}, 30),
			slices.Repeat([][]Finding{{suspected(web, "passive: 50 of 52 connections unanswered")}}, 30)},
		{"refused among good ones", down, []second{{web: {Answered: 2, Refused: 5}, other: good}}, [][]Finding{{condemned(web, "passive: 5 of 7 connections refused")}}},
		{"it fell silent", down, append([]second{{web: good, other: good}}, slices.Repeat([]second{{web: {Unanswered: 20}, other: good}}, 5)...),
			[][]Finding{nil, {suspected(web, "passive: 20 of 40 connections unanswered")}, {suspected(web, silent)}, {suspected(web, silent)}, {suspected(web, silent)}, {condemned(web, silent)}}},
		{"no more than half", down, []second{{web: {Unanswered: 5}, other: good, third: good}, {web: {}, other: {Unanswered: 50}, third: {Answered: 200}}},
			[][]Finding{{condemned(web, dead)}, {suspected(other, "passive: 50 of 70 connections unanswered")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := usualPassive()
			if c.change != nil {
				c.change(p)
			}
			keys := []Key{web, other}
			for _, s := range c.seconds {
				if _, ok := s[third]; ok {
					keys = []Key{web, other, third}
				}
			}
			o := observing(p, keys...)
			for i, s := range c.seconds {
				if d := cmp.Diff(c.want[i], o.second(s), findings); d != "" {
					t.Fatalf("second %d (-want +got):\n%s", i+1, d)
				}
			}
		})
	}
}

// A backend alone is never taken down.
func TestWatchAlone(t *testing.T) {
	p := usualPassive()
	p.TakeDown = true
	o := observing(p, web)
	if got := o.second(map[Key]Tally{web: {Unanswered: 500}}); len(got) != 1 || got[0].What != Suspected {
		t.Errorf("%+v", got)
	}
}

// What was counted before a Watch knew the backend, or of another one with its id, says
// nothing; neither do counters that begin anew.
func TestWatchBeginsAnew(t *testing.T) {
	var w Watch
	now := time.Unix(1e9, 0)
	look := func(id int, n uint64) []Finding {
		now = now.Add(time.Second)
		return w.Look(now, []Observation{{Key: web, Policy: usualPassive(), ID: id, Tally: Tally{Unanswered: n}}})
	}
	for _, step := range []struct {
		id   int
		n    uint64
		want int
	}{{1, 100, 0}, {1, 104, 0}, {2, 105, 0}, {2, 109, 0}, {2, 3, 0}, {2, 7, 0}, {2, 8, 1}} {
		if got := look(step.id, step.n); len(got) != step.want {
			t.Errorf("%+v: %+v", step, got)
		}
	}
	w.Look(now, nil)
	if len(w.seen) != 0 {
		t.Errorf("%d are remembered", len(w.seen))
	}
	if got := look(2, 500); len(got) != 0 {
		t.Errorf("one that comes back: %+v", got)
	}
	// Nobody has looked for an hour: what came since is not all of the last ten seconds,
	// but what was before is forgotten.
	look(2, 504)
	now = now.Add(time.Hour)
	if got := look(2, 505); len(got) != 0 {
		t.Errorf("after an hour: %+v", got)
	}
}

package health

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// history is what a backend's says, without times.
func (w *world) history(k Key) (out []Change) {
	for _, c := range w.engine.History(k) {
		c.At = time.Time{}
		out = append(out, c)
	}
	return out
}

// A suspect that fails a check is not left waiting for the next interval.
func TestSuspectFails(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := usual()
		c.Interval, c.FastInterval, c.Fall = time.Hour, time.Hour, 3
		c.Timeout = time.Second
		w.engine.Set(targets(c, web))
		time.Sleep(time.Hour)
		w.heard()
		w.set(web, errRefused)
		began := time.Now()
		w.engine.Suspect(web, "passive: 5 of 5 connections unanswered")
		s, _ := w.engine.Status(web)
		if d := cmp.Diff(&Suspicion{began, "passive: 5 of 5 connections unanswered"}, s.Suspect); d != "" {
			t.Error(d)
		}
		time.Sleep(2*time.Second - grain)
		if e := w.heard(); len(e) != 0 {
			t.Fatalf("sooner than three checks a second apart: %v", e)
		}
		time.Sleep(2 * grain)
		if e := w.heard(); len(e) != 1 || e[0].To != Down {
			t.Fatalf("%v", e)
		}
		if s, _ = w.engine.Status(web); s.Suspect != nil {
			t.Error("it is down, and still suspect")
		}
		want := []Change{
			{From: Unknown, To: Up, Reason: "fine"},
			{From: Up, To: Up, Reason: "passive: 5 of 5 connections unanswered"},
			{From: Up, To: Down, Reason: "refused"},
		}
		if d := cmp.Diff(want, w.history(web)); d != "" {
			t.Error(d)
		}
	})
}

func TestAbsolve(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(3 * time.Second)
		w.engine.Absolve(other)
		w.engine.Suspect(web, "one")
		first, _ := w.engine.Status(web)
		time.Sleep(time.Second)
		w.engine.Suspect(web, "two")
		s, _ := w.engine.Status(web)
		if d := cmp.Diff(&Suspicion{first.Suspect.Since, "two"}, s.Suspect); d != "" {
			t.Error(d)
		}
		w.engine.Absolve(web)
		if s, _ = w.engine.Status(web); s.Suspect != nil || s.State != Up {
			t.Errorf("%+v", s)
		}
	})
}

// Observed backends are not probed, and come back by themselves, slowly.
func TestTakeDownObserved(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := &Check{Kind: Observed, SlowStart: 10 * time.Second}
		w.engine.Set(targets(c, web, other))
		w.engine.Suspect(web, "a word")
		time.Sleep(time.Hour)
		if n := w.checks(web); n != 0 {
			t.Fatalf("%d checks", n)
		}
		w.engine.TakeDown(web, "dead", 30*time.Second)
		time.Sleep(29 * time.Second)
		w.engine.TakeDown(web, "again", time.Hour) // it is down
		want := []Event{{Key: web, From: Unknown, To: Down, Percent: 100, Reason: "dead"}}
		if d := cmp.Diff(want, w.heard(), asIs); d != "" {
			t.Fatal(d)
		}
		w.engine.Set(targets(c, web, other)) // a reload
		time.Sleep(time.Second + 2*grain)
		back := "nothing is known against it any more"
		want = []Event{{Key: web, From: Down, To: Up, Percent: 10, Reason: back}}
		if d := cmp.Diff(want, w.heard(), asIs); d != "" {
			t.Fatal(d)
		}
		time.Sleep(time.Minute)
		if s, _ := w.engine.Status(web); s.State != Up || s.Percent != 100 || !s.Observed {
			t.Errorf("%+v", s)
		}
		if s, _ := w.engine.Status(other); s.State != Unknown || s.Suspect != nil {
			t.Errorf("%+v", s)
		}
	})
}

// One that is checked comes up by its checks, when its time is over.
func TestTakeDownChecked(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := usual()
		w.engine.Set(targets(c, web))
		time.Sleep(10 * time.Second)
		w.heard()
		w.engine.TakeDown(web, "dead", 30*time.Second)
		time.Sleep(29 * time.Second)
		if s, _ := w.engine.Status(web); s.State != Down || s.Reason != "dead" || s.Failed != 0 {
			t.Fatalf("%+v", s)
		}
		time.Sleep(time.Second + time.Duration(c.Rise)*c.Interval + grain)
		if e := w.heard(); len(e) != 2 || e[1].To != Up || e[1].Reason != "fine" {
			t.Errorf("%v", e)
		}
	})
}

// A reload makes checked ones observed, and the other way round.
func TestObservedAndBack(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.set(web, errRefused)
		w.engine.Set(targets(usual(), web))
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		w.took = 500 * time.Millisecond
		w.mu.Unlock()
		n := w.checks(web)
		for w.checks(web) == n { // one runs
			time.Sleep(10 * time.Millisecond)
		}
		w.engine.Set(targets(&Check{Kind: Observed}, web))
		time.Sleep(time.Minute)
		if s, _ := w.engine.Status(web); s.State != Up || w.checks(web) != n+1 {
			t.Errorf("%+v after %d checks", s, w.checks(web)-n)
		}
		w.engine.Set(targets(usual(), web))
		time.Sleep(20 * time.Second)
		if s, _ := w.engine.Status(web); s.State != Down || s.Observed {
			t.Errorf("%+v", s)
		}
	})
}

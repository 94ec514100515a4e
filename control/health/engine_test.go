package health

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	web   = Key{Service: "web", Backend: netip.MustParseAddrPort("10.0.0.1:80")}
	other = Key{Service: "web", Backend: netip.MustParseAddrPort("10.0.0.2:80")}
)

// world is backends that answer or do not, and what an engine makes of them.
type world struct {
	mu     sync.Mutex
	bad    map[Key]error
	took   time.Duration // by each check
	long   time.Duration // by each that is a command, in addition
	begins map[Key][]time.Time
	most   int // checks at a time
	now    int
	events []Event
	short  []Shortage
	engine *Engine
}

// within runs f with an engine in a bubble of its own time.
func within(t *testing.T, o Options, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{bad: map[Key]error{}, begins: map[Key][]time.Time{}}
		o.OnChange = func(e []Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e...)
		}
		o.OnShortage = func(s Shortage) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.short = append(w.short, s)
		}
		o.probe = w.probe
		w.engine = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.engine.Run(ctx)
		}()
		f(t, w)
		cancel()
		<-done
	})
}

func (w *world) probe(ctx context.Context, t *Target) (string, error) {
	w.mu.Lock()
	w.begins[t.Key] = append(w.begins[t.Key], time.Now())
	w.now++
	w.most = max(w.most, w.now)
	err, took := w.bad[t.Key], w.took
	if t.Check.Kind == Exec {
		took += w.long
	}
	w.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now--
	return "fine", err
}

func (w *world) set(k Key, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad[k] = err
}

// heard is what happened since it was asked last.
func (w *world) heard() []Event {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.events
	w.events = nil
	return e
}

// checks is how many began.
func (w *world) checks(k Key) int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.begins[k])
}

func usual() *Check {
	return &Check{Kind: TCP, Interval: 2 * time.Second, FastInterval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3}
}

func targets(c *Check, keys ...Key) (out []Target) {
	for _, k := range keys {
		out = append(out, Target{Key: k, Address: k.Backend, Check: c})
	}
	return out
}

// asIs compares addresses by ==.
var asIs = cmpopts.EquateComparable(netip.AddrPort{})

var errRefused = errors.New("refused")

func TestUpDownUp(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(2*time.Second + grain)
		want := []Event{{Key: web, From: Unknown, To: Up, Percent: 100, Reason: "fine"}}
		if diff := cmp.Diff(want, w.heard(), asIs); diff != "" {
			t.Fatalf("the first result (-want +got)\n%s", diff)
		}
		time.Sleep(time.Minute)
		if e := w.heard(); e != nil {
			t.Fatalf("news without any: %v", e)
		}
		w.set(web, errRefused)
		time.Sleep(3*2*time.Second + grain)
		want = []Event{{Key: web, From: Up, To: Down, Percent: 100, Reason: "refused"}}
		if diff := cmp.Diff(want, w.heard(), asIs); diff != "" {
			t.Fatalf("after fall intervals (-want +got)\n%s", diff)
		}
		w.set(web, nil)
		time.Sleep(2*2*time.Second + grain)
		want = []Event{{Key: web, From: Down, To: Up, Percent: 100, Reason: "fine"}}
		if diff := cmp.Diff(want, w.heard(), asIs); diff != "" {
			t.Fatalf("after rise intervals (-want +got)\n%s", diff)
		}
		var path string
		for _, c := range w.engine.History(web) {
			path += fmt.Sprintf("%v>%v %s;", c.From, c.To, c.Reason)
		}
		if path != "unknown>up fine;up>down refused;down>up fine;" {
			t.Errorf("history: %s", path)
		}
		s, ok := w.engine.Status(web)
		if !ok || s.State != Up || s.Reason != "fine" || s.Failed < 3 || s.Failed > 4 || s.Checks <= s.Failed {
			t.Errorf("status: %+v, %v", s, ok)
		}
		if _, ok := w.engine.Status(other); ok {
			t.Error("a backend that nobody asked for has a status")
		}
	})
}

// The bound that docs/health.md gives: fall intervals and a timeout.
func TestHangingIsDownInTime(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(10 * time.Second)
		w.heard()
		w.mu.Lock()
		w.took = time.Hour
		w.mu.Unlock()
		time.Sleep(3*2*time.Second + time.Second + grain)
		want := []Event{{Key: web, From: Up, To: Down, Percent: 100, Reason: "no answer within 1s"}}
		if diff := cmp.Diff(want, w.heard(), asIs); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	})
}

func TestFastInterval(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := usual()
		c.Interval, c.FastInterval = 10*time.Second, 500*time.Millisecond
		w.engine.Set(targets(c, web))
		time.Sleep(time.Minute)
		w.heard()
		w.set(web, errRefused)
		time.Sleep(10*time.Second + 2*500*time.Millisecond + 3*grain)
		if e := w.heard(); len(e) != 1 || e[0].To != Down {
			t.Fatalf("an interval and two fast ones later: %v", e)
		}
		n := w.checks(web)
		time.Sleep(time.Minute)
		if n = w.checks(web) - n; n < 5 || n > 7 {
			t.Errorf("%d checks in a minute of what is down for good", n)
		}
	})
}

func TestIntervalsAreJittered(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(10 * time.Minute)
		w.checks(web)
		w.mu.Lock()
		defer w.mu.Unlock()
		seen := map[time.Duration]bool{}
		b := w.begins[web]
		for i := 1; i < len(b); i++ {
			d := b[i].Sub(b[i-1])
			seen[d] = true
			if d < 1800*time.Millisecond || d > 2*time.Second+grain {
				t.Fatalf("%v between two checks", d)
			}
		}
		if len(seen) < len(b)/2 {
			t.Errorf("%d different intervals among %d", len(seen), len(b))
		}
	})
}

func many(n int) (out []Key) {
	for i := range n {
		out = append(out, Key{Service: "many", Backend: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80)})
	}
	return out
}

func TestStartIsSpread(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.took = 10 * time.Millisecond
		keys := many(10000)
		w.engine.Set(targets(usual(), keys...))
		time.Sleep(2*time.Second + 2*grain)
		for _, k := range keys {
			if w.checks(k) == 0 {
				t.Fatalf("%v was not checked within an interval", k)
			}
		}
		// 10,000 in 2 s that last 10 ms each are 50 at a time on average, and those of two
		// grains more, and as many again towards the end, when second checks have begun.
		if w.most > 250 {
			t.Errorf("%d checks at a time", w.most)
		}
	})
}

// Nor are all checked at the same moment after a reload that shortens the interval.
func TestShorterIntervalIsSpread(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.took = 10 * time.Millisecond
		keys := many(10000)
		slow := usual()
		slow.Interval = time.Hour
		w.engine.Set(targets(slow, keys...))
		time.Sleep(time.Hour)
		before := w.checks(keys[0])
		w.engine.Set(targets(usual(), keys...))
		time.Sleep(2*time.Second + 2*grain)
		if w.checks(keys[0]) == before {
			t.Error("not checked within the new interval")
		}
		if w.most > 150 {
			t.Errorf("%d checks at a time", w.most)
		}
	})
}

func TestChecksAtATime(t *testing.T) {
	within(t, Options{MaxRunning: 10}, func(t *testing.T, w *world) {
		w.took = time.Hour
		c := usual()
		c.Fall = 1
		keys := many(100)
		w.engine.Set(targets(c, keys...))
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if w.most != 10 {
			t.Errorf("%d checks at a time", w.most)
		}
		for _, k := range keys {
			if s, _ := w.engine.Status(k); s.State != Down {
				t.Fatalf("%v is %v", k, s.State)
			}
		}
	})
}

// Commands of which there are too many take turns, and nobody suffers from it.
func TestCommandsAtATime(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.long = 900 * time.Millisecond
		command, connect := usual(), usual()
		command.Kind = Exec
		keys := many(510)
		slow, quick := keys[:500], keys[500:]
		w.engine.Set(append(targets(command, slow...), targets(connect, quick...)...))
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.most < MaxExec || w.most > MaxExec+len(quick) {
			t.Errorf("%d checks at a time", w.most)
		}
		turn := time.Duration(len(slow)) * w.long / MaxExec
		for _, k := range slow {
			if s, _ := w.engine.Status(k); s.State != Up || s.Failed > 0 {
				t.Fatalf("%v: %+v", k, s)
			}
			for i, b := 1, w.begins[k]; i < len(b); i++ {
				if d := b[i].Sub(b[i-1]); d > 2*time.Second+turn {
					t.Fatalf("%v between two commands for %v", d, k)
				}
			}
			if n := len(w.begins[k]); n < 10 {
				t.Errorf("%d commands for %v", n, k)
			}
		}
		for _, k := range quick {
			for i, b := 1, w.begins[k]; i < len(b); i++ {
				if d := b[i].Sub(b[i-1]); d > 2*time.Second+grain {
					t.Fatalf("%v between two checks of %v", d, k)
				}
			}
		}
	})
}

// A backend whose turn has not come may go, or get a check of another kind.
func TestLeavingTheLine(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.long = time.Hour
		command, connect := usual(), usual()
		command.Kind, command.Timeout = Exec, time.Hour
		keys := many(500)
		w.engine.Set(targets(command, keys...))
		time.Sleep(5 * time.Second)
		runs, waiting := map[Key]bool{}, 0
		for i, k := range keys {
			runs[k] = w.checks(k) > 0
			if i >= 250 && i < 300 && !runs[k] {
				waiting++
			}
		}
		w.engine.Set(append(targets(connect, keys[:250]...), targets(command, keys[250:300]...)...))
		time.Sleep(5 * time.Second)
		for _, k := range keys[:250] {
			if !runs[k] && w.checks(k) < 2 {
				t.Fatalf("%v was checked %d times in 5 s", k, w.checks(k))
			}
		}
		if n := len(w.engine.line); n != waiting || n == 0 {
			t.Errorf("%d wait, want %d", n, waiting)
		}
	})
}

// Where few checks run at a time half of them may be commands.
func TestCommandsLeaveRoom(t *testing.T) {
	within(t, Options{MaxRunning: 5}, func(t *testing.T, w *world) {
		w.long = time.Hour
		command, connect := usual(), usual()
		command.Kind, command.Timeout = Exec, time.Hour
		w.engine.Set(append(targets(command, many(10)...), targets(connect, web, other)...))
		time.Sleep(time.Minute)
		if n := w.checks(web); n < 29 || w.most > 5 {
			t.Errorf("%d checks in a minute, %d at a time", n, w.most)
		}
		if w.engine.execs != 3 || len(w.engine.line) != 7 {
			t.Errorf("%d commands run, %d wait", w.engine.execs, len(w.engine.line))
		}
	})
}

func TestSuspect(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := usual()
		c.Interval, c.FastInterval, c.Fall = time.Hour, 10*time.Second, 1
		w.engine.Set(targets(c, web))
		w.engine.Suspect(other, "") // nobody knows it
		w.engine.Suspect(web, "a word")
		if e := w.heard(); len(e) != 1 || e[0].To != Up {
			t.Fatalf("suspected before its first check: %v", e)
		}
		w.set(web, errRefused)
		w.engine.Suspect(web, "a word")
		time.Sleep(time.Second - time.Millisecond)
		if n := w.checks(web); n != 1 {
			t.Fatalf("%d checks within a second", n)
		}
		time.Sleep(time.Millisecond + grain)
		if e := w.heard(); len(e) != 1 || e[0].To != Down {
			t.Fatalf("suspected: %v", e)
		}
		// While a check runs: once more after it, not at the same time.
		w.set(web, nil)
		w.mu.Lock()
		w.took = 500 * time.Millisecond
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		n := w.checks(web)
		w.engine.Suspect(web, "a word")
		synctest.Wait()
		w.engine.Suspect(web, "a word")
		w.engine.Suspect(web, "a word")
		time.Sleep(2 * time.Second)
		if n = w.checks(web) - n; n != 2 {
			t.Errorf("%d checks after suspicions", n)
		}
	})
}

func TestSlowStart(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		c := usual()
		c.SlowStart, c.Rise = 20*time.Second, 1
		w.engine.Set(targets(c, web))
		time.Sleep(5 * time.Second)
		want := []Event{{Key: web, From: Unknown, To: Up, Percent: 100, Reason: "fine"}}
		if diff := cmp.Diff(want, w.heard(), asIs); diff != "" {
			t.Fatalf("what was never down needs no slow start (-want +got)\n%s", diff)
		}
		w.set(web, errRefused)
		time.Sleep(10 * time.Second)
		w.heard()
		w.set(web, nil)
		time.Sleep(2*time.Second + grain) // up within this
		time.Sleep(7 * time.Second)       // three steps of two seconds later
		events := w.heard()
		if last := events[len(events)-1]; last.From != Up || last.To != Up || last.Percent < 40 || last.Percent > 50 {
			t.Errorf("half-way: %v", events)
		}
		time.Sleep(15 * time.Second)
		events = append(events, w.heard()...)
		for i, e := range events {
			if e.Percent != min(100, 10*(i+1)) {
				t.Errorf("event %d: %v", i, e)
			}
		}
		if len(events) != 10 {
			t.Errorf("%d events: %v", len(events), events)
		}
		if s, _ := w.engine.Status(web); s.Percent != 100 {
			t.Errorf("in the end: %+v", s)
		}
		// Down in the middle of it: that is over.
		w.set(web, errRefused)
		time.Sleep(10 * time.Second)
		w.set(web, nil)
		time.Sleep(4 * time.Second)
		w.set(web, errRefused)
		time.Sleep(10 * time.Second)
		w.heard()
		time.Sleep(time.Minute)
		if e := w.heard(); e != nil {
			t.Errorf("of a backend that is down: %v", e)
		}
	})
}

func TestSetKeepsTheState(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.set(web, errRefused)
		w.engine.Set(targets(usual(), web, other))
		time.Sleep(5 * time.Second)
		w.heard()
		slower := usual()
		slower.Interval = time.Minute
		w.engine.Set(targets(slower, web))
		if s, ok := w.engine.Status(web); !ok || s.State != Down || len(w.engine.History(web)) != 1 {
			t.Errorf("after another check for it: %+v", s)
		}
		if _, ok := w.engine.Status(other); ok {
			t.Error("what was taken away is there")
		}
		n := w.checks(other)
		time.Sleep(10 * time.Minute)
		if n != w.checks(other) {
			t.Error("what was taken away is checked")
		}
		n = w.checks(web)
		back := time.Now()
		w.engine.Set(targets(usual(), web, other))
		time.Sleep(2*time.Second + grain)
		// Intervals are shortened at random, so that a second check may have been made.
		if s, ok := w.engine.Status(other); !ok || s.State != Up || s.Checks < 1 || s.Checks > 2 || s.Since.Before(back) {
			t.Errorf("what came back: %+v", s)
		}
		if w.checks(web) == n {
			t.Error("a shorter interval waits for the end of the longer one")
		}
	})
}

// What ends after its target was taken away is no result, also not of a new target
// of that name.
func TestTakenAwayWhileChecked(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.took = 900 * time.Millisecond
		w.set(web, errRefused)
		w.engine.Set(targets(usual(), web))
		w.engine.Suspect(web, "a word")
		synctest.Wait()
		w.engine.Set(nil)
		w.set(web, nil)
		w.engine.Set(targets(usual(), web))
		time.Sleep(5 * time.Second)
		for _, e := range w.heard() {
			if e.To == Down {
				t.Errorf("%v", e)
			}
		}
		if s, _ := w.engine.Status(web); s.Failed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestEnterFails(t *testing.T) {
	within(t, Options{Enter: func() error { return errRefused }}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(3 * time.Second)
		if e := w.heard(); len(e) != 1 || e[0].Reason != "network namespace: refused" {
			t.Errorf("%v", e)
		}
	})
}

func TestPanicIsAFailure(t *testing.T) {
	within(t, Options{Enter: func() error { panic("odd") }}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(3 * time.Second)
		if e := w.heard(); len(e) != 1 || e[0].To != Down || !strings.HasSuffix(e[0].Reason, "panic: odd") {
			t.Errorf("%v", e)
		}
	})
}

// Goroutines wait for the next check, a few of them, unless Enter has to ready each.
func TestGoroutinesAreUsedAgain(t *testing.T) {
	for _, own := range []bool{false, true} {
		o := Options{}
		if own {
			o.Enter = func() error { return nil }
		}
		within(t, o, func(t *testing.T, w *world) {
			w.took = 100 * time.Millisecond
			w.engine.Set(targets(usual(), many(2000)...))
			for range 50 {
				time.Sleep(100 * time.Millisecond)
				w.engine.mu.Lock()
				n, want := w.engine.waiting, maxIdle
				w.engine.mu.Unlock()
				if own {
					want = 0
				}
				if n > want {
					t.Fatalf("%d wait, want %d at most", n, want)
				}
			}
			w.engine.Set(nil)
			time.Sleep(time.Second)
			w.engine.mu.Lock()
			defer w.engine.mu.Unlock()
			if n := w.engine.waiting; own != (n == 0) {
				t.Errorf("%d wait in the end", n)
			}
		})
	}
}

package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxRunning is how many checks an Engine runs at a time unless it is told
// otherwise, or half as many as the process may have files open if that is less. What is
// due then waits.
const MaxRunning = 4096

// MaxExec is how many of these are commands at most, or half of them if that is less. Each
// takes a thread or two and some processes, of which containers and units of systemd's may have
// few, and a process that cannot have one more thread ends. The other commands wait, and
// hold up nobody else.
const MaxExec = 128

// grain is the least time between two looks at what is due: 5,000 checks a second
// need no 5,000 wake-ups.
const grain = 5 * time.Millisecond

// Options of New.
type Options struct {
	// OnChange is told, by the goroutine of Run, what became different. It must not
	// wait long: no check begins meanwhile.
	OnChange func([]Event)
	// OnShortage is told, by that goroutine, too, when a shortage begins and when it ends.
	OnShortage func(Shortage)
	// MaxRunning is how many checks run at a time; 0: see the constant of that name.
	MaxRunning int
	// Enter, if not nil, readies the goroutine of each check, which ends after it:
	// it may lock its thread and change its network namespace.
	Enter func() error
	// probe replaces the network in tests.
	probe func(context.Context, *Target) (string, error)
}

// Event is a backend that went up or down, or has come to more of its weight.
type Event struct {
	Key
	// From and To are equal if only the weight is another.
	From, To State
	// Percent of its weight that it has.
	Percent int
	Reason  string
}

// Status is what is known of a backend.
type Status struct {
	Key
	State State
	// Since is when it came into the state, or became known to the engine.
	Since time.Time
	// Percent of its weight that it has.
	Percent int
	// Reason is what the last check found, and Checked when that ended; zero before
	// the first. Took is how long it took.
	Reason  string
	Checked time.Time
	Took    time.Duration
	// Unchecked is what the host lacks, so that the latest check could not be made; "" if
	// it could.
	Unchecked string
	// Checks that ended, and how many of them failed. Observed backends have none.
	Checks, Failed uint64
	Observed       bool
	// Suspect is nil for one that nobody suspects, or that is Down.
	Suspect *Suspicion
}

// entry is a target with what is known of it. All belongs to Engine.mu.
type entry struct {
	Target
	machine
	ramp
	history history
	status  Status    // but for State and Percent
	until   time.Time // TakeDown holds it down so long
	due     time.Time
	started time.Time
	running bool
	waits   bool // in Engine.line
	again   bool // check once more as soon as the running one ends
	gone    bool
	at      int // in the queue; -1 if not there
}

// next is when something is to be done with it; false if nothing is.
func (t *entry) next() (at time.Time, some bool) {
	if !t.running && !t.waits && t.Check.Kind != Observed {
		at, some = t.due, true
	}
	if t.step != 0 && (!some || t.ramp.next.Before(at)) {
		at, some = t.ramp.next, true
	}
	if t.lapses() && (!some || t.until.Before(at)) {
		at, some = t.until, true
	}
	return at, some
}

// Engine checks backends. Its methods may be called by any goroutine.
type Engine struct {
	opt Options

	mu      sync.Mutex
	entries map[Key]*entry
	queue   queue
	running int
	execs   int       // of those that run
	line    []*entry  // those that are due and wait for a command's place, longest first
	full    bool      // something waits for a place
	armed   time.Time // when Run wakes up by itself
	events  []Event

	shortages map[string]*shortage // by what is lacking
	short     []Shortage           // that nobody was told of

	wake    chan struct{}
	idle    chan job // to goroutines that wait for another check
	waiting int      // how many do
	jobs    sync.WaitGroup
}

// New returns an engine without targets.
func New(o Options) *Engine {
	if o.MaxRunning == 0 {
		o.MaxRunning = MaxRunning
		var files unix.Rlimit // which the runtime has raised as far as it may
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
			o.MaxRunning = atATime(files.Cur)
		}
	}
	if o.probe == nil {
		o.probe = func(ctx context.Context, t *Target) (string, error) { return t.probe(ctx) }
	}
	return &Engine{opt: o, entries: make(map[Key]*entry), shortages: make(map[string]*shortage), wake: make(chan struct{}, 1), idle: make(chan job)}
}

// atATime is how many checks may run with so many files.
func atATime(files uint64) int { return int(max(1, min(MaxRunning, files/2))) }

// Set replaces the targets, each Key of which must be there once. Those that were
// there before keep their state, whatever else of them is different.
func (e *Engine) Set(targets []Target) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	before := e.entries
	e.entries = make(map[Key]*entry, len(targets))
	for _, target := range targets {
		t := before[target.Key]
		delete(before, target.Key)
		if t == nil {
			t = &entry{Target: target, at: -1, status: Status{Key: target.Key, Since: now}}
		}
		t.Target = target
		t.status.Observed = target.Check.Kind == Observed
		t.waits = t.waits && target.Check.Kind == Exec
		switch {
		case t.status.Observed: // nothing is due
			t.due, t.against = time.Time{}, 0
			e.keep(t, "", now)
		case t.due.IsZero() || t.due.After(now.Add(target.Check.Interval)): // new, or of an interval that is shorter now
			t.due = now.Add(time.Duration(rand.Float64() * float64(target.Check.Interval)))
		}
		e.entries[target.Key] = t
		e.queue.set(t)
	}
	for _, t := range before {
		t.gone = true
		e.keep(t, "", now)
		e.queue.remove(t)
	}
	e.line = slices.DeleteFunc(e.line, func(t *entry) bool { return t.gone || !t.waits })
	e.rouse()
}

// hurry makes the next check due as early as it may be.
func (t *entry) hurry(now time.Time) {
	at := t.started.Add(min(t.Check.FastInterval/10, time.Second))
	if at.Before(now) {
		at = now
	}
	if at.Before(t.due) {
		t.due = at
	}
}

// Status returns what is known of a backend; false if it is not checked.
func (e *Engine) Status(k Key) (Status, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.entries[k]
	if t == nil {
		return Status{}, false
	}
	s := t.status
	s.State, s.Percent = t.state, t.percent()
	return s, true
}

// History returns the last changes of a backend, oldest first, 32 at most.
func (e *Engine) History(k Key) []Change {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.entries[k]; t != nil {
		return append([]Change(nil), t.history...)
	}
	return nil
}

// Run checks until ctx is done, and returns when no check runs any more. It may be
// called once.
func (e *Engine) Run(ctx context.Context) {
	defer e.jobs.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		events, short, wait := e.turn(ctx)
		if len(events) > 0 && e.opt.OnChange != nil {
			e.opt.OnChange(events)
		}
		for _, s := range short {
			if e.opt.OnShortage != nil {
				e.opt.OnShortage(s)
			}
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.wake:
		}
	}
}

// turn begins what is due, and returns what happened and when to look again.
func (e *Engine) turn(ctx context.Context) (events []Event, short []Shortage, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	e.full = false
	for len(e.line) > 0 && e.mayExec() {
		if e.running >= e.opt.MaxRunning {
			e.full = true
			break
		}
		e.start(ctx, e.line[0], now)
		e.line[0] = nil
		e.line = e.line[1:]
	}
	for len(e.queue) > 0 {
		t, at := e.queue[0].entry, e.queue[0].at
		if at.After(now) {
			wait = max(at.Sub(now), grain)
			break
		}
		if e.overdue(t, now) {
			e.queue.set(t)
			continue
		}
		if e.running >= e.opt.MaxRunning {
			e.full = true
			break
		}
		if t.Check.Kind == Exec && !e.mayExec() {
			t.waits = true
			e.line = append(e.line, t)
			e.queue.set(t)
			continue
		}
		e.start(ctx, t, now)
	}
	wait = e.ease(now, wait)
	e.armed = now.Add(wait)
	events, e.events = e.events, nil
	short, e.short = e.short, nil
	return events, short, wait
}

// mayExec reports whether one more command may be run.
func (e *Engine) mayExec() bool { return e.execs < min(MaxExec, (e.opt.MaxRunning+1)/2) }

// start has t checked.
func (e *Engine) start(ctx context.Context, t *entry, now time.Time) {
	t.running, t.waits, t.started, t.again = true, false, now, false
	e.queue.set(t)
	e.running++
	if t.Check.Kind == Exec {
		e.execs++
	}
	e.begin(ctx, job{t, t.Target})
}

// overdue does for t what needs no check and is due, if anything is.
func (e *Engine) overdue(t *entry, now time.Time) bool {
	switch {
	case t.step != 0 && !t.ramp.next.After(now):
		t.advance(now, t.Check.SlowStart)
		e.note(t, t.state)
	case t.lapses() && !t.until.After(now):
		t.status.Reason = "nothing is known against it any more"
		e.enter(t, Up, now)
	default:
		return false
	}
	return true
}

// check probes a target once. It has a copy of it, since the entry's may be replaced.
func (e *Engine) check(ctx context.Context, t *entry, target *Target) {
	limited, cancel := context.WithTimeout(ctx, target.Check.Timeout)
	defer cancel()
	began := time.Now()
	reason, err := e.probe(limited, target)
	if ctx.Err() != nil {
		return // the engine ends: that was no result
	}
	r := result{ok: err == nil, reason: reason, lack: lack(err), began: began}
	if err != nil {
		r.reason = explain(err, target.Check.Timeout)
	}
	e.finish(t, target.Check.Kind, r)
}

// probe is the check itself. What a backend answers passes through much code, none of
// which may end the process.
func (e *Engine) probe(ctx context.Context, t *Target) (reason string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the check failed by itself, please report this: panic: %v", r)
		}
	}()
	if e.opt.Enter != nil {
		if err := e.opt.Enter(); err != nil {
			return "", fmt.Errorf("network namespace: %w", err)
		}
	}
	return e.opt.probe(ctx, t)
}

// result of a check.
type result struct {
	ok     bool
	reason string
	lack   string // of something without which there was none
	began  time.Time
}

// finish takes the result of a check, of a kind that may be t's no more.
func (e *Engine) finish(t *entry, kind Kind, r result) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running--
	t.running = false
	wanted := e.full
	if kind == Exec {
		e.execs--
		wanted = wanted || len(e.line) > 0
	}
	if t.gone || t.Check.Kind == Observed {
		e.queue.set(t)
		e.rouseIf(wanted)
		return
	}
	now := time.Now()
	changed := e.keep(t, r.lack, now)
	if r.lack == "" && e.judge(t, r, now) {
		changed = true
	}
	t.schedule(now)
	e.queue.set(t)
	e.rouseIf(changed || wanted || t.due.Before(e.armed))
}

// judge counts a result, and reports whether t is in another state for it.
func (e *Engine) judge(t *entry, r result, now time.Time) bool {
	held := now.Before(t.until)
	t.status.Checked, t.status.Took = now, now.Sub(r.began)
	if !held {
		t.status.Reason = r.reason
	}
	t.status.Checks++
	if !r.ok {
		t.status.Failed++
	}
	from := t.state
	if held || !t.result(r.ok, t.Check.Rise, t.Check.Fall) {
		return false
	}
	to := t.state
	t.state = from
	e.enter(t, to, now)
	return true
}

// schedule settles when the next check begins.
func (t *entry) schedule(now time.Time) {
	every := t.Check.Interval
	if t.changing() {
		every = min(every, t.Check.FastInterval)
	}
	t.due = t.started.Add(time.Duration((1 - rand.Float64()/10) * float64(every)))
	if t.again || t.changing() && t.status.Suspect != nil {
		t.hurry(now)
	}
	if t.due.Before(now) {
		t.due = now
	}
}

// enter brings t into another state, for the reason that its status has.
func (e *Engine) enter(t *entry, to State, now time.Time) {
	from := t.state
	t.state, t.against, t.status.Since = to, 0, now
	t.history = t.history.add(Change{At: now, From: from, To: to, Reason: t.status.Reason})
	t.ramp = ramp{}
	switch {
	case to == Down:
		t.status.Suspect = nil // it is no suspicion any more
	case from == Down:
		t.begin(now, t.Check.SlowStart)
	}
	e.note(t, from)
}

func (e *Engine) note(t *entry, from State) {
	e.events = append(e.events, Event{Key: t.Key, From: from, To: t.state, Percent: t.percent(), Reason: t.status.Reason})
}

func (e *Engine) rouseIf(need bool) {
	if need {
		e.rouse()
	}
}

// rouse has Run look around now.
func (e *Engine) rouse() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

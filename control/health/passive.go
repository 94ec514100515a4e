package health

import (
	"fmt"
	"strings"
	"time"
)

// Passive is how a service's backends are judged by clients' connections. Nobody writes
// to it once a Watch has it.
type Passive struct {
	// A backend is suspect once so many connections have failed within Window, and such
	// a percentage of all.
	Failures, Share int
	Window          time.Duration
	// TakeDown has it taken down, for DownFor at least, instead of checked.
	TakeDown bool
	DownFor  time.Duration
}

// Tally is what a backend's new connections have met with, counted from whenever.
type Tally struct {
	Answered   uint64
	Unanswered uint64
	Refused    uint64
	Reset      uint64 // answered, but reset before anything was said
}

// Add sums o into t.
func (t *Tally) Add(o *Tally) {
	t.Answered += o.Answered
	t.Unanswered += o.Unanswered
	t.Refused += o.Refused
	t.Reset += o.Reset
}

// since is what has been counted since was; false if counting has begun anew.
func (t *Tally) since(was *Tally) (Tally, bool) {
	d := Tally{t.Answered - was.Answered, t.Unanswered - was.Unanswered, t.Refused - was.Refused, t.Reset - was.Reset}
	return d, t.Answered >= was.Answered && t.Unanswered >= was.Unanswered && t.Refused >= was.Refused && t.Reset >= was.Reset
}

// failed is how many connections failed, of how many. Clients can bring about resets, so
// there is a count without them.
func (t *Tally) failed(resets bool) (failed, of uint64) {
	failed, of = t.Unanswered+t.Refused, t.Answered+t.Unanswered+t.Refused
	if resets {
		failed += min(t.Reset, t.Answered)
	}
	return failed, of
}

// reason is what speaks against the backend, in words.
func (t *Tally) reason() string {
	_, of := t.failed(true)
	var parts []string
	for _, one := range []struct {
		n    uint64
		what string
	}{{t.Unanswered, "unanswered"}, {t.Refused, "refused"}, {t.Reset, "reset"}} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", one.n, one.what))
		}
	}
	n, what, _ := strings.Cut(strings.Join(parts, ", "), " ")
	return fmt.Sprintf("passive: %s of %d connections %s", n, of, what)
}

// Observation is what has been counted of one backend so far.
type Observation struct {
	Key
	Policy *Passive
	ID     int // another one than before: counting has begun anew
	Tally  Tally
}

// Finding is what a Watch has found out about a backend.
type Finding struct {
	Key
	What   Sentence
	Reason string        // not of Absolved
	For    time.Duration // of Condemned
}

// Sentence is what is to become of a backend.
type Sentence uint8

// Sentences.
const (
	Suspected Sentence = iota // see Engine.Suspect
	Condemned                 // see Engine.TakeDown
	Absolved                  // see Engine.Absolve
)

// Watch judges backends by what clients' connections meet with. The zero value has seen
// nothing yet. It may be used by one goroutine.
//
// What fails everywhere is not a backend's fault: a flood of SYNs that fills the
// backlogs, or a network that is gone. So none is condemned while the others of its
// service fare no better as a whole, or have answered nobody, and never more than half
// of them at a time. Resets, which clients can bring about, make suspect only. So do
// connections that are not answered, as long as others are: a server's own firewall drops
// SYNs, too, and what answers a forged address of its network does not come by here.
type Watch struct {
	seen map[Key]*seen
	turn uint64
}

// parts is into how many parts a window is divided: what it has to say is forgotten part
// by part.
const parts = 5

// seen is what a Watch knows of a backend.
type seen struct {
	id       int
	turn     uint64 // when it was seen last
	last     Tally
	window   [parts]Tally
	begun    time.Time // the part at
	at       int
	answered time.Time // when somebody was last known to have been
	tripped  time.Time // last
	suspect  bool
	until    time.Time // condemned so long
}

// forget lets go of what was counted.
func (s *seen) forget() { s.window = [parts]Tally{} }

// note enters what was counted until now.
func (s *seen) note(o *Observation, now time.Time) {
	for part := o.Policy.Window / parts; now.Sub(s.begun) >= part; s.window[s.at] = (Tally{}) {
		s.at = (s.at + 1) % parts
		if s.begun = s.begun.Add(part); now.Sub(s.begun) >= o.Policy.Window {
			s.forget() // nobody has looked for long
			s.begun = now
		}
	}
	d, ok := o.Tally.since(&s.last)
	if ok && s.id == o.ID {
		s.window[s.at].Add(&d)
		if d.Answered > 0 {
			s.answered = now
		}
	} else {
		s.forget()
	}
	s.id, s.last = o.ID, o.Tally
}

// sum is what was counted within the window.
func (s *seen) sum() (t Tally) {
	for i := range s.window {
		t.Add(&s.window[i])
	}
	return t
}

// Look takes what has been counted of all backends that are to be judged, those of one
// service one after the other, and says what follows from it. Those that are not there
// any more are forgotten.
func (w *Watch) Look(now time.Time, all []Observation) (out []Finding) {
	if w.seen == nil {
		w.seen = make(map[Key]*seen)
	}
	w.turn++
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Service == all[0].Service {
			n++
		}
		out = w.judge(out, now, all[:n])
		all = all[n:]
	}
	for k, s := range w.seen {
		if s.turn != w.turn {
			delete(w.seen, k)
		}
	}
	return out
}

// judge is Look for one service.
func (w *Watch) judge(out []Finding, now time.Time, service []Observation) []Finding {
	var whole Tally
	of, sums, down := make([]*seen, len(service)), make([]Tally, len(service)), 0
	for i := range service {
		o := &service[i]
		s := w.seen[o.Key]
		if s == nil {
			s = &seen{id: o.ID, last: o.Tally, begun: now}
			w.seen[o.Key] = s
		}
		s.turn = w.turn
		s.note(o, now)
		of[i], sums[i] = s, s.sum()
		whole.Add(&sums[i])
		if now.Before(s.until) {
			down++
		}
	}
	for i := range service {
		p, s, sum := service[i].Policy, of[i], &sums[i]
		others, _ := whole.since(sum)
		switch {
		case now.Before(s.until):
			s.forget() // it gets what it had before, or what nobody else could take
		case p.TakeDown && p.convicts(sum, now.Sub(s.answered)) && p.well(&others) && 2*(down+1) <= len(service):
			down++
			s.until, s.suspect = now.Add(p.DownFor), false
			s.forget()
			out = append(out, Finding{service[i].Key, Condemned, sum.reason(), p.DownFor})
		case p.trips(sum, true):
			s.suspect, s.tripped = true, now
			s.forget()
			out = append(out, Finding{Key: service[i].Key, What: Suspected, Reason: sum.reason()})
		case s.suspect && p.clears(sum, now.Sub(s.tripped)):
			s.suspect = false
			out = append(out, Finding{Key: service[i].Key, What: Absolved})
		}
	}
	return out
}

// trips reports whether connections have failed as the policy says.
func (p *Passive) trips(t *Tally, resets bool) bool {
	failed, of := t.failed(resets)
	return failed >= uint64(p.Failures) && failed*100 >= uint64(p.Share)*of
}

// convicts reports whether connections have failed as the policy says of a backend that
// has answered nobody for so long, by nothing that clients could bring about.
func (p *Passive) convicts(t *Tally, silent time.Duration) bool {
	c := *t
	if silent < p.Window/2 {
		c.Answered, c.Unanswered = c.Answered+c.Unanswered, 0
	}
	return p.trips(&c, false)
}

// well reports whether somebody answers, and fewer connections fail than make suspect.
func (p *Passive) well(t *Tally) bool {
	failed, of := t.failed(false)
	return failed < of && failed*100 < uint64(p.Share)*of
}

// clears reports whether t, counted since the backend became suspect so long ago, ends
// the suspicion: one good connection does, if not too many others fail, and so does
// silence.
func (p *Passive) clears(t *Tally, after time.Duration) bool {
	failed, of := t.failed(true)
	if failed < of {
		return failed*100 < uint64(p.Share)*of
	}
	return failed == 0 && after >= p.Window
}

package health

import "time"

// Suspect has a backend checked now, or once more as soon as a check that is under
// way has ended: somebody has reason to think that it is not what it is taken for. As
// long as checks find the same, until it is Down, the next one follows soon. Between the
// beginnings of two checks lies a tenth of FastInterval, or a second if that is less, all
// the same. Backends that are not checked are passed over; of Observed ones the suspicion
// is noted.
func (e *Engine) Suspect(k Key, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.entries[k]
	if t == nil {
		return
	}
	now := time.Now()
	if t.state != Down {
		t.suspect(now, reason)
	}
	switch {
	case t.Check.Kind == Observed:
	case t.running:
		t.again = true
	default:
		t.hurry(now)
		e.queue.set(t)
		e.rouse()
	}
}

// suspect notes a suspicion, which others may be looking at.
func (t *entry) suspect(now time.Time, reason string) {
	s := Suspicion{Since: now, Reason: reason}
	if old := t.status.Suspect; old != nil {
		s.Since = old.Since
	} else {
		t.history = t.history.add(Change{At: now, From: t.state, To: t.state, Reason: reason})
	}
	t.status.Suspect = &s
}

// Absolve ends the suspicion about a backend.
func (e *Engine) Absolve(k Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.entries[k]; t != nil {
		t.status.Suspect = nil
	}
}

// TakeDown takes a backend down for so long at least, unless it is down already. Then
// checks bring it up, as ever, or, if it is Observed, the end of that time.
func (e *Engine) TakeDown(k Key, reason string, d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.entries[k]
	if t == nil || t.state == Down {
		return
	}
	now := time.Now()
	t.until = now.Add(d)
	t.status.Reason = reason
	e.enter(t, Down, now)
	e.queue.set(t)
	e.rouse()
}

// lapses reports whether its being down ends by itself.
func (t *entry) lapses() bool { return t.state == Down && t.Check.Kind == Observed }

package health

import (
	"fmt"
	"time"
)

// State is what a backend is taken for.
type State uint8

// States.
const (
	Unknown State = iota // not checked yet; takes flows
	Up
	Down
)

// String is up, down or unknown.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText is String, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *State) UnmarshalText(b []byte) error {
	for _, one := range []State{Unknown, Up, Down} {
		if one.String() == string(b) {
			*s = one
			return nil
		}
	}
	return fmt.Errorf("%q is not the state of a backend", b)
}

// machine is a backend's state and what speaks against it.
type machine struct {
	state State
	// against counts results in a row that are not what state lets expect.
	against int
}

// result takes the result of a check and reports whether the state is another now.
func (m *machine) result(ok bool, rise, fall int) bool {
	to, need := Up, rise
	if !ok {
		to, need = Down, fall
	}
	if m.state == to {
		m.against = 0
		return false
	}
	if m.against++; m.state != Unknown && m.against < need {
		return false
	}
	m.state, m.against = to, 0
	return true
}

// changing reports that results speak against the state.
func (m *machine) changing() bool { return m.against > 0 }

// Change is one change of a backend's state, or, with From and To equal, a suspicion
// about it.
type Change struct {
	At     time.Time `json:"at"`
	From   State     `json:"from"`
	To     State     `json:"to"`
	Reason string    `json:"reason"` // of the result that made it
}

// Suspicion is why a backend may not be what it is taken for.
type Suspicion struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"` // the latest
}

// maxHistory is how many changes are kept of a backend.
const maxHistory = 32

// history is the last changes, oldest first.
type history []Change

func (h history) add(c Change) history {
	if n := len(h); n > 0 && c.From == c.To && h[n-1].From == h[n-1].To {
		h[n-1] = c // suspicions alone do not fill it
		return h
	}
	if len(h) == maxHistory {
		copy(h, h[1:])
		h = h[:maxHistory-1]
	}
	return append(h, c)
}

// rampSteps is in how many steps a backend comes to its full weight.
const rampSteps = 10

// ramp is how much of its weight a backend has.
type ramp struct {
	step int       // of rampSteps; 0 when it has all of it
	next time.Time // when the next step is due, if step is not 0
}

func (r *ramp) begin(now time.Time, slow time.Duration) {
	*r = ramp{}
	if slow > 0 {
		*r = ramp{1, now.Add(slow / rampSteps)}
	}
}

func (r *ramp) advance(now time.Time, slow time.Duration) {
	if r.step++; r.step >= rampSteps || slow <= 0 {
		*r = ramp{}
		return
	}
	r.next = now.Add(slow / rampSteps)
}

// percent of the weight.
func (r *ramp) percent() int {
	if r.step == 0 {
		return 100
	}
	return r.step * 100 / rampSteps
}

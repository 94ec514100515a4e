package config

import (
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Passive is what clients' own connections say about backends, and what follows.
type Passive struct {
	// Action: what to do with a backend under suspicion. Default: PassiveCheck where
	// backends are checked and their answers come by, else PassiveOff.
	Action PassiveAction `yaml:"action"`
	// Failures is how many connections at least must have failed within Window, and
	// Share the least percentage of them. Default: 5, and 50.
	Failures int `yaml:"failures"`
	Share    int `yaml:"share"`
	// Window is at least a second. Default: 10s.
	Window time.Duration `yaml:"window"`
	// DownFor is how long PassiveDown lasts at least. Default: 30s.
	DownFor time.Duration `yaml:"down_for"`
}

// PassiveAction is what becomes of a backend under suspicion.
type PassiveAction uint8

// The actions.
const (
	PassiveOff   PassiveAction = iota + 1 // nobody looks
	PassiveCheck                          // it is checked at once
	PassiveDown                           // it is down for a while
)

var passiveActionNames = names{"off", "check", "down"}

// String returns the name used in the configuration.
func (a PassiveAction) String() string { return passiveActionNames.name(uint8(a)) }

// leastWindow is in how much time counters are read once.
const leastWindow = time.Second

var passiveFields = []field[Passive]{
	enum("action", passiveActionNames, func(p *Passive) *PassiveAction { return &p.Action }, ""),
	integer("failures", 1, 1_000_000, func(p *Passive) *int { return &p.Failures }, ""),
	integer("share", 1, 100, func(p *Passive) *int { return &p.Share }, ""),
	plain("window", anyPlain, wantDuration, func(p *Passive) *time.Duration { return &p.Window }, parseDuration, formatDuration, ""),
	plain("down_for", anyPlain, wantDuration, func(p *Passive) *time.Duration { return &p.DownFor }, parseDuration, formatDuration, ""),
}

// passiveField is the key of a health check that has them.
var passiveField = field[HealthCheck]{
	key: "passive",
	decode: func(d *decoder, path string, n ast.Node, h *HealthCheck) {
		decodeMap(d, path, n, passiveFields, &h.Passive)
	},
	text: func(h *HealthCheck) string { return inBraces(passiveFields, &h.Passive) },
	doc: "What clients' connections say: a backend of which so many and such a percentage\n" +
		"stay unanswered, or are refused or reset, within the window is checked at once\n" +
		"(check) or is down for a while (down). off: nobody looks. Default: check where\n" +
		"there is a type and answers come by, else off.",
}

func defaultPassive() Passive {
	return Passive{Failures: 5, Share: 50, Window: 10 * time.Second, DownFor: 30 * time.Second}
}

// inherit fills in what follows from other keys of s, whose it is.
func (p *Passive) inherit(s *Service) {
	switch {
	case p.Action != 0:
	case s.HealthCheck.Type > CheckNone && s.answers():
		p.Action = PassiveCheck
	default:
		p.Action = PassiveOff
	}
}

// answers reports whether backends' answers to clients come by.
func (s *Service) answers() bool {
	return !s.Mode.Direct() && s.Mode != SNAT && s.Replies != RepliesElsewhere
}

// passive checks what a service says of it.
func (v *validator) passive(path string, s *Service) {
	h := &s.HealthCheck
	p, plain := h.Passive, defaultPassive()
	plain.Action = p.Action
	switch path += ".health_check.passive"; {
	case v.told[path+".action"]:
	case p.Action != PassiveOff && !s.answers():
		v.fail(path+".action", "backends answer past l4fwd, which sees no answers: expected off")
	case p.Action == PassiveCheck && h.Type == CheckNone:
		v.fail(path+".action", "check is for backends that are checked; there is no type")
	case p.Action == PassiveOff && p != plain:
		v.fail(path, "it is off: the rest means nothing")
	case p.Action == PassiveCheck && p.DownFor != plain.DownFor:
		v.fail(path+".down_for", "it is for down; the action is check")
	case p.Window < leastWindow:
		v.fail(path+".window", "%v is too short; expected at least %v", p.Window, leastWindow)
	}
}

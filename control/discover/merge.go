package discover

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/l4fwd/l4fwd/config"
)

// Document is what one key holds.
type Document struct {
	Key string `json:"key"`
	// Revision of etcd at which the value was written.
	Revision int64  `json:"revision"`
	Value    []byte `json:"value"`
}

// Set is all documents of the prefix at one revision. Nobody changes it.
type Set struct {
	// Revision of etcd.
	Revision int64
	// Documents in the order of their keys.
	Documents []Document
}

// Problem is why a document is not in force as it stands.
type Problem struct {
	// Key of the document, or the prefix where it is about all of them.
	Key string `json:"key"`
	// Text says what is wrong, and what is in force instead.
	Text string `json:"text"`
}

// String returns both.
func (p Problem) String() string { return p.Key + ": " + p.Text }

// Result is what a Merger makes of a configuration and documents.
type Result struct {
	// Config is the configuration with what documents add to it.
	Config *config.Config
	// Problems in the order of their keys.
	Problems []Problem
	// Services and Backends that documents have added.
	Services, Backends int
	// Objections is how many documents are refused for something else than what documents
	// and file say: the same set may do later.
	Objections int

	accepted []*document
}

// document is a Document that has been read.
type document struct {
	Document
	name    string                  // of the service
	service *config.ServiceDocument // nil: it is a backend
	backend *config.BackendDocument
	err     error // neither, for this
}

// Merger puts documents onto configurations. Its methods must not be called at the same
// time.
type Merger struct {
	prefix string // of the services' keys
	keep   bool
	read   map[string]*document // by key, as last seen
	good   map[string]*document // by key, in force
}

// NewMerger returns a Merger with nothing in force.
func NewMerger(e *config.Etcd) *Merger {
	return &Merger{
		prefix: servicesOf(e), keep: e.OnEmpty == config.OnEmptyKeep,
		read: make(map[string]*document), good: make(map[string]*document),
	}
}

// servicesOf is what the keys of all services begin with.
func servicesOf(e *config.Etcd) string { return e.Prefix + "/services/" }

// parse reads a document, unless it is as it was.
func (m *Merger) parse(d Document) *document {
	if was := m.read[d.Key]; was != nil && was.Revision == d.Revision && bytes.Equal(was.Value, d.Value) {
		return was
	}
	out := &document{Document: d}
	name, rest, below := strings.Cut(strings.TrimPrefix(d.Key, m.prefix), "/")
	id, isBackend := strings.CutPrefix(rest, "backends/")
	switch out.name = name; {
	case !isPlain(d.Key) || len(id) > maxID:
		out.err = fmt.Errorf("expected a key of printable characters, an ID of at most %d bytes", maxID)
	case !strings.HasPrefix(d.Key, m.prefix) || below && (!isBackend || id == "" || strings.Contains(id, "/")):
		out.err = fmt.Errorf("no key of a service or backend: expected %sNAME or %sNAME/backends/ID", m.prefix, m.prefix)
	case isBackend:
		out.backend, out.err = config.ParseBackend(d.Key, d.Value)
	default:
		out.service, out.err = config.ParseService(d.Key, name, d.Value)
	}
	return out
}

// maxID bounds what tells backends apart, in bytes: a host's name is not longer.
const maxID = 255

// isPlain reports whether text can be shown as it is: others write keys and documents, and
// a terminal obeys some characters.
func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Merge puts a set onto a valid configuration. against, if not nil, says what somebody
// else, such as the host, has against a service that is to be served. The error is that of
// ctx, that of a file that is wrong, or a fault of this package.
func (m *Merger) Merge(ctx context.Context, base *config.Config, set *Set, against func(*config.Service) error) (*Result, error) {
	g := merging{Merger: m, ctx: ctx, base: base, against: against, read: make(map[string]*document, len(set.Documents))}
	items := g.candidates(set)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	byAge(items)
	if err := g.merge(items); err != nil {
		if g.accepted, err = g.weigh(items); err != nil {
			return nil, err
		}
		if err := g.merge(g.accepted); err != nil {
			return nil, fmt.Errorf("documents that go together one by one do not all together: %w", err)
		}
	}
	out := &Result{Config: g.config, Services: len(g.config.Services) - len(base.Services), accepted: g.accepted, Objections: g.objected}
	for _, s := range g.config.Services[len(base.Services):] {
		out.Backends += len(s.Backends)
	}
	g.idle()
	for _, p := range g.problems {
		out.Problems = append(out.Problems, p)
	}
	slices.SortFunc(out.Problems, func(a, b Problem) int { return strings.Compare(a.Key, b.Key) })
	m.read = g.read
	return out, nil
}

// byAge sorts documents by when they were written.
func byAge(items []*document) {
	slices.SortFunc(items, func(a, b *document) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Key, b.Key))
	})
}

// Commit says that a result of Merge is in force. It reports whether that is anything new.
func (m *Merger) Commit(r *Result) bool {
	good := make(map[string]*document, len(r.accepted))
	changed := len(r.accepted) != len(m.good)
	for _, d := range r.accepted {
		good[d.Key] = d
		was := m.good[d.Key]
		changed = changed || was == nil || was.Revision != d.Revision || !bytes.Equal(was.Value, d.Value)
	}
	m.good = good
	return changed
}

// InForce returns the documents in force.
func (m *Merger) InForce() []Document {
	out := make([]Document, 0, len(m.good))
	for _, d := range m.good {
		out = append(out, d.Document)
	}
	slices.SortFunc(out, func(a, b Document) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Recall takes documents of an earlier run for those in force.
func (m *Merger) Recall(documents []Document) {
	for _, d := range documents {
		if p := m.parse(d); p.err == nil {
			m.good[d.Key] = p
		}
	}
}

// merging is one Merge.
type merging struct {
	*Merger
	ctx      context.Context // of Merge, which it does not outlive
	base     *config.Config
	against  func(*config.Service) error
	read     map[string]*document
	config   *config.Config // of what is accepted
	accepted []*document
	problems map[string]Problem
	objected int
}

func (g *merging) problem(key, format string, args ...any) {
	if g.problems == nil {
		g.problems = make(map[string]Problem)
	}
	shown := key
	if len(key) > maxReason || !isPlain(key) {
		shown = strconv.QuoteToASCII(shorten(key))
	}
	g.problems[key] = Problem{shown, fmt.Sprintf(format, args...)}
}

// candidates are the documents that can be read, each in its last good version if this
// one cannot, and those that stay although they are gone.
func (g *merging) candidates(set *Set) (out []*document) {
	backends := make(map[string]int) // by service
	for _, d := range set.Documents {
		if g.ctx.Err() != nil {
			return nil // reading a hundred thousand takes seconds
		}
		p := g.parse(d)
		g.read[d.Key] = p
		if p.err != nil {
			p = g.fallback(p, p.err)
		}
		if p == nil {
			continue
		}
		out = append(out, p)
		if p.service != nil {
			backends[p.name] += p.service.Backends()
		} else {
			backends[p.name]++
		}
	}
	isService := func(d *document) bool { return d.service != nil }
	switch {
	case !g.keep:
		return out
	case !slices.ContainsFunc(out, isService) && slices.ContainsFunc(slices.Collect(maps.Values(g.good)), isService):
		// Backends are no sign of life: in an etcd that was wiped they register again by
		// themselves, and services do not.
		g.problem(g.prefix, "no service is there any more: all stays as it was (on_empty: keep)")
		return slices.Collect(maps.Values(g.good))
	}
	good := make(map[string][]*document) // by service
	for _, was := range g.good {
		good[was.name] = append(good[was.name], was)
	}
	for i, d := range out {
		if d.service == nil || backends[d.name] > 0 {
			continue
		}
		for _, was := range good[d.name] {
			switch {
			case was.backend != nil:
				out = append(out, was)
			case was.service.Backends() > 0:
				out[i] = was
			default:
				continue
			}
			g.problem(d.Key, "it has no backend any more: the last ones stay (on_empty: keep)")
		}
	}
	return out
}

// fallback is the version of a document that stays, nil if there is none, and notes why.
func (g *merging) fallback(d *document, err error) *document {
	was := g.good[d.Key]
	if was == nil || was == d {
		g.problem(d.Key, "refused: %s", reason(d.Key, err))
		return nil
	}
	g.problem(d.Key, "refused, its version of revision %d stays: %s", was.Revision, reason(d.Key, err))
	return was
}

// Bounds of a reason, which goes into the log: a document of a megabyte may have a hundred
// thousand things wrong with it.
const (
	mostReasons = 10
	maxReason   = 2000 // bytes
)

// reason is an error about a document on one line, without its key.
func reason(key string, err error) string {
	var errs config.Errors
	if !errors.As(err, &errs) {
		return shorten(plain(strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	lines := make([]string, min(len(errs), mostReasons))
	for i := range lines {
		lines[i] = strings.TrimPrefix(errs[i].String(), key+": ")
	}
	text := shorten(plain(strings.Join(lines, "; ")))
	if n := len(errs) - len(lines); n > 0 {
		text += fmt.Sprintf("; and %d more", n)
	}
	return text
}

// plain replaces what isPlain does not like.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// shorten cuts what is too long for a line of the log.
func shorten(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "..."
}

// merge takes documents all together, or, with an error, none.
func (g *merging) merge(all []*document) error {
	c, err := g.base.With(g.compose(all))
	if err != nil {
		return err
	}
	if g.against != nil {
		for i := range c.Services[len(g.base.Services):] {
			if err := g.against(&c.Services[len(g.base.Services)+i]); err != nil {
				return err
			}
		}
	}
	g.config, g.accepted = c, all
	return nil
}

// weigh returns the documents that go together, of those that do not the older ones. Each
// is judged by what was accepted before it; should it be refused, the version of it that
// stays is judged in its place. This happens at every change as long as anything is
// refused, so it must not cost more than what is accepted.
func (g *merging) weigh(items []*document) (accepted []*document, err error) {
	sum := g.base.Sum(func(s *config.Service) error {
		if g.against != nil {
			if err := g.against(s); err != nil {
				return &objection{err}
			}
		}
		return nil
	})
	add := func(d *document) error {
		err := g.ctx.Err()
		switch {
		case err != nil:
		case d.service != nil:
			err = sum.AddService(d.service)
		default:
			err = sum.AddBackend(d.name, d.backend)
		}
		if err == nil {
			accepted = append(accepted, d)
		}
		return err
	}
	for _, d := range items {
		err := add(d)
		if err == nil {
			continue
		}
		g.blame(err)
		if d = g.fallback(d, err); d == nil {
			continue
		}
		if err := add(d); err != nil {
			g.blame(err)
			g.problem(d.Key, "refused, and so is the version before it: %s", reason(d.Key, err))
		}
	}
	// What was refused after ctx was done was refused for nothing.
	return accepted, g.ctx.Err()
}

// objection is what somebody else has against a document.
type objection struct{ error }

func (o *objection) Unwrap() error { return o.error }

// blame counts objections.
func (g *merging) blame(err error) {
	if errors.As(err, new(*objection)) {
		g.objected++
	}
}

// compose puts services together, in the order of their names. A backend without a service
// is none.
func (g *merging) compose(all []*document) (out []config.Found) {
	at := make(map[string]int)                                                 // services by name, in out
	sorted := slices.SortedFunc(slices.Values(all), func(a, b *document) int { // whenever they were written
		return strings.Compare(a.Key, b.Key)
	})
	for _, d := range sorted {
		if d.service != nil {
			at[d.name] = len(out)
			out = append(out, config.Found{Service: d.service})
		}
	}
	for _, d := range sorted {
		if i, ok := at[d.name]; ok && d.backend != nil {
			out[i].Backends = append(out[i].Backends, d.backend)
		}
	}
	return out
}

// idle notes what is accepted and does nothing.
func (g *merging) idle() {
	services, backends := make(map[string]bool), make(map[string]bool)
	for _, d := range g.accepted {
		if d.service != nil {
			services[d.name] = true
			backends[d.name] = backends[d.name] || d.service.Backends() > 0
		} else {
			backends[d.name] = true
		}
	}
	for _, d := range g.accepted {
		switch _, told := g.problems[d.Key]; {
		case told:
		case d.service == nil && !services[d.name]:
			g.problem(d.Key, "there is no service %s%s, so it does nothing", g.prefix, d.name)
		case d.service != nil && !backends[d.name]:
			g.problem(d.Key, "it has no backends, so it is not served")
		}
	}
}

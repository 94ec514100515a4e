package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ServiceDocument is a service that stands elsewhere than in the file, sound as far as
// that can be said of it alone. It is never changed.
type ServiceDocument struct {
	source  string
	service Service             // what it does not say is zero
	at      map[string]position // of the keys it has
}

// BackendDocument is a backend of a service that stands elsewhere than in the file.
type BackendDocument struct {
	source  string
	backend Backend
}

// Found is a service put together of documents.
type Found struct {
	Service *ServiceDocument
	// Backends are those beside what the service's own document has.
	Backends []*BackendDocument
}

// Name of the service.
func (s *ServiceDocument) Name() string { return s.service.Name }

// Backends is how many backends the document itself has.
func (s *ServiceDocument) Backends() int { return len(s.service.Backends) }

// ParseService reads a service from a JSON object with the keys that it has in the file;
// name may be left out, and backends. source is what messages call the document. The
// error is of type Errors.
func ParseService(source, name string, data []byte) (*ServiceDocument, error) {
	d := newDecoder(source)
	s := defaultService()
	name, err := parseServiceName(name)
	if err != nil {
		d.fail("", "%v", err)
		return nil, d.unplaced()
	}
	if !decodeDocument(d, data, serviceFields, &s) {
		return nil, d.unplaced()
	}
	if s.Name != "" && s.Name != name {
		d.fail("name", "it is %q by its key, and %q here", name, s.Name)
	}
	s.Name = name
	for i := range serviceFields {
		if f := &serviceFields[i]; f.required && f.key != "name" && f.key != "backends" && !d.c.given(f.key) {
			d.fail("", "the key %s is missing", f.key)
		}
	}
	if s.HealthCheck.Type == CheckExec {
		// Who may write documents may not for that run commands here, as root.
		d.fail("health_check.type", "exec is for the file alone")
	}
	if len(d.errs) > 0 {
		return nil, d.unplaced()
	}
	return &ServiceDocument{source: source, service: s, at: d.c.at}, nil
}

// ParseBackend reads a backend in the same way.
func ParseBackend(source string, data []byte) (*BackendDocument, error) {
	d := newDecoder(source)
	b := defaultBackend()
	if decodeDocument(d, data, backendFields, &b) && !d.c.given("address") {
		d.fail("", "the key address is missing")
	}
	if len(d.errs) > 0 {
		return nil, d.unplaced()
	}
	return &BackendDocument{source: source, backend: b}, nil
}

// decodeDocument fills t from JSON.
func decodeDocument[T any](d *decoder, data []byte, fields []field[T], t *T) bool {
	root := d.parseJSON(data)
	return root != nil && decodeMap(d, "", root, fields, t)
}

// unplaced are the errors without lines and columns, which are not the document's.
func (d *decoder) unplaced() Errors {
	d.errs.sort()
	for i := range d.errs {
		d.errs[i].Line, d.errs[i].Column = 0, 0
	}
	return d.errs
}

// With returns a valid configuration with more services behind its own, those of
// documents, which get what they do not say from it. One that has no backends keeps its
// name and address from others, and is not in the result. An error is of type Errors, and
// names documents where it is about them.
func (c *Config) With(found []Found) (*Config, error) {
	out := *c
	out.Services = slices.Grow(slices.Clone(c.Services), len(found))
	out.at = maps.Clone(c.at)
	served := out.join(found)
	if errs := out.validate(nil); len(errs) > 0 {
		return nil, errs
	}
	out.Services = out.Services[:served:served]
	return &out, nil
}

// join puts services of documents behind the others, and returns the number of those that
// are served, which come before the rest.
func (c *Config) join(found []Found) (served int) {
	idle := func(f Found) bool { return f.Service.Backends()+len(f.Backends) == 0 }
	for _, f := range found {
		if !idle(f) {
			c.add(f)
		}
	}
	served = len(c.Services)
	for _, f := range found {
		if idle(f) {
			c.add(f)
			c.Services[len(c.Services)-1].Backends = nil // no list that is empty by mistake
		}
	}
	return served
}

// add puts a service of documents behind the others.
func (c *Config) add(f Found) {
	s := f.Service.service
	s.Backends = slices.Clone(s.Backends)
	s.inherit(c)
	base := c.place(len(c.Services))
	here := position{doc: &docPosition{f.Service.source, base}}
	c.at[base] = here
	for path := range f.Service.at {
		if path != "" {
			c.at[base+"."+path] = here
		}
	}
	for _, b := range f.Backends {
		path := fmt.Sprintf("%s.backends[%d]", base, len(s.Backends))
		c.at[path] = position{doc: &docPosition{b.source, path}}
		s.Backends = append(s.Backends, b.backend)
	}
	c.Services = append(c.Services, s)
}

// place is the path of a service.
func (c *Config) place(i int) string {
	switch p := c.part; {
	case p == nil:
	case i < len(p.places):
		i = p.places[i]
	default:
		i += len(p.of.Services) - len(p.places) // a number that no other has
	}
	return fmt.Sprintf("services[%d]", i)
}

// position is where a field stands.
func (c *Config) position(path string) (position, bool) {
	at, ok := c.at[path]
	if !ok && c.part != nil {
		at, ok = c.part.of.at[path]
	}
	return at, ok
}

// called is what messages call a service: by its place in the file, or its document.
func (c *Config) called(i int) string {
	path := c.place(i)
	if at, _ := c.position(path); at.doc != nil {
		return at.doc.source
	}
	return path
}

// calledBackend is what messages about the service call a backend of it: by its place
// beside the other one, or its document.
func (c *Config) calledBackend(service string, i int) string {
	path := fmt.Sprintf("%s.backends[%d]", service, i)
	if at, _ := c.position(path); at.doc != nil && at.doc.path == path {
		return at.doc.source
	}
	return strings.TrimPrefix(path, service+".")
}

// calledFully is what messages about other services call a backend.
func (c *Config) calledFully(service, i int) string {
	name := c.calledBackend(c.place(service), i)
	if strings.HasPrefix(name, "backends[") {
		name = c.called(service) + "." + name
	}
	return name
}

package config

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// writer builds YAML text line by line.
type writer struct {
	b        strings.Builder
	comments bool
}

// line writes one line behind n levels of indentation.
func (w *writer) line(n int, format string, args ...any) {
	w.b.WriteString(strings.Repeat("  ", n))
	fmt.Fprintf(&w.b, format, args...)
	w.b.WriteByte('\n')
}

func (w *writer) doc(n int, doc string) {
	if !w.comments {
		return
	}
	for l := range strings.SplitSeq(doc, "\n") {
		w.line(n, "# %s", l)
	}
}

// ShowDefaults writes a commented configuration of all keys with their
// defaults. What has no default stands there as an example, so that the whole
// is valid.
func ShowDefaults(out io.Writer) error {
	w := &writer{comments: true}
	w.b.WriteString("# All keys of l4fwd with their defaults. Interfaces, addresses and the service\n" +
		"# are examples. Durations are Go's: 100ms, 30s, 2h4m.\n")
	w.config(example())
	_, err := io.WriteString(out, w.b.String())
	return err
}

// example returns the defaults with one of everything that has none.
func example() *Config {
	d := newDecoder("example")
	c := d.c
	c.Interfaces = []Interface{{Name: "eth1"}, {Name: "eth2", VLANs: []VLAN{{ID: 10, Interface: "br10"}}}}
	c.LocalAddresses = []LocalRange{
		{First: netip.MustParseAddr("10.0.1.10"), Last: netip.MustParseAddr("10.0.1.13")},
		{First: netip.MustParseAddr("10.0.1.2"), Last: netip.MustParseAddr("10.0.1.2"),
			Ports: PortRange{20000, 29999}, OwnPorts: true},
	}
	s := defaultService()
	s.Name, s.Address = "web", netip.MustParseAddrPort("192.0.2.10:80")
	s.Protocol, s.Mode = TCP, FullNAT
	b := defaultBackend()
	b.Address = netip.MustParseAddrPort("10.0.1.20:8080")
	s.Backends = []Backend{b}
	c.Services = []Service{s}
	d.inherit(c)
	return c
}

// MarshalYAML returns the effective configuration: every key, defaults
// included. Parsed again it gives an equal Config.
func (c *Config) MarshalYAML() ([]byte, error) {
	w := &writer{}
	w.config(c)
	return []byte(w.b.String()), nil
}

func (w *writer) config(c *Config) {
	for _, f := range topFields {
		if w.comments {
			w.b.WriteByte('\n')
		}
		w.doc(0, f.doc)
		if f.text != nil {
			w.line(0, "%s: %s", f.key, f.text(c))
			continue
		}
		switch f.key {
		case "interfaces":
			w.interfaces(c)
		case "local_addresses":
			w.locals(c)
		case "services":
			w.services(c)
		case "discovery":
			w.discovery(c)
		case "timeouts":
			w.line(0, "%s:", f.key)
			for _, t := range timeoutFields {
				w.timeout(1, t, &c.Timeouts)
			}
		}
	}
}

func (w *writer) timeout(n int, f field[Timeouts], t *Timeouts) {
	value := f.key + ": " + f.text(t)
	if w.comments {
		value = fmt.Sprintf("%-24s # %s", value, f.doc)
	}
	w.line(n, "%s", value)
}

// empty writes a key without elements, as a list of none is not a mistake here
// but must not become null.
func (w *writer) empty(n int, key string, length int) {
	if length == 0 {
		w.line(n, "%s: []", key)
	} else {
		w.line(n, "%s:", key)
	}
}

func (w *writer) interfaces(c *Config) {
	w.empty(0, "interfaces", len(c.Interfaces))
	for i := range c.Interfaces {
		f, nic := interfaceFields[0], &c.Interfaces[i]
		if i == 0 {
			for _, f := range interfaceFields {
				w.doc(1, f.key+": "+f.doc)
			}
		}
		w.line(1, "- %s: %s", f.key, f.text(nic))
		if len(nic.VLANs) > 0 {
			w.line(2, "vlans: %s", inBrackets(nic.VLANs))
		}
	}
}

// inBrackets is a list of VLANs on one line.
func inBrackets(list []VLAN) string {
	parts := make([]string, len(list))
	for i := range list {
		parts[i] = inBraces(vlanFields, &list[i])
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func (w *writer) locals(c *Config) {
	w.empty(0, "local_addresses", len(c.LocalAddresses))
	address, ports := localFields[0], localFields[1]
	for i := range c.LocalAddresses {
		r := &c.LocalAddresses[i]
		if !r.OwnPorts {
			w.line(1, "- %s", address.text(r))
			continue
		}
		if w.comments {
			w.doc(1, address.key+": "+address.doc)
			w.doc(1, ports.key+": "+ports.doc)
		}
		w.line(1, "- {%s: %s, %s: %s}", address.key, address.text(r), ports.key, ports.text(r))
	}
}

func (w *writer) services(c *Config) {
	w.empty(0, "services", len(c.Services))
	for i := range c.Services {
		s := &c.Services[i]
		for j, f := range serviceFields {
			if s.Mode == SNAT && slices.Contains(flowKeys, f.key) {
				continue
			}
			if j > 0 || w.comments {
				w.doc(2, f.doc)
			}
			dash := "  "
			if j == 0 {
				dash = "- "
			}
			switch f.key {
			case "timeouts":
				w.serviceTimeouts(c, s, f.key)
			case "backends":
				w.backends(s, f.key)
			case "persistence":
				w.line(2, "%s: %s", f.key, inBraces(persistenceFields, &s.Persistence))
			case "health_check":
				w.healthCheck(s, f.key)
			case "quic":
				w.line(2, "%s:", f.key)
				for _, q := range quicFields {
					w.line(3, "%s: %s", q.key, q.text(&s.QUIC))
				}
			case "toa_kind", "tcp_checks":
				if w.comments || f.text(s) != find(topFields, f.key).text(c) {
					w.line(1, "%s%s: %s", dash, f.key, f.text(s))
				}
			default:
				w.line(1, "%s%s: %s", dash, f.key, f.text(s))
			}
		}
	}
}

// inBraces is a mapping of plain values on one line.
func inBraces[T any](fields []field[T], t *T) string {
	parts := make([]string, len(fields))
	for i, f := range fields {
		parts[i] = f.key + ": " + f.text(t)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// serviceTimeouts writes those that are not the global ones.
func (w *writer) serviceTimeouts(c *Config, s *Service, key string) {
	own := writer{}
	for _, f := range timeoutFields {
		if f.text(&s.Timeouts) != f.text(&c.Timeouts) {
			own.line(3, "%s: %s", f.key, f.text(&s.Timeouts))
		}
	}
	switch {
	case own.b.Len() > 0:
		w.line(2, "%s:", key)
		w.b.WriteString(own.b.String())
	case w.comments:
		w.line(2, "%s: {}", key)
	}
}

func (w *writer) backends(s *Service, key string) {
	w.empty(2, key, len(s.Backends))
	for i := range s.Backends {
		for _, f := range backendFields {
			if i == 0 && w.comments {
				w.doc(3, f.key+": "+f.doc)
			}
		}
		w.line(3, "- %s", inBraces(backendFields, &s.Backends[i]))
	}
}

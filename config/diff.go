package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
)

// Change is one difference between two configurations.
type Change struct {
	// Path names what is different, elements of lists by name or address:
	// services[web].backends[10.0.1.20:8080].weight.
	Path string
	// Old and New are the values as YAML. Old is empty for what was added, New
	// for what was removed.
	Old, New string
	// Restart says that the change needs a new process.
	Restart bool
}

// String returns the change in words.
func (c Change) String() string {
	var s string
	switch {
	case c.Old == "":
		s = fmt.Sprintf("%s: added, %s", c.Path, c.New)
	case c.New == "":
		s = fmt.Sprintf("%s: removed, was %s", c.Path, c.Old)
	default:
		s = fmt.Sprintf("%s: %s → %s", c.Path, c.Old, c.New)
	}
	if c.Restart {
		s += " (needs a restart)"
	}
	return s
}

// Diff returns what is different in b, key by key. Services are told apart by
// their name, backends and local addresses by their address; the order of
// lists is no difference, save that of interfaces. A service that follows a
// global key is not named when that key changes.
func Diff(a, b *Config) []Change {
	var out []Change
	for _, f := range topFields {
		switch {
		case f.text != nil:
			out = compare(out, f.key, f, a, b)
		case f.key == "interfaces":
			out = diffInterfaces(out, a, b)
		case f.key == "local_addresses":
			out = diffLocals(out, a, b)
		case f.key == "services":
			out = diffServices(out, a, b)
		case f.key == "discovery":
			for _, e := range etcdFields {
				out = compare(out, "discovery.etcd."+e.key, e, &a.Discovery.Etcd, &b.Discovery.Etcd)
			}
		case f.key == "timeouts":
			for _, t := range timeoutFields {
				out = compare(out, "timeouts."+t.key, t, &a.Timeouts, &b.Timeouts)
			}
		}
	}
	return out
}

// compare adds a change if a field is different.
func compare[T any](out []Change, path string, f field[T], a, b *T) []Change {
	if before, after := f.text(a), f.text(b); before != after {
		out = append(out, Change{path, before, after, f.restart})
	}
	return out
}

// diffList adds what is in one list only, and calls both for what is in the two.
func diffList[T any, K comparable](out []Change, path string, a, b []T, key func(*T) K,
	words func(*T) string, both func([]Change, string, *T, *T) []Change) []Change {
	before := make(map[K]*T, len(a))
	for i := range a {
		before[key(&a[i])] = &a[i]
	}
	kept := make(map[K]bool, len(b))
	for i := range b {
		k := key(&b[i])
		kept[k] = true
		sub := fmt.Sprintf("%s[%v]", path, k)
		if old, ok := before[k]; ok {
			out = both(out, sub, old, &b[i])
		} else {
			out = append(out, Change{Path: sub, New: words(&b[i])})
		}
	}
	for i := range a {
		if k := key(&a[i]); !kept[k] {
			out = append(out, Change{Path: fmt.Sprintf("%s[%v]", path, k), Old: words(&a[i])})
		}
	}
	return out
}

func diffInterfaces(out []Change, a, b *Config) []Change {
	same := func(x, y Interface) bool { return x.Name == y.Name && slices.Equal(x.VLANs, y.VLANs) }
	if slices.EqualFunc(a.Interfaces, b.Interfaces, same) {
		return out
	}
	words := func(c *Config) string {
		s := ""
		for i := range c.Interfaces {
			s += " " + c.Interfaces[i].Name
			if v := c.Interfaces[i].VLANs; len(v) > 0 {
				s += " with " + inBrackets(v)
			}
		}
		return "[" + s[min(1, len(s)):] + "]"
	}
	return append(out, Change{"interfaces", words(a), words(b), true})
}

func diffLocals(out []Change, a, b *Config) []Change {
	words := func(r *LocalRange) string { return "ports " + r.Ports.String() }
	return diffList(out, "local_addresses", eachLocal(a), eachLocal(b),
		func(r *LocalRange) string { return r.String() }, words,
		func(out []Change, path string, x, y *LocalRange) []Change {
			follows := !x.OwnPorts && !y.OwnPorts
			if words(x) != words(y) && !follows {
				out = append(out, Change{Path: path, Old: words(x), New: words(y)})
			}
			return out
		})
}

// eachLocal returns the entries that a and b may share as ranges, cut where
// nothing but the way they are written is different.
func eachLocal(c *Config) []LocalRange {
	var out []LocalRange
	for a, r := range c.Locals() {
		r.First, r.Last = a, a
		out = append(out, r)
	}
	return out
}

func diffServices(out []Change, a, b *Config) []Change {
	words := func(s *Service) string {
		return fmt.Sprintf("%v %v %v, %d backends", s.Protocol, s.Address, s.Mode, len(s.Backends))
	}
	both := func(out []Change, path string, x, y *Service) []Change {
		if reflect.DeepEqual(x, y) { // as nearly all are; a look at their texts takes eight times as long
			return out
		}
		for _, f := range serviceFields {
			switch f.key {
			case "toa_kind", "tcp_checks", "drain_timeout":
				global := find(topFields, f.key)
				if f.text(x) != global.text(a) || f.text(y) != global.text(b) {
					out = compare(out, path+"."+f.key, f, x, y)
				}
			case "timeouts":
				out = diffTimeouts(out, path+"."+f.key, a, b, x, y)
			case "persistence":
				for _, p := range persistenceFields {
					out = compare(out, path+"."+f.key+"."+p.key, p, &x.Persistence, &y.Persistence)
				}
			case "health_check":
				for _, h := range healthFields {
					out = compare(out, path+"."+f.key+"."+h.key, h, &x.HealthCheck, &y.HealthCheck)
				}
			case "quic":
				for _, q := range quicFields {
					out = compare(out, path+"."+f.key+"."+q.key, q, &x.QUIC, &y.QUIC)
				}
			case "backends":
				out = diffBackends(out, path+"."+f.key, x, y)
			default:
				out = compare(out, path+"."+f.key, f, x, y)
			}
		}
		return out
	}
	return diffList(out, "services", a.Services, b.Services,
		func(s *Service) string { return s.Name }, words, both)
}

// diffTimeouts leaves out those that follow the global ones before and after.
func diffTimeouts(out []Change, path string, a, b *Config, x, y *Service) []Change {
	for _, f := range timeoutFields {
		follows := f.text(&x.Timeouts) == f.text(&a.Timeouts) && f.text(&y.Timeouts) == f.text(&b.Timeouts)
		if !follows {
			out = compare(out, path+"."+f.key, f, &x.Timeouts, &y.Timeouts)
		}
	}
	return out
}

func diffBackends(out []Change, path string, x, y *Service) []Change {
	weight, rest := backendFields[1], backendFields[1:] // all but the address
	return diffList(out, path, x.Backends, y.Backends,
		func(b *Backend) netip.AddrPort { return b.Address },
		func(b *Backend) string { return "weight " + weight.text(b) },
		func(out []Change, path string, p, q *Backend) []Change {
			for _, f := range rest {
				out = compare(out, path+"."+f.key, f, p, q)
			}
			return out
		})
}

package config

import (
	"fmt"
	"net/netip"
	"slices"
)

// tunnelSource checks that no packet of a service's tunnels can come from somebody
// else, who would get what is said about it, or be taken for its own source.
func (v *validator) tunnelSource(i int) {
	source := v.c.Services[i].EncapsulationSource
	if !source.IsValid() {
		return
	}
	if v.held == nil {
		v.held, v.inUse = make(map[netip.Prefix]string), v.c.addresses()
	}
	held, ok := v.held[source]
	if !ok {
		if v.inUse.in(source) || v.ranges().in(source) {
			held = v.holds(source)
		}
		v.held[source] = held
	}
	if held != "" {
		v.fail(v.c.place(i)+".encapsulation_source", "%s", held)
	}
}

// holds says what a network holds that has an address already: the first of the VIPs and
// backends, else of the local addresses.
func (v *validator) holds(source netip.Prefix) string {
	for j := range v.c.Services {
		s := &v.c.Services[j]
		if a := s.Address.Addr(); a.IsValid() && source.Contains(a) {
			return fmt.Sprintf("%v holds the VIP %v of %s", source, a, v.c.called(j))
		}
		for k, b := range s.Backends {
			if a := b.Address.Addr(); a.IsValid() && source.Contains(a) {
				return fmt.Sprintf("%v holds %v, a backend (%s)", source, a, v.c.calledFully(j, k))
			}
		}
	}
	for j, r := range v.c.LocalAddresses {
		if r.First.IsValid() && r.Last.IsValid() && (source.Contains(r.First) || source.Contains(r.Last) ||
			r.First.Less(source.Addr()) && source.Addr().Less(r.Last)) {
			return fmt.Sprintf("%v holds a local address (local_addresses[%d])", source, j)
		}
	}
	return ""
}

// spans are addresses, of which one can ask whether any are in a network without a look
// at all of them.
type spans []span // by their first

type span struct{ first, last netip.Addr }

// newSpans sorts a list, and has each span end where the last of it and those before does.
func newSpans(list []span) spans {
	slices.SortFunc(list, func(a, b span) int { return a.first.Compare(b.first) })
	for i := 1; i < len(list); i++ {
		if list[i].last.Less(list[i-1].last) {
			list[i].last = list[i-1].last
		}
	}
	return list
}

// addresses are the VIPs and backends.
func (c *Config) addresses() spans {
	var list []span
	add := func(a netip.Addr) {
		if a.IsValid() {
			list = append(list, span{a, a})
		}
	}
	for i := range c.Services {
		s := &c.Services[i]
		add(s.Address.Addr())
		for _, b := range s.Backends {
			add(b.Address.Addr())
		}
	}
	return newSpans(list)
}

// ranges are the local addresses.
func (v *validator) ranges() spans {
	if v.localSpans == nil {
		list := []span{}
		for _, r := range v.c.LocalAddresses {
			if r.First.IsValid() && r.Last.IsValid() {
				list = append(list, span{r.First, r.Last})
			}
		}
		v.localSpans = newSpans(list)
	}
	return v.localSpans
}

// in reports whether a network has any of the addresses.
func (s spans) in(p netip.Prefix) bool {
	p = p.Masked()
	// The last span that begins within the network or before it.
	n, _ := slices.BinarySearchFunc(s, p, func(x span, p netip.Prefix) int {
		if x.first.Less(p.Addr()) || p.Contains(x.first) {
			return -1
		}
		return 1
	})
	return n > 0 && !s[n-1].last.Less(p.Addr())
}

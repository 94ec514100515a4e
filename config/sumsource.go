package config

import "net/netip"

// resident is who has an address in a network: a VIP, or a backend.
type resident struct {
	vips     []*member
	backends []holder
}

// own notes a VIP.
func (s *Sum) own(m *member) {
	a := m.service.Address.Addr()
	s.vips[a] = append(s.vips[a], m)
	for p, r := range s.networks {
		if p.Contains(a) {
			r.vips = append(r.vips, m)
		}
	}
}

// hold notes a backend.
func (s *Sum) hold(h holder) {
	a := h.address().Addr()
	s.holders[a] = append(s.holders[a], h)
	for p, r := range s.networks {
		if p.Contains(a) {
			r.backends = append(r.backends, h)
		}
	}
}

// source notes where a service's tunnels come from.
func (s *Sum) source(p netip.Prefix, m *member) {
	if _, known := s.networks[p]; !known && !p.IsSingleIP() {
		r := s.residents(p)
		s.networks[p] = &r
	}
	s.sources[p] = append(s.sources[p], m)
}

// residents are who has an address that is, or is in, the source of tunnels. Only for a
// network that nobody has had as a source yet are all looked at.
func (s *Sum) residents(p netip.Prefix) (out resident) {
	if p.IsSingleIP() {
		return resident{s.vips[p.Addr()], s.holders[p.Addr()]}
	}
	if r := s.networks[p]; r != nil {
		return *r
	}
	for a, m := range s.vips {
		if p.Contains(a) {
			out.vips = append(out.vips, m...)
		}
	}
	for a, h := range s.holders {
		if p.Contains(a) {
			out.backends = append(out.backends, h...)
		}
	}
	return out
}

func (n vicinity) residents(r resident) {
	for _, m := range r.vips {
		n.with(m)
	}
	for _, h := range r.backends {
		n.hold(h)
	}
}

// sourced adds the services whose tunnels may come from an address.
func (n vicinity) sourced(s *Sum, a netip.Addr) {
	of := func(p netip.Prefix) {
		for _, m := range s.sources[p] {
			n.with(m)
		}
	}
	of(netip.PrefixFrom(a, a.BitLen()))
	for p := range s.networks {
		if p.Contains(a) {
			of(p)
		}
	}
}

package plan

import (
	"net/netip"
	"regexp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/health"
)

// Checks are what is to be checked. The path, where it is not nil, says how probes of
// direct return take the way of the service's packets; they are for the VIP then. An
// answer of nil has the backend probed at its own address.
func Checks(c *config.Config, path func(*config.Service, netip.Addr) health.Path) []health.Target {
	var out []health.Target
	for i := range c.Services {
		s := &c.Services[i]
		check := checkOf(s)
		if check == nil {
			continue
		}
		for _, b := range s.Backends {
			t := health.Target{Key: health.Key{Service: s.Name, Backend: b.Address}, Address: b.Address, Check: check}
			if path != nil && s.Mode.Direct() && check.Kind != health.Exec {
				if t.Path = path(s, b.Address.Addr()); t.Path != nil {
					t.Address = s.Address
				}
			}
			if p := s.HealthCheck.Port; p != 0 {
				t.Address = netip.AddrPortFrom(t.Address.Addr(), p)
			}
			out = append(out, t)
		}
	}
	return out
}

var kinds = map[config.CheckType]health.Kind{
	config.CheckTCP:   health.TCP,
	config.CheckHTTP:  health.HTTP,
	config.CheckHTTPS: health.HTTPS,
	config.CheckUDP:   health.UDP,
	config.CheckDNS:   health.DNS,
	config.CheckPing:  health.Ping,
	config.CheckExec:  health.Exec,
}

// checkOf is nil for a service whose backends nothing finds down.
func checkOf(s *config.Service) *health.Check {
	h := &s.HealthCheck
	switch {
	case !h.Finds() || s.Mode == config.SNAT:
		return nil
	case h.Type == config.CheckNone:
		return &health.Check{Kind: health.Observed, SlowStart: h.SlowStart}
	}
	c := &health.Check{
		Kind: kinds[h.Type], Interval: h.Interval, FastInterval: h.FastInterval, Timeout: h.Timeout,
		Rise: h.Rise, Fall: h.Fall, SlowStart: h.SlowStart, Source: h.Source,
		HTTP: health.HTTPCheck{Method: h.Method, Path: h.Path, Host: h.Host, Statuses: h.ExpectStatus},
		TLS:  health.TLSCheck{Name: h.ServerName, Verify: h.TLSVerify},
		UDP:  health.UDPCheck{Send: h.Send, Expect: h.Expect},
		DNS:  health.DNSCheck{Name: h.DNSName, Type: h.DNSType.Number(), RCode: h.DNSRCode.Number(), TCP: s.Protocol == config.TCP},
		Exec: h.Command,
	}
	if h.ExpectBody != "" {
		c.HTTP.Body = regexp.MustCompile(h.ExpectBody) // which config has compiled once
	}
	return c
}

// Passive is how the connections of a service's clients speak about its backends, nil if
// they do not.
func Passive(s *config.Service) *health.Passive {
	p := &s.HealthCheck.Passive
	if p.Action <= config.PassiveOff {
		return nil
	}
	return &health.Passive{
		Failures: p.Failures, Share: p.Share, Window: p.Window,
		TakeDown: p.Action == config.PassiveDown, DownFor: p.DownFor,
	}
}

// Healthy is view and what checks have found: a backend that is down gets nothing new,
// one that came up its share by and by, a backup nothing while others live. Those that
// view itself takes out of use, or drains, are none to fall back on. What look does not
// know is live.
func Healthy(c *config.Config, view View, look func(health.Key) (health.Status, bool)) View {
	found := map[health.Key]Backend{}
	for i := range c.Services {
		if s := &c.Services[i]; concernsHealth(s) {
			judge(s, view, look, found)
		}
	}
	return func(service string, b *config.Backend) Backend {
		if out, ok := found[health.Key{Service: service, Backend: b.Address}]; ok {
			return out
		}
		return view(service, b)
	}
}

func concernsHealth(s *config.Service) bool {
	if s.HealthCheck.Finds() {
		return true
	}
	for i := range s.Backends {
		if s.Backends[i].Backup {
			return true
		}
	}
	return false
}

// judge fills in what comes out for a service's backends.
func judge(s *config.Service, view View, look func(health.Key) (health.Status, bool), found map[health.Key]Backend) {
	members := make([]health.Member, len(s.Backends))
	out := make([]Backend, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		out[i] = view(s.Name, b)
		m := health.Member{Weight: out[i].Weight, Live: true, Backup: b.Backup, Percent: 100}
		if out[i].Down || out[i].End {
			m.Weight = 0
		}
		// The engine may still know of checks that a reload has just taken away.
		status, ok := look(health.Key{Service: s.Name, Backend: b.Address})
		if ok && s.HealthCheck.Finds() {
			m.Live, m.Percent = status.State != health.Down, status.Percent
		}
		members[i] = m
	}
	for i, share := range health.Effective(members, s.HealthCheck.PanicThreshold) {
		if members[i].Weight != 0 {
			out[i].Weight = share.Weight
		}
		out[i].Down = out[i].Down || share.Down
		out[i].Panic = members[i].Weight != 0 && !members[i].Live && !share.Down
		out[i].End = out[i].End || share.Down && !members[i].Live && s.HealthCheck.OnDown == config.OnDownEnd
		found[health.Key{Service: s.Name, Backend: s.Backends[i].Address}] = out[i]
	}
}

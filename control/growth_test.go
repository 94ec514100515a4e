package control

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/announce"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/internal/growth"
)

// large is a configuration of so many services of so many backends each, with these
// ports.
func large(services, backends int, vip, backend uint16) *config.Config {
	c := config.Defaults()
	for i := range services {
		s := config.Service{
			Name: fmt.Sprint("s", i), Protocol: config.TCP, Mode: config.DNAT, Scheduler: config.WRR, DrainTimeout: time.Hour,
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), vip),
		}
		for j := range backends {
			s.Backends = append(s.Backends, config.Backend{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(j >> 8), byte(j)}), backend)})
		}
		c.Services = append(c.Services, s)
	}
	return c
}

// TestReloadInProportion: what a reload takes grows with what there is, whatever comes,
// changes or goes, and so does what it takes to go on with what drains.
func TestReloadInProportion(t *testing.T) {
	const n = 2000
	now := time.Now()
	for _, tt := range []struct {
		name string
		make func(n int, port uint16) *config.Config
	}{
		{"services", func(n int, port uint16) *config.Config { return large(n, 1, port, port) }},
		{"backends", func(n int, port uint16) *config.Config { return large(1, n, 80, port) }},
	} {
		for _, step := range []string{"come", "change", "go", "go on", "are back"} {
			t.Run(tt.name+" "+step, func(t *testing.T) {
				growth.Proportional(t, n, func(n int) func() {
					none, one, other := large(1, 1, 9, 9), tt.make(n, 80), tt.make(n, 81)
					d := &Daemon{cfg: none}
					next := map[string]*config.Config{"come": one, "change": other, "go": none, "go on": none, "are back": one}[step]
					if step != "come" {
						d.leavers, d.cfg = leaving(none, one, nil, now), one
					}
					if step == "go on" || step == "are back" {
						d.leavers, d.cfg = leaving(one, other, d.leavers, now), other
						d.leavers, d.cfg = leaving(other, none, d.leavers, now), none
					}
					return func() {
						if step != "go on" {
							d.leavers, _ = end(leaving(d.cfg, next, d.leavers, now), now)
							d.cfg = next
						}
						d.spec(plan.Healthy(d.cfg, d.view, d.healthOf))
						d.effective()
						d.backendAddrs()
						config.Diff(one, next)
					}
				})
			})
		}
	}
	t.Run("addresses", func(t *testing.T) {
		growth.Proportional(t, n, func(n int) func() {
			var was, is []announce.Place
			for i := range n {
				was = append(was, announce.Place{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
				is = append(is, announce.Place{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
			}
			return func() {
				if len(without(was, is)) != n || len(without(addrsOf(is), addrsOf(was))) != n {
					t.Error("some are thought to be there")
				}
			}
		})
	})
}

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// leaverNames are who they are, when their time is over, and whether it is.
func leaverNames(all []leaver, epoch time.Time) (out []string) {
	for _, l := range all {
		s := "local " + l.local.First.String()
		if l.service != nil {
			s = l.service.Name
			if !l.whole {
				s += "/" + l.backend().String()
			}
		}
		if s += fmt.Sprint(" ", l.until.Sub(epoch)); l.ended {
			s += " ended"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

func TestLeaving(t *testing.T) {
	epoch := time.Unix(1e9, 0)
	steps := []struct {
		name string
		at   time.Duration
		text string // none: nobody reloads
		want []string
	}{
		{"nothing", 0, "drain_timeout: 10s|10.0.1.10|web 1 2|dns 1", nil},
		{"a backend", time.Second, "drain_timeout: 10s|10.0.1.10|web 1|dns 1", []string{"web/10.0.2.2:80 11s"}},
		{"a service", 2 * time.Second, "drain_timeout: 20s|10.0.1.10|web 1", []string{"dns 12s", "web/10.0.2.2:80 11s"}},
		{"another address", 3 * time.Second, "drain_timeout: 20s|10.0.1.11|web 1", []string{"dns 12s", "local 10.0.1.10 23s", "web/10.0.2.2:80 11s"}},
		{"the first is over", 11 * time.Second, "", []string{"dns 12s", "local 10.0.1.10 23s", "web/10.0.2.2:80 11s ended"}},
		{"the service is back, with another backend", 11 * time.Second, "drain_timeout: 20s|10.0.1.11|web 1|dns 3",
			[]string{"dns/10.0.2.1:80 12s", "local 10.0.1.10 23s", "web/10.0.2.2:80 11s ended"}},
		{"an address is back", 12 * time.Second, "drain_timeout: 20s|10.0.1.10|web 1|dns 3",
			[]string{"dns/10.0.2.1:80 12s ended", "local 10.0.1.11 32s", "web/10.0.2.2:80 11s ended"}},
		{"a backend is back", 12 * time.Second, "drain_timeout: 0s|10.0.1.10|web 1 2|dns 3", []string{"dns/10.0.2.1:80 12s ended", "local 10.0.1.11 32s"}},
		{"at once", 13 * time.Second, "drain_timeout: 0s|10.0.1.10|web 2|dns 3",
			[]string{"dns/10.0.2.1:80 12s ended", "local 10.0.1.11 32s", "web/10.0.2.1:80 13s ended"}},
		{"last words", 12*time.Second + lastWords, "", []string{"web/10.0.2.1:80 13s ended"}},
		{"silence", 13*time.Second + lastWords, "", nil},
	}
	d := &Daemon{}
	for i, step := range steps {
		now := epoch.Add(step.at)
		if step.text != "" {
			c := leaveConfig(t, step.text)
			if i > 0 {
				d.leavers = leaving(d.cfg, c, d.leavers, now)
			}
			d.cfg = c
		}
		d.leavers, _ = end(d.leavers, now)
		if diff := cmp.Diff(step.want, leaverNames(d.leavers, epoch)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		for _, s := range d.spec(plan.Healthy(d.cfg, d.view, d.healthOf)).Services {
			if len(s.Backends) == 0 {
				t.Errorf("%s: %s without backends", step.name, s.Name)
			}
		}
	}
}

// TestLeaversKeepTableSize: a hashed service whose table size follows from how many
// backends it has keeps that size while others leave it, or all its clients would move,
// and move back.
func TestLeaversKeepTableSize(t *testing.T) {
	const backends = 400
	parse := func(net int) *config.Config {
		var b strings.Builder
		b.WriteString("interfaces: [{name: eth0}]\nservices:\n- {name: web, address: \"192.0.2.10:80\", protocol: tcp, mode: dnat, scheduler: maglev, backends: [")
		for i := range backends {
			fmt.Fprintf(&b, "{address: \"10.%d.%d.%d:80\"}, ", net, i/200, 1+i%200)
		}
		b.WriteString("]}\n")
		c, err := config.Parse("test.yaml", []byte(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old, next := parse(1), parse(2)
	d := &Daemon{cfg: next, leavers: leaving(old, next, nil, time.Now())}
	s := d.spec(plan.Healthy(d.cfg, d.view, d.healthOf)).Services[0]
	if want := balance.Slots(backends); len(s.Backends) != 2*backends || s.HashSlots != want || balance.Slots(2*backends) == want {
		t.Errorf("%d backends, %d slots, want %d and %d", len(s.Backends), s.HashSlots, 2*backends, want)
	}
}

// leaveConfig is a configuration in short: top-level lines, a local address, services
// with the last bytes of their backends' addresses.
func leaveConfig(t *testing.T, short string) *config.Config {
	t.Helper()
	parts := strings.Split(short, "|")
	text := parts[0] + "\ninterfaces: [{name: eth1}]\nlocal_addresses: [" + parts[1] + "]\nservices:\n"
	ports := map[string]int{"web": 80, "dns": 53}
	for _, s := range parts[2:] {
		f := strings.Fields(s)
		text += fmt.Sprintf("  - {name: %s, address: \"192.0.2.10:%d\", protocol: tcp, mode: full-nat, backends: [", f[0], ports[f[0]])
		for _, b := range f[1:] {
			text += fmt.Sprintf("{address: \"10.0.2.%s:80\"},", b)
		}
		text += "]}\n"
	}
	c, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestBeforehand: what new servers send and new local addresses get is taken before the
// workers know of it, packets to new VIPs are not; nothing that was taken ceases to be.
func TestBeforehand(t *testing.T) {
	a := netip.MustParseAddr
	ends := func(s ...string) (out []steer.ServiceRule) {
		for _, e := range s {
			p := netip.MustParseAddrPort(e)
			out = append(out, steer.ServiceRule{Addr: p.Addr(), Proto: 6, Port: p.Port()})
		}
		return out
	}
	now := steer.Rules{
		Addrs: []netip.Addr{a("10.0.1.10"), a("192.0.2.10")}, Backends: ends("10.0.2.1:80"), HostAddrs: []netip.Addr{a("10.0.1.1")},
		LocalRanges: []steer.RangeRule{{Addr: a("10.0.1.2"), Lo: 1, Hi: 2}, {Addr: a("10.0.1.3"), Lo: 1, Hi: 2}},
	}
	next := steer.Rules{
		Addrs: []netip.Addr{a("10.0.1.11"), a("192.0.2.11")}, Backends: ends("10.0.2.2:80"), HostAddrs: now.HostAddrs,
		LocalRanges: []steer.RangeRule{{Addr: a("10.0.1.3"), Lo: 5, Hi: 6}},
	}
	want := steer.Rules{
		Addrs: []netip.Addr{a("10.0.1.10"), a("192.0.2.10"), a("10.0.1.11")}, Backends: ends("10.0.2.1:80", "10.0.2.2:80"), HostAddrs: now.HostAddrs,
		LocalRanges: []steer.RangeRule{{Addr: a("10.0.1.3"), Lo: 5, Hi: 6}, {Addr: a("10.0.1.2"), Lo: 1, Hi: 2}},
	}
	c := leaveConfig(t, "drain_timeout: 0s|10.0.1.11|web 1")
	if diff := cmp.Diff(want, beforehand(now, next, c), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

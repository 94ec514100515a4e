package control

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// illness is a directory where a file makes a backend fail its checks.
type illness struct {
	t   *testing.T
	dir string
}

// check is the key that has backends looked for there. A busy machine may need seconds to
// start a command; nothing here waits for the interval, see finds.
func (i illness) check(more string) string {
	return fmt.Sprintf(`health_check: {type: exec, command: [/bin/sh, -c, "echo looked; test ! -e %s/$L4FWD_ADDRESS"], interval: 10s, timeout: 10s, rise: 1, fall: 1%s}`, i.dir, more)
}

// only makes these the ones that fail. Who is ill before and after is so all the time.
func (i illness) only(sick ...netip.Addr) {
	i.t.Helper()
	var stay []string
	for _, a := range sick {
		stay = append(stay, filepath.Join(i.dir, a.String()))
		check(i.t, os.WriteFile(stay[len(stay)-1], nil, 0o600))
	}
	old, err := filepath.Glob(filepath.Join(i.dir, "*"))
	check(i.t, err)
	for _, file := range old {
		if !slices.Contains(stay, file) {
			check(i.t, os.Remove(file))
		}
	}
}

// soon waits for what follows from states that were found: the loop hears of them a
// little later than the statistics.
func soon(ok func() bool) bool {
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// found waits until a service's backends are in the states.
func (d *daemon) found(service string, want ...health.State) {
	d.t.Helper()
	var got []health.State
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s, err := d.Stats(d.t.Context())
		if err != nil {
			d.t.Fatal(err)
		}
		got = nil
		for _, svc := range s.Services {
			for _, b := range svc.Backends {
				if svc.Name == service && b.Health != nil {
					got = append(got, b.Health.State)
				}
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
	d.t.Fatalf("%s: backends are %v, want %v\n%s", service, got, want, d.said())
}

// finds has a service's backends checked at once, and waits until they are in the states.
func (d *daemon) finds(service string, want ...health.State) {
	d.t.Helper()
	all, err := d.Health(d.t.Context(), service)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, b := range all {
		k := health.Key{Service: service, Backend: b.Address}
		d.health.Suspect(k, "a test asks")
		d.health.Absolve(k)
	}
	d.found(service, want...)
}

// A backup steps in when nobody else is live, steps back, and where nobody at all is
// live all but backups are used.
func TestBackupAndPanic(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	ill := illness{t, t.TempDir()}
	services := testbed.Services(0, "dnat", "", "wrr")[:1]
	services[0].Extra = ill.check(", panic_threshold: 50")
	second := fmt.Sprintf("%q", netip.AddrPortFrom(w.ServerAddr(testbed.V4, 1), testbed.PortHTTP))
	text := strings.Replace(w.Config(services, small...), second, second+", backup: true", 1)
	d := w.run(text)
	rs1, rs2 := w.ServerAddr(testbed.V4, 0), w.ServerAddr(testbed.V4, 1)
	name := services[0].Name
	for _, step := range []struct {
		sick   []netip.Addr
		states []health.State
		shown  []admin.BackendState
		server string
	}{
		{nil, []health.State{health.Up, health.Up}, []admin.BackendState{admin.BackendUp, admin.BackendStandby}, "rs1"},
		{[]netip.Addr{rs1}, []health.State{health.Down, health.Up}, []admin.BackendState{admin.BackendDown, admin.BackendUp}, "rs2"},
		{[]netip.Addr{rs1, rs2}, []health.State{health.Down, health.Down}, []admin.BackendState{admin.BackendDown, admin.BackendDown}, "rs1"},
		{[]netip.Addr{rs2}, []health.State{health.Up, health.Down}, []admin.BackendState{admin.BackendUp, admin.BackendDown}, "rs1"},
		{nil, []health.State{health.Up, health.Up}, []admin.BackendState{admin.BackendUp, admin.BackendStandby}, "rs1"},
	} {
		ill.only(step.sick...)
		d.finds(name, step.states...)
		var r testbed.LoadResult
		if !soon(func() bool {
			r = w.ask(w.VIP(testbed.V4, 0), 8)
			return r.ByServer[step.server] == 8
		}) {
			t.Errorf("with %v: %v, want %s", step.states, r.ByServer, step.server)
		}
		taking, panics := 0, slices.Equal(step.states, []health.State{health.Down, health.Down})
		for _, s := range step.shown {
			if s == admin.BackendUp {
				taking++
			}
		}
		if panics {
			taking = 1 // the one that is no backup
		}
		if all, err := d.Services(t.Context()); err != nil || all[0].Taking != taking || all[0].Panic != panics {
			t.Errorf("with %v: %+v, %v, want %d to take flows", step.states, all, err, taking)
		}
		shown, err := d.Backends(t.Context(), name)
		if err != nil || len(shown) != 2 || shown[0].State != step.shown[0] || shown[1].State != step.shown[1] {
			t.Errorf("with %v: %+v, %v, want %v", step.states, shown, err, step.shown)
		}
	}
	drained, err := d.Order(t.Context(), admin.Order{Action: admin.Drain, Backend: netip.AddrPortFrom(rs2, testbed.PortHTTP).String()})
	if err != nil || len(drained) != 1 || drained[0].State != admin.BackendDrained {
		t.Errorf("a drained backup: %+v, %v", drained, err)
	}
	all, err := d.Health(t.Context(), name)
	if err != nil || len(all) != 2 || all[0].Address != netip.AddrPortFrom(rs1, testbed.PortHTTP) || all[0].Health.Reason != "looked" {
		t.Fatalf("%+v, %v", all, err)
	}
	path := ""
	for _, c := range all[0].History {
		if c.From != c.To {
			path += fmt.Sprintf("%v: %s; ", c.To, c.Reason)
		}
	}
	if path != "up: looked; down: exit status 1: looked; up: looked; " {
		t.Errorf("history: %s", path)
	}
	if _, err := d.Health(t.Context(), "nobody"); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("of a service that there is not: %v", err)
	}
	for _, said := range []string{"too few backends are live: those that are down get new flows, too", "backends that are down get no new flows any more"} {
		if n := d.logs.FilterMessage(said).Len(); n != 1 {
			t.Errorf("%q was said %d times, want once", said, n)
		}
	}
	if n := d.logs.FilterMessage("backend is down").Len(); n < 2 {
		t.Errorf("%d backends went down, says the log:\n%s", n, d.said())
	}
	d.end()
	w.clean()
}

// A UDP flow whose backend goes down goes on with another, unless it is to stay.
func TestFlowsOfADeadBackend(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	ill := illness{t, t.TempDir()}
	echo := testbed.Services(0, "full-nat", "", "rr")[2]
	stays := echo
	echo.Extra, stays.Extra = ill.check(""), ill.check(", on_down: keep")
	stays.Name, stays.Port = "stays", 9999
	d := w.run(w.Config([]testbed.Service{echo, stays}, small...))
	d.finds(echo.Name, health.Up, health.Up)
	d.finds("stays", health.Up, health.Up)
	for _, s := range []testbed.Service{echo, stays} {
		t.Run(s.Name, func(t *testing.T) {
			c, err := w.Client.Dialer(time.Second).Dial("udp", netip.AddrPortFrom(w.VIP(testbed.V4, 0), s.Port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { check(t, c.Close()) }()
			// The first datagrams may be lost while MAC addresses are not known.
			who := func() string {
				t.Helper()
				b := make([]byte, 100)
				for range 20 {
					if _, err := c.Write([]byte("hello")); err != nil {
						t.Fatal(err)
					}
					check(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
					if n, err := c.Read(b); err == nil {
						name, _, _ := strings.Cut(string(b[:n]), " ")
						return name
					}
				}
				t.Fatal("no answer")
				return ""
			}
			first := who()
			sick, states := w.ServerAddr(testbed.V4, 0), []health.State{health.Down, health.Up}
			if first == "rs2" {
				sick, states = w.ServerAddr(testbed.V4, 1), []health.State{health.Up, health.Down}
			}
			ill.only(sick)
			d.finds(s.Name, states...)
			if s.Name == "stays" {
				time.Sleep(100 * time.Millisecond)
				if again := who(); again != first {
					t.Errorf("%s answers, after %s, whose flows are to stay", again, first)
				}
			} else if !soon(func() bool { return who() != first }) {
				t.Errorf("%s answers, which is down", first)
			}
			ill.only()
			d.finds(s.Name, health.Up, health.Up)
		})
	}
	d.end()
}

// Checks begin in the daemon's network namespace, which is not the process's here.
func TestChecksInTheNamespace(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	services := testbed.Services(0, "dnat", "", "wrr")
	for i := range services {
		services[i].Extra = "health_check: {type: " + map[string]string{"tcp": "tcp", "udp": "ping"}[services[i].Protocol] + ", interval: 1s}"
	}
	d := w.run(w.Config(services, small...))
	for _, s := range services {
		d.found(s.Name, health.Up, health.Up)
	}
	d.end()
	w.clean()
}

// A reload keeps what is known of backends that stay, however they are checked from then
// on; with the checks goes what they found.
func TestReloadKeepsHealth(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	ill := illness{t, t.TempDir()}
	service := testbed.Services(0, "dnat", "", "wrr")[0]
	text := func(extra string) string {
		s := service
		s.Extra = extra
		return w.Config([]testbed.Service{s}, small...)
	}
	ill.only(w.ServerAddr(testbed.V4, 0))
	d := w.run(text(ill.check("")))
	d.finds(service.Name, health.Down, health.Up)
	all := func(want map[string]int) {
		t.Helper()
		var got map[string]int
		if !soon(func() bool { got = w.ask(w.VIP(testbed.V4, 0), 8).ByServer; return fmt.Sprint(got) == fmt.Sprint(want) }) {
			t.Errorf("answers of %v, want %v", got, want)
		}
	}
	all(map[string]int{"rs2": 8})
	// Nobody checks within an hour, so what is known then is what was known before.
	d.reload(text("health_check: {type: tcp, interval: 1h, rise: 100, fall: 100}"))
	d.found(service.Name, health.Down, health.Up)
	if got := w.ask(w.VIP(testbed.V4, 0), 8).ByServer; got["rs2"] != 8 {
		t.Errorf("after a reload: %v", got)
	}
	d.reload(text(""))
	all(map[string]int{"rs1": 4, "rs2": 4})
	d.found(service.Name) // nobody
	ill.only()
	d.reload(text(ill.check("")))
	d.finds(service.Name, health.Up, health.Up)
	d.end()
	w.clean()
}

// What this host lacks for checks, here the address that they shall come from, is told,
// once, and takes nobody away.
func TestUnchecked(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	service := testbed.Services(0, "dnat", "", "wrr")[0]
	service.Extra = "health_check: {type: tcp, source: 192.0.2.99, interval: 200ms, timeout: 200ms, rise: 1, fall: 1}"
	d := w.run(w.Config([]testbed.Service{service}, small...))
	if !soon(func() bool {
		all, err := d.Health(t.Context(), service.Name)
		return err == nil && len(all) == 2 && all[0].Health.Unchecked != "" && all[1].Health.Unchecked != ""
	}) {
		t.Error("nobody says that backends cannot be checked")
	}
	time.Sleep(time.Second) // some checks more
	all, err := d.Health(t.Context(), service.Name)
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, b := range all {
		if h := b.Health; h.State != health.Unknown || h.Failed != 0 || h.Unchecked != "cannot assign requested address" {
			t.Errorf("%v: %+v", b.Address, h)
		}
	}
	if got := w.ask(w.VIP(testbed.V4, 0), 8).ByServer; got["rs1"] != 4 || got["rs2"] != 4 {
		t.Errorf("answers of %v", got)
	}
	if n := d.logs.FilterMessageSnippet("health checks cannot be made").Len(); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, d.said())
	}
	d.end()
	w.clean()
}

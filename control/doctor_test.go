package control

import (
	"context"
	"slices"
	"strconv"
	"testing"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestDoctor: a host in order has nothing that fails; what is broken is named, and the
// command that is given mends it.
func TestDoctor(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	cfg, err := config.Parse("test.yaml", []byte(w.Config(testbed.Services(0, "full-nat", "toa", "rr"), small...)))
	if err != nil {
		t.Fatal(err)
	}
	look := func() (found []Finding) {
		t.Helper()
		err := w.LB.Do(func() error {
			var err error
			found, err = Diagnose(t.Context(), cfg, nil, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	shell := func(command string) {
		t.Helper()
		if out, err := w.LB.Command(context.Background(), "sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	bad := func() (out []Finding) {
		t.Helper()
		for _, f := range look() {
			if f.Grade == Fail || f.Check == "forwarding" || f.Check == "ports" {
				out = append(out, f)
			}
		}
		return out
	}
	if b := bad(); len(b) > 0 {
		t.Fatalf("nothing is broken: %+v", b)
	}
	nics := []string{cfg.Interfaces[0].Name, cfg.Interfaces[len(cfg.Interfaces)-1].Name}
	backend := w.ServerAddr(testbed.V4, 0).String()
	vip := w.VIP(testbed.V4, 0).String()
	local := ""
	for a := range cfg.Locals() {
		if a.Is4() {
			local = a.String()
			break
		}
	}
	for name, c := range map[string]struct {
		breaks         string
		check, subject string
		grade          Grade
		command        string
	}{
		"switched off": {"ip link set dev " + nics[0] + " down", "interface", nics[0], Fail, "ip link set dev " + nics[0] + " up"},
		"MTU":          {"ip link set dev " + nics[0] + " mtu 9000", "mtu", nics[0], Fail, "ip link set dev " + nics[0] + " mtu " + strconv.Itoa(cfg.FrameSize-274)},
		"blackhole":    {"ip route add blackhole " + backend + "/32", "route", backend, Fail, "ip route del blackhole " + backend + "/32"},
		"local address": {"ip addr add " + local + "/32 dev " + nics[1], "address", local, Fail,
			"ip addr del " + local + "/32 dev " + nics[1]},
		"port of the kernel's": {"ip addr add " + w.VIP(testbed.V6, 0).String() + "/128 dev " + nics[0] + " nodad", "ports", "", Warn,
			"sysctl -w net.ipv4.ip_local_reserved_ports=9000-9001"},
		"forwarding": {"sysctl -qw net.ipv4.ip_forward=1; ip route add default dev " + nics[0], "forwarding", vip, Warn, "ip route add blackhole " + vip + "/32"},
	} {
		t.Run(name, func(t *testing.T) {
			shell(c.breaks)
			is := func(f Finding) bool { return f.Check == c.check && f.Subject == c.subject }
			found := bad()
			i := slices.IndexFunc(found, is)
			if i < 0 {
				t.Fatalf("not found: %+v", found)
			}
			if f := found[i]; f.Grade != c.grade || f.Command != c.command {
				t.Errorf("%+v", f)
			}
			shell(found[i].Command)
			if found = bad(); slices.ContainsFunc(found, is) {
				t.Errorf("still: %+v", found)
			}
		})
	}
}

// TestDoctorModes: what only some need is looked at where they are.
func TestDoctorModes(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	for _, c := range []struct {
		mode, extra, breaks, check string
		more                       []config.Interface
	}{
		{"tunnel", "encapsulation: gre", "true", "mtu", nil},
		{"dsr-l2", "health_check: {type: ping}", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done", "rp_filter", nil},
		{"dsr-l2", "health_check: {type: ping}", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 2 > $f; done; ip route replace blackhole " + w.VIP(testbed.V4, 0).String(), "rp_filter", nil},
		{"dnat", "", "ip link add spare type veth peer name peer; ip link set spare up; ip link set peer up", "offload", []config.Interface{{Name: "spare"}}},
	} {
		t.Run(c.mode, func(t *testing.T) {
			services := testbed.Services(0, c.mode, "", "rr")[:1]
			services[0].Extra = c.extra
			cfg, err := config.Parse("test.yaml", []byte(w.Config(services, small...)))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Interfaces = append(cfg.Interfaces, c.more...)
			find := func() (out []Finding) {
				t.Helper()
				err := w.LB.Do(func() error {
					found, err := Diagnose(t.Context(), cfg, nil, false)
					for _, f := range found {
						if f.Check == c.check {
							out = append(out, f)
						}
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			shell := func(command string) {
				t.Helper()
				if out, err := w.LB.Command(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", command, err, out)
				}
			}
			shell(c.breaks)
			found := find()
			if len(found) != 1 || found[0].Grade != Warn {
				t.Fatalf("%+v", found)
			}
			shell(found[0].Command)
			if again := find(); len(again) > 0 {
				t.Errorf("%+v: still %+v", found, again)
			}
		})
	}
}

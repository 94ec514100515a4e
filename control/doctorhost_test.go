package control

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// within is what f, run in the load balancer's namespace, finds of one check.
func (w *world) within(check string, f func() ([]Finding, error)) (out []Finding) {
	w.t.Helper()
	err := w.LB.Do(func() error {
		all, err := f()
		for _, one := range all {
			if one.Check == check {
				out = append(out, one)
			}
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// TestDoctorListeners: a port that somebody has, and an address that the host has not,
// are named; a daemon that runs has them itself.
func TestDoctorListeners(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	var l net.Listener
	err := w.LB.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, l.Close()) }()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	text := w.Config(testbed.Services(0, "full-nat", "toa", "rr"), append(slices.Clone(small), fmt.Sprintf("metrics_listen: 0.0.0.0:%d", port), "admin_socket: off")...)
	cfg, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	cfg.WebListen = netip.MustParseAddrPort("203.0.113.77:80")
	look := func(running *admin.Status) []Finding {
		return w.within("listen", func() ([]Finding, error) { return Diagnose(t.Context(), cfg, running, false) })
	}
	found := look(nil)
	if len(found) != 2 || found[0].Subject != "metrics_listen" || found[0].Command != fmt.Sprintf("ss -ltnp sport = :%d", port) ||
		found[1].Subject != "web_listen" || found[0].Grade != Fail || found[1].Grade != Fail {
		t.Errorf("%+v", found)
	}
	if found := look(&admin.Status{}); len(found) != 0 {
		t.Errorf("of one that runs: %+v", found)
	}
	cfg.WebListen = netip.AddrPort{}
	cfg.MetricsListen = netip.AddrPortFrom(cfg.MetricsListen.Addr(), port+1)
	if found := look(nil); len(found) != 1 || found[0].Grade != Good {
		t.Errorf("where nobody listens: %+v", found)
	}
}

// TestDoctorHardware: memory, isolation and zero copy have a word each, and what a veth
// cannot is no good to who insists on it.
func TestDoctorHardware(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	cfg, err := config.Parse("test.yaml", []byte(w.Config(testbed.Services(0, "full-nat", "toa", "rr"), small...)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.CPUs = []int{0}
	look := func(check string) []Finding {
		return w.within(check, func() ([]Finding, error) { return Diagnose(t.Context(), cfg, nil, false) })
	}
	cfg.MaxFlows = 1 << 30 // more than any machine has huge pages for
	memory := look("memory")
	if len(memory) != 1 || memory[0].Grade != Warn || !strings.HasPrefix(memory[0].Command, "sysctl -w vm.nr_hugepages=") {
		t.Errorf("%+v", memory)
	}
	if found := look("isolation"); len(found) != 2 || found[0].Subject != "isolated" || found[1].Subject != "nohz_full" {
		t.Errorf("%+v", found)
	}
	known := false
	check(t, w.LB.Do(func() error { _, known = nic.XDPFeatures(w.LBClient.Index); return nil }))
	if found := look("zero_copy"); len(found) != 1 || found[0].Grade != Good {
		t.Errorf("%+v", found)
	}
	if cfg.ZeroCopy = config.ZeroCopyOn; known {
		if found := look("zero_copy"); len(found) != 1 || found[0].Grade != Fail || !strings.Contains(found[0].Subject, w.LBClient.Name) {
			t.Errorf("zero copy is a must: %+v", found)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	for s, want := range map[string][]int{"": nil, "(null)": nil, "2": {2}, "0,2-4": {0, 2, 3, 4}} {
		if d := cmp.Diff(want, parseCPUs(s)); d != "" {
			t.Errorf("%q: -want +got\n%s", s, d)
		}
	}
}

// TestDuplicates: who has a VIP or a local address beside l4fwd is found, in both
// families, and l4fwd itself is nobody else.
func TestDuplicates(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	text := w.Config(testbed.Services(0, "full-nat", "toa", "rr"), small...)
	d := w.run(text)
	cfg, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	probe := func() []Finding {
		return w.within("duplicate", func() ([]Finding, error) { return Diagnose(t.Context(), cfg, nil, true) })
	}
	if found := probe(); len(found) != 1 || found[0].Grade != Good {
		t.Fatalf("nobody else has them: %+v", found)
	}
	for i, a := range []netip.Addr{w.LocalAddr(testbed.V4, 0), w.VIP(testbed.V6, 0)} {
		ns, dev := w.Servers[0], "s0"
		if i == 1 {
			ns, dev = w.Client, "c0"
		}
		out, err := ns.Command(t.Context(), "sh", "-c", fmt.Sprintf("ip addr add %v/%d dev %s nodad 2>&1 || ip addr add %v/%d dev %s", a, a.BitLen(), dev, a, a.BitLen(), dev)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// The kernel takes a moment to stand by a new address.
		var found []Finding
		at := -1
		for range 10 {
			found = probe()
			if at = slices.IndexFunc(found, func(f Finding) bool { return f.Subject == a.String() }); at >= 0 {
				break
			}
		}
		if at < 0 || found[at].Grade != Fail || !strings.Contains(found[at].Command, a.String()) {
			t.Errorf("%v: %+v", a, found)
		}
	}
	d.end()
}

package control

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// TestNamesOfNameThatMoved: a service's name goes to another VIP and comes back.
// What bore it meanwhile keeps its id in the data plane, but not the name.
func TestNamesOfNameThatMoved(t *testing.T) {
	g := dataplane.NewRegistry(1)
	backends := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}
	for _, step := range []struct {
		vip      string
		backends int
	}{{"192.0.2.1", 2}, {"192.0.2.2", 1}, {"192.0.2.1", 2}} {
		end := func(a netip.AddrPort) conntrack.Endpoint {
			return conntrack.Endpoint{Addr: packet.AddrFrom(a.Addr()), Port: a.Port(), Proto: packet.ProtoTCP}
		}
		spec := dataplane.ServiceSpec{
			Name: "web", VIP: end(netip.AddrPortFrom(netip.MustParseAddr(step.vip), 80)), Mode: conntrack.DNAT,
			Scheduler: balance.RoundRobin, Timeouts: conntrack.DefaultTimeouts(),
		}
		c := &config.Config{Services: []config.Service{{Name: "web"}}}
		for _, b := range backends[:step.backends] {
			spec.Backends = append(spec.Backends, dataplane.BackendSpec{Endpoint: end(b), Weight: 1})
			c.Services[0].Backends = append(c.Services[0].Backends, config.Backend{Address: b})
		}
		snap, err := g.Build(dataplane.Spec{Services: []dataplane.ServiceSpec{spec}})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range namesOf(c, snap)[0].backends {
			if got := snap.Directory.Backends[b.id].Addr; got != packet.AddrFrom(b.addr.Addr()) {
				t.Errorf("%s: backend %v has the id of %v", step.vip, b.addr, got.Netip())
			}
		}
		n := namesOf(c, snap)[0]
		if len(n.backends) != step.backends || snap.Directory.Services[n.id].Addr.String() != step.vip {
			t.Errorf("%s: service %d, %d backends", step.vip, n.id, len(n.backends))
		}
	}
}

// A link where the statistics are written before they are renamed is not followed, and
// what a killed daemon has left there is no hindrance. What fails leaves nothing.
func TestWriteJSON(t *testing.T) {
	dir := t.TempDir()
	path, tmp, victim := filepath.Join(dir, "stats"), filepath.Join(dir, ".stats.tmp"), filepath.Join(dir, "victim")
	check(t, os.WriteFile(victim, []byte("precious"), 0o600))
	check(t, os.Symlink(victim, tmp))
	for _, want := range []string{"1\n", "2\n"} {
		check(t, writeJSON(path, json.RawMessage(strings.TrimSpace(want))))
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%q %v, want %q", b, err, want)
		}
		check(t, os.WriteFile(tmp, []byte("half"), 0o600)) // of a killed daemon
	}
	check(t, writeJSON(path, 3))
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v %v", info, err)
	}
	if err := writeJSON(victim+"/stats", 4); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	check(t, os.MkdirAll(filepath.Join(dir, "full", "of"), 0o700))
	if err := writeJSON(filepath.Join(dir, "full"), 5); err == nil {
		t.Error("a directory is replaced")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%q %v", left, err)
	}
}

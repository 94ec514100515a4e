package plan

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/health"
)

const checked = `
interfaces: [{name: eth1}]
services:
  - name: web
    address: 192.0.2.10:80
    protocol: tcp
    mode: dnat
    health_check:
      type: https
      interval: 5s
      fast_interval: 1s
      timeout: 3s
      rise: 4
      fall: 5
      slow_start: 30s
      panic_threshold: 50
      source: 10.0.1.1
      port: 8443
      method: POST
      path: /up
      host: example.org
      expect_status: 200
      expect_body: "^ok"
      server_name: sni.example.org
      tls_verify: true
      %s
    backends:
      - {address: "10.0.1.20:8080", weight: 2}
      - {address: "10.0.1.21:8080"}
      - {address: "10.0.1.22:8080", backup: true}
  - name: far
    address: 192.0.2.11:80
    protocol: udp
    mode: tunnel
    encapsulation: ipip
    health_check: {type: udp, send: ping, expect: pong, port: 81}
    backends: [{address: "10.0.1.20:80"}, {address: "10.0.1.21:80"}]
  - name: names
    address: 192.0.2.12:53
    protocol: tcp
    mode: dnat
    health_check: {type: dns, dns_name: example.org, dns_type: aaaa, dns_rcode: nxdomain}
    backends: [{address: "10.0.1.20:53"}]
  - name: nobody
    address: 192.0.2.13:53
    protocol: tcp
    mode: dnat
    backends: [{address: "10.0.1.20:53"}]
`

func parsed(t *testing.T, more string) *config.Config {
	t.Helper()
	c, err := config.Parse("test", fmt.Appendf(nil, checked, more))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// along is a health.Path that says whose it is.
type along string

func (along) Prepare(string, int, uint16) error { return nil }

func TestChecks(t *testing.T) {
	c := parsed(t, "")
	ap := netip.MustParseAddrPort
	web := &health.Check{
		Kind: health.HTTPS, Interval: 5 * time.Second, FastInterval: time.Second, Timeout: 3 * time.Second, Rise: 4, Fall: 5,
		SlowStart: 30 * time.Second, Source: netip.MustParseAddr("10.0.1.1"),
		HTTP: health.HTTPCheck{Method: "POST", Path: "/up", Host: "example.org", Statuses: [][2]int{{200, 200}}, Body: regexp.MustCompile("^ok")},
		TLS:  health.TLSCheck{Name: "sni.example.org", Verify: true},
		DNS:  health.DNSCheck{Name: ".", Type: 2, TCP: true},
	}
	far := &health.Check{
		Kind: health.UDP, Interval: 2 * time.Second, FastInterval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
		HTTP: health.HTTPCheck{Method: "GET", Path: "/", Statuses: [][2]int{{200, 399}}},
		UDP:  health.UDPCheck{Send: []byte("ping"), Expect: []byte("pong")},
		DNS:  health.DNSCheck{Name: ".", Type: 2},
	}
	names := &health.Check{
		Kind: health.DNS, Interval: 2 * time.Second, FastInterval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
		HTTP: far.HTTP, DNS: health.DNSCheck{Name: "example.org.", Type: 28, RCode: 3, TCP: true},
	}
	key := func(service, backend string) health.Key { return health.Key{Service: service, Backend: ap(backend)} }
	want := []health.Target{
		{Key: key("web", "10.0.1.20:8080"), Address: ap("10.0.1.20:8443"), Check: web},
		{Key: key("web", "10.0.1.21:8080"), Address: ap("10.0.1.21:8443"), Check: web},
		{Key: key("web", "10.0.1.22:8080"), Address: ap("10.0.1.22:8443"), Check: web},
		{Key: key("far", "10.0.1.20:80"), Address: ap("192.0.2.11:81"), Check: far, Path: along("far 10.0.1.20")},
		{Key: key("far", "10.0.1.21:80"), Address: ap("10.0.1.21:81"), Check: far},
		{Key: key("names", "10.0.1.20:53"), Address: ap("10.0.1.20:53"), Check: names},
	}
	got := Checks(c, func(s *config.Service, b netip.Addr) health.Path {
		if b == netip.MustParseAddr("10.0.1.21") {
			return nil // such as one of the host's own
		}
		return along(s.Name + " " + b.String())
	})
	same := cmp.Options{
		cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}),
		cmp.Comparer(func(a, b *regexp.Regexp) bool {
			return a == b || a != nil && b != nil && a.String() == b.String()
		}),
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHealthy(t *testing.T) {
	web := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(20 + i)}), 8080)
	}
	up, down, young := health.Status{State: health.Up, Percent: 100}, health.Status{State: health.Down, Percent: 100}, health.Status{State: health.Up, Percent: 50}
	for _, c := range []struct {
		name   string
		more   string
		view   map[int]Backend
		status []health.Status // of the three
		want   [3]Backend
	}{
		{"all up", "", nil, []health.Status{up, up, up}, [3]Backend{{Weight: 2}, {Weight: 1}, {}}},
		{"nothing known", "", nil, nil, [3]Backend{{Weight: 2}, {Weight: 1}, {}}},
		{"one down", "", nil, []health.Status{down, up, up}, [3]Backend{{Weight: 2, Down: true}, {Weight: 1}, {}}},
		{"and its flows end", "on_down: end", nil, []health.Status{down, up, up}, [3]Backend{{Weight: 2, Down: true, End: true}, {Weight: 1}, {}}},
		{"both down", "on_down: end", nil, []health.Status{down, down, up}, [3]Backend{{Weight: 2, Down: true, End: true}, {Weight: 1, Down: true, End: true}, {Weight: 1}}},
		{"panic ends nothing", "on_down: end", nil, []health.Status{down, down, down}, [3]Backend{{Weight: 2, Panic: true}, {Weight: 1, Panic: true}, {Down: true, End: true}}},
		{"young", "", nil, []health.Status{young, up, up}, [3]Backend{{Weight: 10}, {Weight: 10}, {}}},
		{"drained and its fellow down", "", map[int]Backend{0: {Weight: 0}}, []health.Status{up, down, up}, [3]Backend{{Weight: 0}, {Weight: 1, Down: true}, {Weight: 1}}},
		{"disabled and its fellow down", "", map[int]Backend{0: {Weight: 7, Down: true, End: true}}, []health.Status{up, down, up},
			[3]Backend{{Weight: 7, Down: true, End: true}, {Weight: 1, Down: true}, {Weight: 1}}},
		{"an operator's weight", "", map[int]Backend{1: {Weight: 9}}, []health.Status{young, up, up}, [3]Backend{{Weight: 10}, {Weight: 90}, {}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := parsed(t, c.more)
			base := func(service string, b *config.Backend) Backend {
				for i, v := range c.view {
					if service == "web" && b.Address == web(i) {
						return v
					}
				}
				return AsConfigured(service, b)
			}
			view := Healthy(cfg, base, func(k health.Key) (health.Status, bool) {
				for i, s := range c.status {
					if k.Service == "web" && k.Backend == web(i) {
						return s, true
					}
				}
				return health.Status{}, false
			})
			var got [3]Backend
			for i := range got {
				got[i] = view("web", &cfg.Services[0].Backends[i])
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			other := &cfg.Services[3].Backends[0]
			if diff := cmp.Diff(AsConfigured("nobody", other), view("nobody", other)); diff != "" {
				t.Errorf("a service without checks (-want +got)\n%s", diff)
			}
			gone := &config.Backend{Address: netip.MustParseAddrPort("10.0.1.99:80"), Weight: 3}
			if diff := cmp.Diff(AsConfigured("web", gone), view("web", gone)); diff != "" {
				t.Errorf("a backend that the configuration has no more (-want +got)\n%s", diff)
			}
		})
	}
}

// A service with a backup and without checks: what was found before does not count.
func TestHealthyWithoutChecks(t *testing.T) {
	c, err := config.Parse("test", []byte(`
interfaces: [{name: eth1}]
services:
  - name: web
    address: 192.0.2.10:80
    protocol: tcp
    mode: dnat
    backends: [{address: "10.0.1.20:80"}, {address: "10.0.1.21:80", backup: true}]
`))
	if err != nil {
		t.Fatal(err)
	}
	view := Healthy(c, AsConfigured, func(health.Key) (health.Status, bool) { return health.Status{State: health.Down, Percent: 100}, true })
	b := c.Services[0].Backends
	got := [2]Backend{view("web", &b[0]), view("web", &b[1])}
	if diff := cmp.Diff([2]Backend{{Weight: 1}, {}}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestJudged: SYNs are looked at where clients' connections speak about backends.
func TestJudged(t *testing.T) {
	for check, want := range map[string]bool{
		"type: none":                            false,
		"type: none, passive: {action: down}":   true,
		"type: tcp":                             true,
		"type: tcp, passive: {action: off}":     false,
		"type: tcp, passive: {action: check}":   true,
		"type: http, passive: {action: 'down'}": true,
	} {
		c := parse(t, `
interfaces: [{name: eth1}]
services:
  - {name: web, address: 192.0.2.10:80, protocol: tcp, mode: dnat, health_check: {`+check+`}, backends: [{address: "10.0.1.20:80"}]}
`)
		if got := Spec(c, nil).Services[0].Judged; got != want {
			t.Errorf("%s: %v", check, got)
		}
	}
}

package testbed

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNginxAndIperf3(t *testing.T) {
	top := Up(t, TopologyOptions{Servers: 1})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	var listen []netip.AddrPort
	for _, f := range Families {
		listen = append(listen, netip.AddrPortFrom(top.ServerAddr(f, 0), PortHTTP))
	}
	p, err := StartNginx(t.Context(), top.Servers[0], t.TempDir(), "ngx", listen...)
	if err != nil {
		t.Fatal(err)
	}
	for i, to := range listen {
		r, err := HTTPLoad{To: to, Requests: 100}.Run(t.Context(), top.Client)
		if err != nil || r.ByServer["ngx"] != 100 || r.ByRemote[top.ClientAddr(Families[i], 0)] != 100 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	p.Kill()
	to := netip.AddrPortFrom(top.ServerAddr(V4, 0), 5201)
	if _, err := StartIperf3(t.Context(), top.Servers[0], to); err != nil {
		t.Fatal(err)
	}
	r, err := RunIperf3(t.Context(), top.Client, to, 1, 2)
	if err != nil || r.ReceivedMbps < 1 {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("%+v", r)
	if _, err := RunIperf3(t.Context(), top.Client, netip.AddrPortFrom(to.Addr(), 1), 1, 1); err == nil {
		t.Error("no error where nobody listens")
	}
}

func TestToolMissing(t *testing.T) {
	_, err := tool("no-such-tool", "some-package")
	if err == nil || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Error(err)
	}
}

func TestBuild(t *testing.T) {
	if _, err := Build(t.Context(), "./no/such/package", false); err == nil {
		t.Error("built a package that is not there")
	}
	root, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	top := &Topology{Servers: make([]*Namespace, 2), LBClient: &Device{Name: "l0"}, LBServer: &Device{Name: "l1"}}
	services := Services(1, "full-nat", "toa", "", 1, 3)
	want := `workers: 2
admin_socket: off
interfaces:
  - name: l0
  - name: l1
local_addresses:
  - 10.0.1.10-10.0.1.13
  - 2001:db8:1::a-2001:db8:1::d
services:
  - name: web-full-nat-v4-1
    address: "192.0.2.11:80"
    protocol: tcp
    mode: full-nat
    scheduler: wrr
    client_address: toa
    backends:
      - {address: "10.0.1.20:8080", weight: 1}
      - {address: "10.0.1.21:8080", weight: 3}
  - name: echo-full-nat-v6-1
    address: "[2001:db8::b]:9001"
    protocol: udp
    mode: full-nat
    scheduler: wrr
    backends:
      - {address: "[2001:db8:1::14]:9001", weight: 1}
      - {address: "[2001:db8:1::15]:9001", weight: 3}
`
	got := top.Config([]Service{services[0], services[5]}, "workers: 2")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if len(services) != 6 {
		t.Errorf("%d services", len(services))
	}
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
)

// What `l4fwd status` says of discovery: all is well, and nothing is.
func TestDiscoveryRows(t *testing.T) {
	at := time.Date(2026, 11, 22, 17, 3, 11, 0, time.UTC)
	tests := []struct {
		name string
		in   admin.DiscoveryStatus
		want []string
	}{
		{"well", admin.DiscoveryStatus{Connected: true, Since: at, Revision: 7, InForce: 7, Services: 12, Backends: 80}, []string{
			"etcd\tanswers since 2026-11-22 17:03:11", "revision\t7, in force 7", "found\t12 services, 80 backends",
		}},
		{"not well", admin.DiscoveryStatus{
			Since: at, Revision: 9, InForce: 7, Recalled: true, Refused: 3, Problems: []string{"/l4fwd/services/a: refused: x", "/l4fwd/services/b: refused: y"},
			Refusal: "one\ntwo", Error: "reading from etcd: refused", ErrorAt: at.Add(time.Second),
		}, []string{
			"etcd\tdoes not answer since 2026-11-22 17:03:11", "last error\t2026-11-22 17:03:12 reading from etcd: refused",
			"revision\t9, in force 7 (of the last run)", "found\t0 services, 0 backends", "not in force\tone; two",
			"refused\t/l4fwd/services/a: refused: x", "refused\t/l4fwd/services/b: refused: y", "refused\t1 more",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			discoveryRows(&b, &tt.in)
			if diff := cmp.Diff(tt.want, strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// check asks no etcd, and says so.
func TestCheckDiscovery(t *testing.T) {
	c, err := config.Parse("l4fwd.yaml", []byte("interfaces: [{name: eth1}]\ndiscovery: {etcd: {endpoints: [\"http://192.0.2.1:2379\"]}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "l4fwd.yaml is sound: 0 services, 0 backends, 0 local addresses, 1 interface (eth1); more services are what etcd says, which was not asked"
	if got := summary("l4fwd.yaml", c); got != want {
		t.Error(got)
	}
}

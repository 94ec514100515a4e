package plan

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/dataplane"
)

func TestQUIC(t *testing.T) {
	const service = `
interfaces: [{name: eth1}]
services:
  - name: h3
    address: 192.0.2.10:443
    protocol: udp
    mode: dnat
    quic: {%s}
    backends: [{address: "10.0.1.20:443", server_id: %d}]
`
	tests := []struct {
		quic string
		id   uint64
		want dataplane.QUICSpec
	}{
		{"layout: none", 0, dataplane.QUICSpec{}},
		{"layout: katran", 70, dataplane.QUICSpec{Layout: dataplane.QUICKatran, IDLength: 4}},
		{"layout: dpvs", 0, dataplane.QUICSpec{Layout: dataplane.QUICDPVS, IDLength: 4}},
		{"layout: quic-lb, config_id: 3, server_id_length: 5", 1 << 39, dataplane.QUICSpec{Layout: dataplane.QUICLB, ConfigID: 3, IDLength: 5}},
		{"layout: quic-lb, config_id: 1, former_config_id: 0, former_server_id_length: 2", 7,
			dataplane.QUICSpec{Layout: dataplane.QUICLB, ConfigID: 1, IDLength: 4, FormerID: 0, FormerLength: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.quic, func(t *testing.T) {
			c, err := config.Parse("test", fmt.Appendf(nil, service, tt.quic, tt.id))
			if err != nil {
				t.Fatal(err)
			}
			s := Spec(c, nil).Services[0]
			if diff := cmp.Diff(tt.want, s.QUIC); diff != "" || s.Backends[0].ServerID != tt.id {
				t.Errorf("server id %d, layout (-want +got):\n%s", s.Backends[0].ServerID, diff)
			}
		})
	}
}

package steer

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Decide names the rule by which a frame is taken.
func TestDecideNamesTheRule(t *testing.T) {
	r := testRules()
	for name, f := range families {
		lease := Decision{PassOther, f.vip, 17, DHCPClient}
		if f.v6 {
			lease = Decision{Counter: TakeAddress, Addr: f.vip}
		}
		vip := f.tcp(t, f.client, 4000, f.vip, 80)
		for what, c := range map[string]struct {
			frame []byte
			want  Decision
		}{
			"address":   {vip, Decision{Counter: TakeAddress, Addr: f.vip}},
			"service":   {f.tcp(t, f.client, 4000, f.host, 80), Decision{TakeService, f.host, 6, 80}},
			"range":     {f.udp(t, f.backend, 80, f.host, rangeHi), Decision{TakeRange, f.host, 17, rangeHi}},
			"return":    {f.tcp(t, f.backend, 8080, f.client, 4000), Decision{TakeReturn, f.backend, 6, 8080}},
			"lease":     {f.udp(t, f.client, 67, f.vip, DHCPClient), lease},
			"none":      {f.tcp(t, f.client, 4000, f.host, 22), Decision{}},
			"no header": {vip[:13], Decision{Counter: PassMalformed}},
		} {
			if d := cmp.Diff(c.want, r.Decide(c.frame, [6]byte(nicMAC)), cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Errorf("%s, %s: -want +got\n%s", name, what, d)
			}
		}
	}
}

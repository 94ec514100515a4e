package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/dataplane"
)

// TestCombinations: whatever combination of a service's keys the configuration allows,
// the dataplane takes, for one worker and for several.
func TestCombinations(t *testing.T) {
	keys := map[string][]string{
		"mode":                 {"full-nat", "dnat", "dsr-l2", "tunnel", "snat"},
		"protocol":             {"tcp", "udp"},
		"scheduler":            {"rr", "wrr", "lc", "wlc", "sh", "maglev", "p2c"},
		"hash":                 {"address", "endpoint"},
		"hash_table_size":      {"11", "251"},
		"replies":              {"here", "elsewhere"},
		"encapsulation":        {"ipip", "gre", "gue", "fou, encapsulation_port: 5555", "vxlan, vni: 7"},
		"encapsulation_source": {`"2001:db8:9::/96"`, "172.16.0.0/16"},
		"client_address":       {"none", "toa", "proxy-v1", "proxy-v2", "uoa"},
		"uoa_form":             {"separate", "protocol", "option"},
		"uoa_datagrams":        {"1", "255"},
		"timestamps":           {"keep", "strip", "translate"},
		"one_packet":           {"true"},
		"mss_clamp":            {"mtu", "1200"},
		"no_flow":              {"drop", "reset"},
		"on_backend_down":      {"reset", "drop", "reschedule"},
		"persistence":          {"{timeout: 1h}"},
		"quic":                 {"{layout: dpvs}"},
		"tcp_checks":           {"strict", "off"},
	}
	names := slices.Sorted(maps.Keys(keys))
	names = slices.DeleteFunc(names, func(k string) bool { return k == "mode" || k == "protocol" })
	names = append([]string{"mode", "protocol"}, names...)
	allowed := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		var said []string
		for i, k := range names {
			if i < 2 || rapid.IntRange(0, 5).Draw(rt, k) == 0 {
				said = append(said, k+": "+rapid.SampledFrom(keys[k]).Draw(rt, k+" is"))
			}
		}
		if strings.Contains(said[0], "tunnel") && !strings.Contains(strings.Join(said, ","), "encapsulation:") {
			said = append(said, "encapsulation: gre")
		}
		vip := rapid.SampledFrom([]string{"192.0.2.10:80", "[2001:db8::10]:80"}).Draw(rt, "vip")
		backend := rapid.SampledFrom([]string{"10.0.1.%d:80", "[2001:db8:1::%d]:80"}).Draw(rt, "backends")
		more := rapid.SampledFrom([]string{"", "", ", max_connections: 3", ", weight: 0"}).Draw(rt, "of a backend")
		text := fmt.Sprintf("interfaces: [{name: eth1}]\nlocal_addresses: [10.0.1.10, \"2001:db8:1::10\"]\nservices:\n  - {name: s, address: %q, %s,\n     backends: [{address: %q%s}, {address: %q}]}\n",
			vip, strings.Join(said, ", "), fmt.Sprintf(backend, 20), more, fmt.Sprintf(backend, 21))
		c, err := config.Parse("f", []byte(text))
		if err != nil {
			return
		}
		allowed[said[0]]++
		for _, workers := range []int{1, 3} {
			if _, err := dataplane.NewRegistry(workers).Build(Spec(c, nil)); err != nil {
				rt.Fatalf("%v\n%s", err, text)
			}
		}
		Rules(c, nil)
		TunnelEnds(servicesOf(c))
	})
	if len(allowed) == 0 && !testing.Short() { // which draws few
		t.Error("nothing is allowed")
	}
}

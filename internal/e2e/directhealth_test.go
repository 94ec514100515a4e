package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// ownVIPs takes a real server's VIPs away, or gives them back.
func (r *rig) ownVIPs(t *testing.T, i int, on bool) {
	t.Helper()
	for _, f := range testbed.Families {
		vip := netip.PrefixFrom(r.VIP(f, 0), r.VIP(f, 0).BitLen()).String()
		args := map[bool][]string{true: {"addr", "add", vip, "dev", "lo"}, false: {"addr", "del", vip, "dev", "lo"}}[on]
		if on && f == testbed.V6 {
			args = append(args, "nodad")
		}
		if out, err := r.Topology.Servers[i].Command(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
}

// TestHealthOfDirectReturn: checks of servers that answer past l4fwd go to the VIP, by
// the way that packets of the service take. A server that loses the VIP is down though
// it answers at its own address, and up when it has it again.
func TestHealthOfDirectReturn(t *testing.T) {
	byName := map[string]wrapping{}
	for _, wr := range wrappings {
		byName[wr.name] = wr
	}
	for i, row := range []struct {
		arms  string
		wrap  string // "" is none
		outer testbed.Family
	}{
		{"one arm", "", testbed.V4},
		{"one arm", "vxlan", testbed.V4},
		{"two arms", "", testbed.V4},
		{"one arm", "ipip", testbed.V6},
		{"two arms", "gue", testbed.V4},
		{"two arms", "vxlan", testbed.V6},
		{"a trunk", "", testbed.V4},
		{"a trunk", "gue", testbed.V6},
	} {
		if testing.Short() && i > 1 {
			break
		}
		mode := dsrL2
		if row.wrap != "" {
			mode = tunnel
		}
		t.Run(fmt.Sprintf("%s %s in %s, %s", mode, row.wrap, row.outer, row.arms), func(t *testing.T) {
			var r *rig
			if row.arms == "a trunk" {
				var g *tags
				r, g = trunked(t, 1, true)
				defer func() { g.check(t, r.Topology, false) }()
			} else {
				r = directNetwork(t, scene{row.arms == "one arm", 1, mode}, testbed.SnifferOptions{Every: 20})
			}
			services := testbed.Services(0, mode, "", "wrr")
			if row.wrap != "" {
				wr := byName[row.wrap]
				for i, ns := range r.Topology.Servers {
					wr.unwrap(t, ns, r.ServerDevs[i], row.outer)
				}
				services = r.tunnelServices(wr, row.outer)
			}
			for i := range services {
				s := &services[i]
				check := map[bool]string{true: "type: http", false: "type: tcp"}[s.Port == testbed.PortHTTP]
				if s.Protocol == "udp" {
					check = "type: udp, send: hello, expect: hello"
				}
				ping := *s
				s.Extra = strings.TrimPrefix(s.Extra+"\n    health_check: {"+check+", "+checked+"}", "\n    ")
				if s.Protocol == "udp" { // once more, on another port
					ping.Name, ping.Port, ping.BackendPort = "ping-"+ping.Name, 9999, 9999
					ping.Extra = strings.TrimPrefix(ping.Extra+"\n    health_check: {type: ping, "+checked+"}", "\n    ")
					services = append(services, ping)
				}
			}
			d := program{}.start(t, r.LB, r.Config(services))
			r.warmUp()
			d.untilHealth("up", "up")
			r.ownVIPs(t, 0, false)
			d.untilHealth("down", "up")
			for _, f := range testbed.Families {
				load := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: 50, Timeout: limit}
				res, err := load.Run(t.Context(), r.Client)
				if err != nil || res.OK != 50 || len(res.ByServer) != 1 {
					t.Errorf("with one server without the VIP: %v, %d of 50, %v, %v", err, res.OK, res.ByServer, res.Errors)
				}
			}
			r.ownVIPs(t, 0, true)
			d.untilHealth("up", "up")
			for _, f := range testbed.Families {
				load := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: 50, Timeout: limit}
				res, err := load.Run(t.Context(), r.Client)
				if err != nil || res.OK != 50 || len(res.ByServer) != 2 {
					t.Errorf("when it has it again: %v, %d of 50, %v, %v", err, res.OK, res.ByServer, res.Errors)
				}
			}
			d.stop()
			r.nothingLeft(t)
		})
	}
}

// nothingLeft: of what leads checks nothing stays in l4fwd's namespace.
func (r *rig) nothingLeft(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"rule"}, {"-6", "rule"}, {"link"}} {
		out, err := r.LB.Command(t.Context(), "ip", args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "27700") || strings.Contains(string(out), "l4fwd-checks") {
			t.Errorf("ip %v: %v\n%s", args, err, out)
		}
	}
}

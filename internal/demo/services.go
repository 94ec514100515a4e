package demo

import (
	"fmt"
	"strings"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// webPort is the port of HTTP at a mode's VIPs.
func (m *mode) webPort() uint16 {
	if m.direct() {
		return testbed.PortHTTP
	}
	return testbed.VIPPortHTTP
}

// services are HTTP and UDP echo in both families: those of the forwarder with the
// VIPs, and the answering half of those that have one.
func (n *network) services() (first, back []testbed.Service) {
	for i, m := range n.modes {
		for _, f := range testbed.Families {
			web := testbed.Service{
				Name: fmt.Sprintf("web-%s-%s", m.name, f), Family: f, VIP: i,
				Port: m.webPort(), BackendPort: testbed.PortHTTP, Protocol: "tcp",
				Mode: m.name, Scheduler: "wrr", Weights: weights,
			}
			switch m.name {
			case fullNAT:
				web.ClientAddress = "toa"
			case tunnel:
				web.Extra = strings.TrimSpace("encapsulation: " + m.wrap.name + "\n    " + m.wrap.said)
			}
			echo := web
			echo.Name, echo.ClientAddress = fmt.Sprintf("echo-%s-%s", m.name, f), ""
			echo.Port, echo.BackendPort, echo.Protocol = testbed.PortEcho, testbed.PortEcho, "udp"
			for _, s := range []testbed.Service{web, echo} {
				if m.answers == byReturn {
					back = append(back, s)
					s.Mode, s.Extra = dnat, "replies: elsewhere"
				}
				first = append(first, s)
			}
		}
	}
	return first, back
}

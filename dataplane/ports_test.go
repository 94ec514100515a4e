package dataplane

import (
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// TestPortsBehindAnotherServicesFlow: when ports run out, half-open flows give
// theirs to new ones although one of another service, which has no port to give, is
// the oldest there is: a single unanswered datagram would else keep everybody out
// until it is forgotten.
func TestPortsBehindAnotherServicesFlow(t *testing.T) {
	spec := testSpec()
	spec.Locals = spec.Locals[:1]
	spec.Services = []ServiceSpec{
		service("web", "192.0.2.10:80", packet.ProtoTCP, conntrack.FullNAT, false, "10.0.1.20:80"),
		service("log", "192.0.2.10:514", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:514"),
	}
	for i := range spec.Services {
		spec.Services[i].Timeouts[conntrack.SynSent], spec.Services[i].Timeouts[conntrack.UDPOneWay] = conntrack.MaxTimeout, conntrack.MaxTimeout
	}
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2039}} })
	r.one(0, 0, 1, build(t, seg{src: oneClient, dst: "192.0.2.10:514", udp: true, payload: 10}))
	for i := range 200 {
		r.now += int64(400 * time.Millisecond)
		r.step()
		r.one(0, 0, 1, build(t, seg{src: hostPort("198.51.100.9", uint16(1024+i)), dst: "192.0.2.10:80", syn: true}))
	}
	if n := r.counts().Evicted; n != 160 {
		t.Errorf("%d flows gave their ports, want 160", n)
	}
}

// TestOneTupleForBothWays: a flow whose reply would have the tuple of its client's packets is
// not opened. The local address is the VIP, which package config does not allow, and a
// backend talks to it from the port of its service.
func TestOneTupleForBothWays(t *testing.T) {
	spec := testSpec()
	spec.Locals[0] = addr("192.0.2.10")
	s := service("u", "192.0.2.10:5000", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:5001")
	spec.Services = []ServiceSpec{s}
	spec.Locals = spec.Locals[:1]
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 5000, Last: 5000}} })
	r.deliver(0, 1, build(t, seg{src: "10.0.1.20:5001", dst: "192.0.2.10:5000", udp: true, payload: 4}))
	c := r.counts()
	if c.Opened != 0 || c.Verdicts[DropTupleConflict] != 1 {
		t.Errorf("%d opened, %d conflicts", c.Opened, c.Verdicts[DropTupleConflict])
	}
}

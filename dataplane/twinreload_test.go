package dataplane

import (
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// reload publishes a configuration in which much is otherwise, while flows live on.
func (tw *twins) reload() {
	rt := tw.rt
	seldom := func(name string) bool { return rapid.IntRange(0, 4).Draw(rt, name) == 0 }
	spec := twinSpec(rt)
	var kept []ServiceSpec
	for _, s := range spec.Services {
		if seldom("without it") {
			continue
		}
		for range rapid.IntRange(0, 2).Draw(rt, "changes") {
			tw.change(&s)
		}
		kept = append(kept, s)
	}
	if spec.Services = kept; seldom("other addresses") {
		spec.Locals = append(spec.Locals[1:], addr("10.0.1.12"), addr("2001:db8:1::11"))
	}
	if rapid.Bool().Draw(rt, "drain") {
		spec = spec.after(twinSpec(rt))
		for i := range spec.Services { // some lose a backend, whose time is over, meanwhile
			if s := &spec.Services[i]; s.Draining {
				s.Backends = s.Backends[rapid.IntRange(0, min(1, len(s.Backends))).Draw(rt, "fewer"):]
				s.OnBackendDown = BackendDown(rapid.IntRange(0, int(BackendDownReschedule)).Draw(rt, "backend down"))
			}
		}
	}
	forget := rapid.Bool().Draw(rt, "forget")
	for i, r := range tw.rigs {
		if forget {
			tw.regs[i].Forget(r.backendCounts())
		}
		snap, err := tw.regs[i].Build(spec)
		if err != nil {
			rt.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
	}
	tw.blind()
}

// change changes what plain has to know of a service.
func (tw *twins) change(s *ServiceSpec) {
	rt := tw.rt
	tcp := s.VIP.Proto == packet.ProtoTCP
	switch rapid.IntRange(0, 11).Draw(rt, "what") {
	case 0:
		s.TOA = !s.TOA && tcp && s.Mode == conntrack.FullNAT
	case 1:
		s.TOAKind = rapid.SampledFrom([]uint8{254, 253, 77, packet.OptTimestamps}).Draw(rt, "kind")
	case 2:
		s.TOAOnly = !s.TOAOnly
	case 3:
		s.TCPChecks = conntrack.Checks(rapid.IntRange(0, int(conntrack.ChecksOff)).Draw(rt, "checks"))
	case 4:
		for i := range s.Timeouts {
			s.Timeouts[i] = rapid.SampledFrom([]uint32{1, 16, 255, 256, 257, 100_000, conntrack.MaxTimeout}).Draw(rt, "timeout")
		}
	case 5:
		s.Timestamps = nat.TSPolicy(rapid.IntRange(0, 2).Draw(rt, "timestamps"))
		if s.Mode != conntrack.FullNAT {
			s.Timestamps = nat.TSKeep
		}
	case 6:
		if len(s.Backends) > 0 && s.VIP.Addr.Is4() == s.Backends[0].Endpoint.Addr.Is4() && s.Proxy == nat.NoProxy && s.Timestamps != nat.TSTranslate {
			s.Mode ^= conntrack.DNAT // the one becomes the other
		}
	case 7:
		s.OnePacket = !tcp && !s.OnePacket
	case 8:
		s.Backends = s.Backends[min(1, len(s.Backends)):]
	case 9:
		s.Backends = s.Backends[min(1, len(s.Backends)):]
		s.OnBackendDown = BackendDown(rapid.IntRange(0, int(BackendDownReschedule)).Draw(rt, "backend down"))
	case 10:
		s.Scheduler = balance.LeastConn
		for i := range s.Backends {
			s.Backends[i].MaxConnections = rapid.Uint32Range(0, 3).Draw(rt, "most")
		}
	case 11:
		if s.Mode == conntrack.DNAT {
			s.Mode, s.OnePacket = rapid.SampledFrom([]conntrack.Mode{conntrack.DirectReturn, conntrack.DNATOneWay}).Draw(rt, "mode"), false
		}
	}
}

// damage makes a frame what no host sends.
func (tw *twins) damage(b []byte) []byte {
	rt := tw.rt
	switch rapid.IntRange(0, 40).Draw(rt, "damage") {
	case 0:
		b[rapid.IntRange(0, min(len(b), 90)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
	case 1:
		b = b[:rapid.IntRange(0, len(b)).Draw(rt, "length")]
	case 2:
		b = append(b, make([]byte, rapid.IntRange(1, 100).Draw(rt, "more"))...)
	}
	return b
}

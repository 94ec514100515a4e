package nat

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestPortsLateReuse: whatever services share their real servers, and however their
// new flows are mixed, a tuple (server, local address, port) comes back only after
// all the other ports between the two had their turn, those apart that flows still
// hold.
func TestPortsLateReuse(tt *testing.T) {
	rapid.Check(tt, func(t *rapid.T) {
		servers := rapid.IntRange(1, 3).Draw(t, "servers")
		b := newPortsBench(tt, 64, rapid.IntRange(1, 3).Draw(t, "local addresses"), servers)
		// More backend ids for the same servers: one for each service.
		for range rapid.IntRange(0, 3).Draw(t, "more services") {
			b.dir.Backends = append(b.dir.Backends, b.dir.Backends[:servers]...)
		}
		// Neighbours that differ in port or protocol alone are other servers.
		other := b.dir.Backends[0]
		other.Port++
		udp := b.dir.Backends[0]
		udp.Proto = packet.ProtoUDP
		b.dir.Backends = append(b.dir.Backends, other, udp)

		const ports = 200
		first := rapid.Uint16Range(1, 60000).Draw(t, "first port")
		workers := rapid.IntRange(1, 2).Draw(t, "workers")
		var locals []uint16
		o := PortOptions{Worker: workers - 1, Workers: workers, Seed: 7}
		for i := range b.dir.Locals {
			locals = append(locals, uint16(i))
			o.Ranges = append(o.Ranges, PortRange{First: first, Last: first + ports*uint16(workers) - 1})
		}
		s := NewPorts(o)
		stay := rapid.IntRange(0, nearProbes-1).Draw(t, "flows that stay")

		type pair struct {
			server conntrack.Endpoint
			local  uint16
		}
		type use struct {
			pair
			port uint16
		}
		picks := map[pair]int{}
		last := map[use]int{}
		for range rapid.IntRange(0, 4*ports).Draw(t, "picks") {
			backend := uint32(rapid.IntRange(0, len(b.dir.Backends)-1).Draw(t, "backend"))
			local, port, _, ok := s.Pick(b.t, &b.dir, locals, backend, 0)
			if !ok {
				t.Fatal("no port")
			}
			p := pair{b.dir.Backends[backend], local}
			n := picks[p]
			picks[p]++
			if was, seen := last[use{p, port}]; seen && n-was < ports-stay {
				t.Fatalf("%v: port %d again after %d others, want %d", p, port, n-was-1, ports-stay-1)
			}
			last[use{p, port}] = n
			if b.t.Len() < stay && p.server.Proto == packet.ProtoTCP {
				b.insert(tt, local, port, backend)
			}
		}
	})
}

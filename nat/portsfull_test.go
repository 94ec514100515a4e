package nat

import (
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
)

// fullPorts is a bench with so many ports of each local address in use towards
// each backend, all there are, and the flows that use them.
func fullPorts(tb testing.TB, locals, backends, ports int) (*portsBench, *Ports, []uint16, []conntrack.Ref) {
	b := newPortsBench(tb, locals*backends*ports+1, locals, backends)
	o := PortOptions{Workers: 1, Seed: 7}
	var ids []uint16
	var refs []conntrack.Ref
	for local := range locals {
		ids = append(ids, uint16(local))
		o.Ranges = append(o.Ranges, PortRange{First: 1024, Last: uint16(1023 + ports)})
		for backend := range backends {
			for port := range ports {
				refs = append(refs, b.insert(tb, uint16(local), uint16(1024+port), uint32(backend)))
			}
		}
	}
	return b, NewPorts(o), ids, refs
}

// TestPortsInVain: however many new flows find no port, a tick has a bounded
// number of probes for them; a backend without ports leaves the others theirs;
// and a port that becomes free is found, by the search that goes on with every
// tick, and by the single probes as well.
func TestPortsInVain(t *testing.T) {
	const ports = 1000
	b, s, locals, refs := fullPorts(t, 2, 1, ports)
	b.dir.Backends = append(b.dir.Backends, b.dir.Backends[0])
	b.dir.Backends[1].Port++
	for now := range uint32(3) {
		for range 10_000 {
			if _, _, _, ok := s.Pick(b.t, &b.dir, locals, 0, now); ok {
				t.Fatal("a port beyond the last")
			}
		}
		if n := s.vain.at(now); n < serverProbes || n > serverProbes+maxLocals*maxPortProbes {
			t.Errorf("%d probes in vain in one tick", n)
		}
		if local, port, _, ok := s.Pick(b.t, &b.dir, locals, 1, now); !ok {
			t.Errorf("the other backend has none: %d %d", local, port)
		}
	}
	for _, c := range []struct {
		name  string
		picks int // in one tick
		most  int // until it is found
	}{{"a tick, a flow", 1, 2 * ports / 16}, {"one tick", 1 << 30, 2*2*ports + serverProbes}} {
		for i := range 20 {
			gone := i * 99
			e := *b.t.Entry(refs[gone])
			b.t.Remove(refs[gone])
			found := 0
			for n := 1; found == 0 && n <= c.most; n++ {
				if local, port, _, ok := s.Pick(b.t, &b.dir, locals, 0, uint32(10+n/c.picks)); ok {
					if found = n; local != e.Local || port != e.LocalPort {
						t.Fatalf("%s: %d %d is in use", c.name, local, port)
					}
				}
			}
			if found == 0 {
				t.Errorf("%s: port %d of %d is not found in %d", c.name, e.LocalPort, e.Local, c.most)
			}
			refs[gone] = b.insert(t, e.Local, e.LocalPort, 0)
		}
	}
}

// TestPortsInVainForAll: the limit of the worker holds over all backends.
func TestPortsInVainForAll(t *testing.T) {
	const backends = 100
	b, s, locals, _ := fullPorts(t, 1, backends, 64)
	for range 100 {
		for backend := range uint32(backends) {
			if _, _, _, ok := s.Pick(b.t, &b.dir, locals, backend, 5); ok {
				t.Fatal("a port beyond the last")
			}
		}
	}
	if n := s.vain.at(5); n > workerProbes+maxLocals*maxPortProbes {
		t.Errorf("%d probes in vain", n)
	}
}

// BenchmarkPickExhausted is what a new flow costs that finds no port, towards
// four backends one after the other, as dataplane tries them; at the most
// SYNs a tick that a worker can take, or few.
func BenchmarkPickExhausted(b *testing.B) {
	f, s, locals, _ := fullPorts(b, 4, 4, 65536-1024)
	for _, c := range []struct {
		name string
		each int // flows a tick
	}{{"few", 1}, {"flood", 60_000}} {
		b.Run(c.name, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				for backend := range uint32(4) {
					if _, _, _, ok := s.Pick(f.t, &f.dir, locals, backend, uint32(i/c.each)); ok {
						b.Fatal("a port")
					}
				}
			}
		})
	}
}

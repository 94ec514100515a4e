package nat

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// portsBench is a flow table with everything Pick needs.
type portsBench struct {
	t      *conntrack.Table
	dir    conntrack.Directory
	client uint32
}

func newPortsBench(tb testing.TB, flows, locals, backends int) *portsBench {
	tb.Helper()
	t, err := conntrack.New(conntrack.Options{Flows: flows, HalfOpen: flows, Lazy: true, Secret: [32]byte{1}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	b := &portsBench{t: t}
	b.dir.Services = []conntrack.Endpoint{{Addr: addr("192.0.2.10"), Port: 80, Proto: packet.ProtoTCP}}
	for i := range backends {
		b.dir.Backends = append(b.dir.Backends, conntrack.Endpoint{Addr: addr(fmt.Sprintf("10.0.2.%d", i+1)), Port: 8080, Proto: packet.ProtoTCP})
	}
	for i := range locals {
		b.dir.Locals = append(b.dir.Locals, addr(fmt.Sprintf("10.0.1.%d", i+1)))
	}
	return b
}

// insert opens the flow that Pick found a port for.
func (b *portsBench) insert(tb testing.TB, local, port uint16, backend uint32) conntrack.Ref {
	tb.Helper()
	b.client++
	client := packet.Addr{Lo: 0xffff_0b000000 | uint64(b.client)}
	tmpl := conntrack.Entry{Client: client, ClientPort: 5, LocalPort: port, Local: local, Backend: backend, Proto: packet.ProtoTCP}
	rs, vip := b.dir.Backends[backend], b.dir.Services[0]
	fwd := packet.Tuple{Src: client, SrcPort: 5, Dst: vip.Addr, DstPort: vip.Port, Proto: packet.ProtoTCP}
	rev := packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Dst: b.dir.Locals[local], DstPort: port, Proto: packet.ProtoTCP}
	r, status, _ := b.t.Insert(&tmpl, &fwd, &rev, &b.dir, 0, nil)
	if status != conntrack.Inserted {
		tb.Fatalf("insert of flow %d: %v", b.client, status)
	}
	return r
}

// TestPortsCapacity: one local address serves a whole port range to each of
// several backends, then says no at once, and a second local address helps.
func TestPortsCapacity(t *testing.T) {
	const each = 65536 - 1024
	b := newPortsBench(t, 220_000, 2, 3)
	s := NewPorts(PortOptions{Workers: 1, Seed: 7})
	one := []uint16{0}
	for backend := range uint32(3) {
		for i := range each {
			local, port, hash, ok := s.Pick(b.t, &b.dir, one, backend, 0)
			rs := &b.dir.Backends[backend]
			if reply := (packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Dst: b.dir.Locals[0], DstPort: port, Proto: rs.Proto}); ok && hash != b.t.Hash(&reply) {
				t.Fatalf("backend %d, flow %d: hash %#x", backend, i, hash)
			}
			if !ok || local != 0 || port < 1024 {
				t.Fatalf("backend %d, flow %d: %d %d %v", backend, i, local, port, ok)
			}
			b.insert(t, local, port, backend)
		}
		if _, _, _, ok := s.Pick(b.t, &b.dir, one, backend, 0); ok {
			t.Fatalf("backend %d: a port beyond the last", backend)
		}
	}
	for range 1000 {
		local, port, _, ok := s.Pick(b.t, &b.dir, []uint16{0, 1}, 1, 0)
		if !ok || local != 1 {
			t.Fatalf("second address: %d %d %v", local, port, ok)
		}
		b.insert(t, local, port, 1)
	}
}

// TestPortsLongRun: one Pick gets over a run of ports in use of up to half of all.
func TestPortsLongRun(t *testing.T) {
	const all = 65536 - 1024
	for _, run := range []int{1, 15, 16, 17, 100, 5000, 30000, all / 2} {
		b := newPortsBench(t, run, 1, 1)
		s := NewPorts(PortOptions{Workers: 1, Seed: 7})
		pick := func() uint16 {
			_, port, _, ok := s.Pick(b.t, &b.dir, []uint16{0}, 0, 0)
			if !ok {
				t.Fatalf("run of %d: no port", run)
			}
			return port
		}
		used := map[uint16]bool{}
		for range run {
			port := pick()
			used[port] = true
			b.insert(t, 0, port, 0)
		}
		for range 3 * all {
			if port := pick(); used[port] {
				t.Fatalf("run of %d: port %d is in use", run, port)
			}
		}
	}
}

// TestPortsReuse: with every flow gone at once, a port comes back only after all
// others had their turn.
func TestPortsReuse(t *testing.T) {
	b := newPortsBench(t, 16, 1, 1)
	s := NewPorts(PortOptions{Worker: 1, Workers: 4, Seed: 3, Ranges: []PortRange{{First: 30000, Last: 31001}}})
	last := map[uint16]int{}
	const share = 250 // of 30000..31001 leave remainder 1: 30001, 30005, ... 30997, 31001 make 251
	for i := range 5000 {
		_, port, _, ok := s.Pick(b.t, &b.dir, []uint16{0}, 0, 0)
		if !ok || port < 30000 || port > 31001 || !s.Own().Holds(port) {
			t.Fatalf("%d %v", port, ok)
		}
		if was, seen := last[port]; seen && i-was < share {
			t.Fatalf("port %d again after %d", port, i-was)
		}
		last[port] = i
	}
	if len(last) != share+1 {
		t.Errorf("%d ports used, want %d", len(last), share+1)
	}
}

// TestPortsWorkers: the workers' ports are disjoint, and together are all there
// are.
func TestPortsWorkers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers := rapid.IntRange(1, 70).Draw(t, "workers")
		first := rapid.Uint16().Draw(t, "first")
		r := PortRange{First: first, Last: uint16(min(65535, int(first)+rapid.IntRange(0, 3000).Draw(t, "length")))}
		owner := map[uint16]int{}
		for w := range workers {
			own := Residue{Modulus: uint16(workers), Remainder: uint16(w)}
			sp := own.in(r)
			for i := range sp.count {
				port := sp.first + i*own.Modulus
				if was, taken := owner[port]; taken {
					t.Fatalf("port %d is worker %d's and worker %d's", port, was, w)
				}
				if port < r.First || port > r.Last || port == 0 || !own.Holds(port) {
					t.Fatalf("port %d of worker %d in %v", port, w, r)
				}
				owner[port] = w
			}
		}
		want := int(r.Last) - int(r.First) + 1
		if r.First == 0 {
			want--
		}
		if len(owner) != want {
			t.Fatalf("%d ports, want %d", len(owner), want)
		}
	})
}

// TestPortsTurns: local addresses take turns fairly, for each backend, also when
// backends take turns in step with them.
func TestPortsTurns(t *testing.T) {
	b := newPortsBench(t, 16, 4, 2)
	s := NewPorts(PortOptions{Workers: 2, Seed: 11})
	var used [2][4]int
	for i := range 4000 {
		backend := uint32(i % 2)
		local, _, _, ok := s.Pick(b.t, &b.dir, []uint16{0, 1, 2, 3}, backend, 0)
		if !ok {
			t.Fatal("no port")
		}
		used[backend][local]++
	}
	for backend, locals := range used {
		for local, n := range locals {
			if n != 500 {
				t.Errorf("backend %d used local address %d %d times, want 500", backend, local, n)
			}
		}
	}
}

func TestPortsRefuse(t *testing.T) {
	b := newPortsBench(t, 16, 1, 1)
	b.dir.Locals = append(b.dir.Locals, addr("2001:db8::1"))
	for _, c := range []struct {
		name    string
		o       PortOptions
		locals  []uint16
		backend uint32
		ok      bool
	}{
		{"works", PortOptions{Workers: 1}, []uint16{0}, 0, true},
		{"no workers count as one", PortOptions{}, []uint16{0}, 0, true},
		{"no local address", PortOptions{Workers: 1}, nil, 0, false},
		{"backend unknown", PortOptions{Workers: 1}, []uint16{0}, 1, false},
		{"local unknown", PortOptions{Workers: 1}, []uint16{9}, 0, false},
		{"other family passed over", PortOptions{Workers: 1}, []uint16{1, 0}, 0, true},
		{"other family only", PortOptions{Workers: 1}, []uint16{1}, 0, false},
		{"range holds none of the worker's", PortOptions{Worker: 1, Workers: 4, Ranges: []PortRange{{First: 4, Last: 4}}}, []uint16{0}, 0, false},
		{"range upside down", PortOptions{Workers: 1, Ranges: []PortRange{{First: 5, Last: 4}}}, []uint16{0}, 0, false},
		{"zero range is the default", PortOptions{Workers: 1, Ranges: []PortRange{{}}}, []uint16{0}, 0, true},
	} {
		local, port, _, ok := NewPorts(c.o).Pick(b.t, &b.dir, c.locals, c.backend, 0)
		if ok != c.ok {
			t.Errorf("%s: %d %d %v", c.name, local, port, ok)
		}
	}
}

// TestPortsSeed: the same seed gives the same ports, another one others.
func TestPortsSeed(t *testing.T) {
	b := newPortsBench(t, 16, 1, 1)
	first := func(seed uint64) uint16 {
		_, port, _, _ := NewPorts(PortOptions{Workers: 1, Seed: seed}).Pick(b.t, &b.dir, []uint16{0}, 0, 0)
		return port
	}
	one, again := first(1), first(1)
	if one != again {
		t.Error("one seed, two ports")
	}
	if one == first(2) && one == first(3) {
		t.Error("the seed does not matter")
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	b := newPortsBench(t, 16, 2, 1)
	s := NewPorts(PortOptions{Workers: 1})
	locals := []uint16{0, 1}
	if n := testing.AllocsPerRun(100, func() {
		if _, _, _, ok := s.Pick(b.t, &b.dir, locals, 0, 0); !ok {
			panic("no port")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

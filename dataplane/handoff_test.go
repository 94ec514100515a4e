package dataplane

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// What is put is seen once it is published, in order, whole, and never twice; a ring
// that is full takes nothing.
func TestRingAgainstSlices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newSPSC(rapid.IntRange(1, 9).Draw(t, "size"))
		var put, seen []uint64
		next := uint64(1)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				room := len(r.slots) - len(put) - len(seen)
				if got := r.room(); got > room || got == 0 && room > 0 {
					t.Fatalf("room for %d, said %d", room, got)
				}
				if ok := r.put(next); ok != (room > 0) {
					t.Fatalf("put %v with room for %d", ok, room)
				} else if ok {
					put = append(put, next)
					next++
				}
			},
			"publish": func(*rapid.T) {
				r.publish()
				seen, put = append(seen, put...), nil
			},
			"look": func(t *rapid.T) {
				n := rapid.IntRange(0, 9).Draw(t, "n")
				first, rest := r.look(uint64(n))
				if d := cmp.Diff(seen[:min(n, len(seen))], slices.Concat(first, rest)); d != "" && len(seen) > 0 && n > 0 {
					t.Fatal(d)
				}
			},
			"pop": func(t *rapid.T) {
				v := make([]uint64, rapid.IntRange(1, 9).Draw(t, "n"))
				n := r.pop(v)
				// What it saw when it looked last is enough.
				if n > len(seen) || n == 0 && len(seen) > 0 || !slices.Equal(v[:n], seen[:n]) {
					t.Fatalf("popped %v of %v", v[:n], seen)
				}
				seen = seen[n:]
			},
		})
	})
}

// A packet's hash is popped with it, and 0 where none was put, whatever was there before.
func TestPacketRingHashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newPacketRing(rapid.IntRange(1, 9).Draw(t, "size"))
		var next uint64
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			from := next
			for r.put(next, uint32(next*next%5)) { // some are 0
				next++
			}
			if next-from != uint64(len(r.slots)) {
				t.Fatalf("%d put", next-from)
			}
			r.publish()
			for from < next {
				v, hashes := make([]uint64, rapid.IntRange(1, 9).Draw(t, "n")), make([]uint32, 9)
				for i, v := range v[:r.popHashed(v, hashes)] {
					if v != from || hashes[i] != uint32(from*from%5) {
						t.Fatalf("%d with %d, not %d", v, hashes[i], from)
					}
					from++
				}
			}
		}
	})
}

// The multiplications say what the division says, for every port and worker.
func TestLocalPortIsModulo(t *testing.T) {
	for workers := 1; workers <= 255; workers++ {
		o := newOwnership(make([]byte, 32), workers, nil)
		for port := range 1 << 16 {
			if got := o.localPort(uint16(port)); got != port%workers {
				t.Fatalf("port %d of %d workers: %d", port, workers, got)
			}
		}
	}
}

// Only addresses that nothing but flows' replies come to are passed on unseen.
func TestLocalsAlone(t *testing.T) {
	spec := testSpec()
	spec.Locals = append(spec.Locals, addr("10.0.1.99"))
	spec.Services[0].VIP.Addr = spec.Locals[0] // one address for both
	r := NewRegistry(1)
	if _, err := r.Build(spec); err != nil {
		t.Fatal(err)
	}
	gone := spec.Locals[len(spec.Locals)-1]
	spec.Locals = spec.Locals[:len(spec.Locals)-1]
	s, err := r.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		addr packet.Addr
		want bool
	}{
		{"a VIP too", spec.Locals[0], false},
		{"a local address", spec.Locals[1], true},
		{"a former one", gone, true},
		{"a VIP", spec.Services[1].VIP.Addr, false},
		{"a server", spec.Services[0].Backends[0].Endpoint.Addr, false},
		{"a stranger", addr("1.2.3.4"), false},
	} {
		if got := s.locals.differs(c.addr) == 0; got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// A hint about anything is harmless, and costs no memory.
func TestPrefetchFrames(t *testing.T) {
	m, packed := make([]byte, 4096), []uint64{0, 64, 4095, 1<<64 - 1}
	prefetchFrames(m, nil)
	prefetchFrames(nil, packed)
	if n := testing.AllocsPerRun(10, func() { prefetchFrames(m, packed) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

// Who is handed a reply finds it as glance would, and has not read it for that, unless it
// is tagged or no glance knows it.
func TestHandedGlanced(t *testing.T) {
	r := newRig(t, 2, testSpec())
	from, to := r.dp.Workers[0], r.dp.Workers[1]
	to.Poll(r.now) // takes the snapshot
	port := 2000
	for from.owners.localPort(uint16(port)) != to.id {
		port++
	}
	v4 := seg{src: "10.0.1.20:8080", dst: fmt.Sprintf("10.0.1.10:%d", port), ack: true, payload: 9}
	v6 := v4
	v6.src, v6.dst = "[2001:db8:1::20]:8080", fmt.Sprintf("[2001:db8:1::10]:%d", port)
	change := func(s seg, f func(*seg)) []byte { f(&s); return build(t, s) }
	var list [][]byte
	for _, s := range []seg{v4, v6} {
		list = append(list, build(t, s), change(s, func(s *seg) { s.udp = true }),
			change(s, func(s *seg) { s.vlan = 7 }), change(s, func(s *seg) { s.fin = true }))
	}
	r.port[0][1].Feed(list, 1)
	from.Poll(r.now)
	n := to.adopt(^rowSet(0), 0).len()
	if n != len(list) {
		t.Fatalf("%d handed over: %v", n, from.Counts().Verdicts)
	}
	for k := range n {
		if got, want := to.b.ip[k] != 0, k%4 < 2; got != want {
			t.Errorf("packet %d: glanced at %v", k, got)
		}
	}
	if flows := to.parseHanded(0, n); flows != n {
		t.Fatalf("%d flows", flows)
	}
	for k := range n {
		hash, ip := glance(to.umem, &to.b.desc[to.b.look.Packet[k]], to.table)
		if ip == 0 {
			hash = to.table.Hash(&to.b.pkt[to.b.look.Packet[k]].Tuple)
		}
		if to.b.look.Hash[k] != hash || to.b.ip[k] != ip {
			t.Errorf("packet %d: %x at %x, not %x at %x", k, to.b.look.Hash[k], to.b.ip[k], hash, ip)
		}
	}
	to.serve(n)
	to.publishHanded()
	r.step()
}

// A client's packet takes its hash along. Where it comes has the last word: who is handed
// what he takes for another's drops it.
func TestHandedClients(t *testing.T) {
	r := newRig(t, 3, testSpec())
	from, other := r.dp.Workers[0], r.dp.Workers[2]
	var list [][]byte
	for _, way := range [][2]string{{"198.51.100.7", "192.0.2.11:5000"}, {"2001:db8:c::7", "[2001:db8::64]:5000"}} {
		port := uint16(1000)
		for from.owners.client(addr(way[0]), port) != 1 {
			port++
		}
		list = append(list, build(t, seg{src: hostPort(way[0], port), dst: way[1], udp: true}))
	}
	for _, w := range r.dp.Workers {
		w.Poll(r.now) // takes the snapshot
	}
	r.port[0][0].Feed(list, 1)
	from.Poll(r.now)
	ring := from.outbox[1]
	for k := range list {
		if v := ring.slots[k]; ring.hashes[k] == 0 || v&glancedV6 != 0 != (list[k][12] == 0x86) {
			t.Errorf("packet %d: hash %x, IPv6 %v", k, ring.hashes[k], v&glancedV6 != 0)
		}
		from.outbox[2].put(ring.slots[k], ring.hashes[k])
	}
	ring.pop(make([]uint64, len(list)))
	from.outbox[2].publish()
	other.Poll(r.now)
	if n := other.Counts().Verdicts; n[DropNoFlow] != uint64(len(list)) {
		t.Errorf("of another's packets: %v", n)
	}
}

// What finds no room on its way back stays, and goes when there is some.
func TestFullWayBack(t *testing.T) {
	r := newRig(t, 2, testSpec())
	r.step()
	rich, poor := r.dp.Workers[1], r.dp.Workers[0]
	ring, extra := rich.repayments[0], poor.pool.take(BurstSize)
	rich.pool.free = append(rich.pool.free, extra...)
	rich.owed[0], poor.owed[1] = len(extra)+rich.mesh.credit, -len(extra)-rich.mesh.credit
	const room = BurstSize / 4
	ring.next += uint64(len(ring.slots) - room) // as if so many had not been collected
	rich.repay()
	if n := rich.owed[0] - rich.mesh.credit; n != len(extra)-room {
		t.Errorf("%d are owed with room for %d", n, room)
	}
	ring.at, ring.seen = ring.next-room, ring.next-room
	ring.head.Store(ring.at)
	r.step()
	r.step()
	if n := rich.owed[0] + poor.owed[1]; rich.owed[0] != rich.mesh.credit || n != 0 {
		t.Errorf("%v and %v are owed", rich.owed, poor.owed)
	}
}

// Whoever hands over to whom, for how long and how one-sidedly: when all rests nobody has
// fewer frames than he began with but for what others may owe him.
func TestFramesComeBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(2, 4).Draw(rt, "workers")
		r := newRig(onceDrawn{t, rt}, workers, testSpec())
		r.step()
		to := make([][]byte, workers) // by worker: what is a reply to a flow of its own
		for port := 2000; port < 2000+workers; port++ {
			id := r.dp.Workers[0].owners.localPort(uint16(port))
			to[id] = build(r.t, seg{src: "10.0.1.20:8080", dst: fmt.Sprintf("10.0.1.10:%d", port), ack: true})
		}
		credit, frames := r.dp.mesh.credit, int(r.dp.mesh.frames)
		if credit < 1 || (workers-1)*credit > frames/creditShare {
			rt.Fatalf("%d frames owed of %d", credit, frames)
		}
		for range rapid.IntRange(1, 4).Draw(rt, "spells") {
			from, owner := rapid.IntRange(0, workers-1).Draw(rt, "from"), rapid.IntRange(0, workers-1).Draw(rt, "to")
			for range rapid.IntRange(1, 40).Draw(rt, "bursts") {
				var list [][]byte
				for range BurstSize {
					list = append(list, to[owner])
				}
				r.port[from][1].Feed(list, 1)
				for !r.port[from][1].Idle() {
					r.dp.Workers[from].Poll(r.now)
				}
				r.dp.Workers[owner].Poll(r.now)
			}
		}
		r.step()
		r.step() // what was sent back has come
		if n := r.counts().Verdicts[DropHandoffFull]; n > 0 {
			rt.Errorf("%d dropped", n)
		}
		for _, w := range r.dp.Workers {
			if n := cap(w.pool.free); n != workers*frames {
				rt.Errorf("worker %d has room for %d frames", w.id, n) // another one would allocate
			}
			n := len(w.pool.free)
			for i := range w.queues {
				n += len(w.queues[i].Held(nil))
			}
			if n < frames-(workers-1)*credit || n > frames+(workers-1)*credit {
				rt.Errorf("worker %d has %d frames, of which each began with %d, and owes %d", w.id, n, frames, w.owed)
			}
		}
	})
}

// What is handed over takes the rows that a burst leaves free; of a full one it waits
// for the next, and then for no more.
func TestHandedFillsBursts(t *testing.T) {
	junk := func(n int) (list [][]byte) {
		for range n {
			list = append(list, make([]byte, 60))
		}
		return list
	}
	for _, tt := range []struct {
		name   string
		own    []int // packets of its own, by round
		handed int
		want   []uint64 // packets adopted so far, by round
	}{
		{"nothing of its own", []int{0}, 40, []uint64{40}},
		{"room for all", []int{20}, 40, []uint64{40}},
		{"room for some", []int{60, 0}, 10, []uint64{4, 10}},
		{"full bursts", []int{64, 64, 64}, 10, []uint64{0, 10, 10}},
		{"more than a burst", []int{0, 0}, 100, []uint64{64, 100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 2, testSpec())
			from, to := r.dp.Workers[0], r.dp.Workers[1]
			to.Poll(r.now) // gives its port frames
			for _, at := range from.pool.take(tt.handed) {
				from.outbox[1].put(at|60<<40, 0)
			}
			from.outbox[1].publish()
			var got []uint64
			for _, n := range tt.own {
				r.port[1][0].Feed(junk(n), 1)
				if seen := to.Poll(r.now); seen < n {
					t.Errorf("saw %d of %d packets", seen, n)
				}
				got = append(got, to.count.Adopted)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// A worker that hands over more than can be served takes nothing of the others' turns:
// each gets a like share of the rows, whatever the worker receives itself.
func TestHandedFairly(t *testing.T) {
	for _, own := range []int{0, 40, BurstSize} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			r := newRig(t, 4, testSpec())
			to := r.dp.Workers[3]
			to.Poll(r.now) // gives its port frames
			var frames [3][]uint64
			for from := range frames {
				frames[from] = slices.Clone(r.dp.Workers[from].pool.take(250))
			}
			served := func() (n [3]int) {
				for from, r := range to.inbox {
					n[from] = len(frames[from]) - r.len()
				}
				return n
			}
			for from, all := range frames {
				for _, at := range all {
					r.dp.Workers[from].outbox[3].put(at|60<<40, 0)
				}
				r.dp.Workers[from].outbox[3].publish()
			}
			for range 3 {
				r.port[3][0].Feed(make([][]byte, own), 1)
				to.Poll(r.now)
				if n := served(); slices.Max(n[:])-slices.Min(n[:]) > BurstSize {
					t.Fatalf("served of each: %d", n)
				}
			}
			if n := served(); n[0] == 0 || n[0] == len(frames[0]) {
				t.Errorf("served of each: %d, which shows nothing", n)
			}
		})
	}
}

// Frames whose length a hand-off could not tell are refused, not cut.
func TestFrameSizeBound(t *testing.T) {
	for size, ok := range map[int]bool{maxFrameSize: true, 2 * maxFrameSize: false} {
		dp, err := New(Options{Workers: 1, UMEM: make([]byte, BurstSize*size), FrameSize: size, Flows: 16, Unpopulated: true})
		if (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err == nil {
			if err := dp.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

package conntrack

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/packet"
)

// crowd is a table of n established Full-NAT flows and their forward tuples.
func crowd(tb testing.TB, n int, lazy bool) (*Table, *Directory, []packet.Tuple) {
	dir := testDirectory()
	dir.Locals = make([]packet.Addr, n/60000+1)
	for i := range dir.Locals {
		dir.Locals[i] = addr4(0x0a000a00 + uint32(i))
	}
	t, err := New(Options{Flows: n + 64, HalfOpen: n + 64, Lazy: lazy, Secret: *secret(1)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	tus := make([]packet.Tuple, n)
	for i := range tus {
		e := numbered(i)
		tus[i], _ = tuples(&e, dir)
		r := mustInsert(tb, t, &e, dir, 0)
		t.proven(r, t.Entry(r))
	}
	return t, dir, tus
}

// TestNoAllocations: nothing a worker calls per packet or flow allocates.
func TestNoAllocations(tt *testing.T) {
	t, dir, tus := crowd(tt, 1000, true)
	pol := Policy{Timeouts: DefaultTimeouts()}
	var batch Batch
	var pkts [BatchSize]packet.Packet
	out := make([]Ref, 16)
	e := numbered(2000)
	fwd, rev := tuples(&e, dir)
	miss := tus[0]
	miss.SrcPort = 1
	p := packet.Packet{Kind: packet.KindTCP, TCPFlags: packet.ACK, L3: 14, L4: 34, Payload: 54, End: 154}
	syn := packet.Packet{Kind: packet.KindTCP, TCPFlags: packet.SYN, L3: 14, L4: 34, Payload: 58, End: 58}
	every := make([]Ref, t.Len())
	for i := range every {
		every[i] = Ref(i + 1)
	}
	var evicted Entry
	full := newTest(tt, Options{Flows: 1})
	var now uint32
	for _, c := range []struct {
		name string
		f    func()
	}{
		{"find hit", func() {
			for i, c := range findAll(t, &batch, &pkts, tus[:BatchSize], dir) {
				if c == 0 || t.Find(c, batch.Hash[i], &tus[i], dir) != c {
					tt.Error("not found")
				}
			}
		}},
		{"find miss", func() {
			if _, _, ok := t.Lookup(&miss, dir); ok {
				tt.Error("found")
			}
		}},
		{"has tuple", func() { t.Has(t.Hash(rev), rev, dir) }},
		{"insert, track, remove", func() {
			r, st, _ := t.Insert(&e, &fwd, rev, dir, now, &evicted)
			if st != Inserted {
				tt.Error(st)
			}
			t.Track(r, Forward, &syn, 7, now, &pol)
			t.Track(r, Forward, &p, packet.NoScale, now, &pol)
			t.Remove(r)
		}},
		{"insert refused", func() {
			full.Insert(&e, &fwd, rev, dir, now, &evicted)
			full.Insert(&e, &fwd, rev, dir, now, &evicted)
		}},
		{"prefetch", func() {
			t.Prefetch(&fwd)
			t.PrefetchRemoval(every)
		}},
		{"advance", func() {
			now++
			t.Advance(now, out)
		}},
	} {
		if n := testing.AllocsPerRun(200, c.f); n != 0 {
			tt.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	k := expand(secret(1))
	for name, tu := range map[string]packet.Tuple{
		"v4": {Src: addr4(1), Dst: addr4(2), SrcPort: 3, DstPort: 4, Proto: 6},
		"v6": {Src: packet.Addr{Hi: 1, Lo: 1}, Dst: packet.Addr{Hi: 1, Lo: 2}, SrcPort: 3, DstPort: 4, Proto: 6},
	} {
		b.Run(name, func(b *testing.B) {
			var sum uint32
			for b.Loop() {
				tu.SrcPort++
				sum += k.hash(&tu)
			}
			_ = sum
		})
	}
}

// BenchmarkLookup: random flows, in bursts of 64 by stages and one by one.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1 << 16, 1 << 20} {
		t, dir, tus := crowd(b, n, false)
		rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { tus[i], tus[j] = tus[j], tus[i] })
		b.Run(fmt.Sprintf("staged/%d", n), func(b *testing.B) {
			var batch Batch
			var pkts [BatchSize]packet.Packet
			at := 0
			for b.Loop() {
				for _, c := range findAll(t, &batch, &pkts, tus[at:at+BatchSize], dir) {
					if c == 0 {
						b.Fatal("not found")
					}
					t.entries[c.Ref()].Packets[0]++
				}
				at = (at + 64) % n
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/packet")
		})
		b.Run(fmt.Sprintf("single/%d", n), func(b *testing.B) {
			at := 0
			for b.Loop() {
				for i := at; i < at+64; i++ {
					r, _, ok := t.Lookup(&tus[i], dir)
					if !ok {
						b.Fatal("not found")
					}
					t.entries[r].Packets[0]++
				}
				at = (at + 64) % n
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/packet")
		})
		b.Run(fmt.Sprintf("miss/%d", n), func(b *testing.B) {
			var batch Batch
			var pkts [BatchSize]packet.Packet
			var burst [BatchSize]packet.Tuple
			at := 0
			for b.Loop() {
				copy(burst[:], tus[at:at+64])
				for i := range burst {
					burst[i].DstPort = 81
				}
				for _, c := range findAll(t, &batch, &pkts, burst[:], dir) {
					if c != 0 {
						b.Fatal("found")
					}
				}
				at = (at + 64) % n
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/packet")
		})
		if n == 1<<20 {
			b.Log(t.Backing())
		}
	}
}

func BenchmarkTrack(b *testing.B) {
	c := newPeers(b, FullNAT)
	c.run(b, talk)
	p := packet.Packet{Kind: packet.KindTCP, TCPFlags: packet.ACK, L3: 14, L4: 34, Payload: 54, End: 60,
		Seq: c.cISN + 101, Ack: c.sISN + 101, Window: 0x8000}
	for b.Loop() {
		c.now++
		c.t.Track(c.r, Forward, &p, packet.NoScale, c.now, &c.pol)
	}
}

func BenchmarkInsertRemove(b *testing.B) {
	t, dir, _ := crowd(b, 1<<16, false)
	e := numbered(1<<16 + 1)
	dir.Locals = append(dir.Locals, addr4(5))
	fwd, rev := tuples(&e, dir)
	for b.Loop() {
		r, _, _ := t.Insert(&e, &fwd, rev, dir, 0, nil)
		t.Remove(r)
	}
}

// BenchmarkExpire: flows whose time is up in an order that has nothing to do with
// the one they were made in, taken out as a worker does.
func BenchmarkExpire(b *testing.B) {
	const n, ticks = 1 << 19, 160
	t, dir, _ := crowd(b, n, false)
	random := rand.New(rand.NewPCG(1, 2))
	var now uint32
	var due [32]Ref
	flows, took := 0, time.Duration(0)
	for b.Loop() {
		for r := range Ref(n) {
			t.SetExpires(r+1, now+1+random.Uint32N(ticks))
		}
		start := time.Now()
		for end := now + ticks; t.Len() > 0; {
			k := t.Advance(now, due[:])
			t.PrefetchRemoval(due[:k])
			for _, r := range due[:k] {
				t.Remove(r)
			}
			flows += k
			if !t.Behind(now) {
				now = min(now+1, end)
			}
		}
		took += time.Since(start)
		for i := range n {
			e := numbered(i)
			r := mustInsert(b, t, &e, dir, now)
			t.proven(r, t.Entry(r))
		}
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(flows), "ns/flow")
}

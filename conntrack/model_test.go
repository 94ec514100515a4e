package conntrack

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// twin is the table as a fool would write it: every flow by both its tuples.
type twin struct {
	flows map[Ref]Entry
	order []Ref // half-open, oldest first
}

func (tw *twin) find(tu packet.Tuple, dir *Directory) (Ref, Dir, bool) {
	for r, e := range tw.flows {
		fwd, rev := tuples(&e, dir)
		if fwd == tu {
			return r, Forward, true
		}
		if rev != nil && *rev == tu {
			return r, Reply, true
		}
	}
	return 0, 0, false
}

func (tw *twin) remove(r Ref) {
	delete(tw.flows, r)
	tw.order = slices.DeleteFunc(tw.order, func(o Ref) bool { return o == r })
}

// drawFlow is a template from a space so small that tuples collide.
func drawFlow(rt *rapid.T) Entry {
	e := Entry{
		Client:     addr4(0xc6336401 + rapid.Uint32Range(0, 2).Draw(rt, "client")),
		ClientPort: rapid.Uint16Range(1, 3).Draw(rt, "client port"),
		Proto:      packet.ProtoTCP,
		Mode:       rapid.SampledFrom([]Mode{FullNAT, FullNAT, DNAT, DirectReturn, DNATOneWay}).Draw(rt, "mode"),
	}
	switch rapid.IntRange(0, 3).Draw(rt, "family") {
	case 0:
		e.Client, e.Service, e.Backend = packet.Addr{Hi: 1, Lo: e.Client.Lo}, 2, 2
	case 1:
		e.Service, e.Backend, e.Proto = 1, 1, packet.ProtoUDP
	}
	if e.Mode == FullNAT {
		e.LocalPort = rapid.Uint16Range(1, 3).Draw(rt, "local port")
		e.Local = rapid.Uint16Range(0, 1).Draw(rt, "local")
		if e.Service == 2 {
			e.Local = 2
		}
	}
	return e
}

// TestTableTwin runs the table against the twin: large and tiny ones, good
// hashes and equal ones.
func TestTableTwin(tt *testing.T) {
	for _, equal := range []bool{false, true} {
		tt.Run(fmt.Sprintf("equal hashes %v", equal), func(tt *testing.T) {
			rapid.Check(tt, func(rt *rapid.T) {
				flows := rapid.SampledFrom([]int{1, 2, 5, 30, 60}).Draw(rt, "flows")
				t, err := New(Options{Flows: flows, HalfOpen: rapid.IntRange(1, flows).Draw(rt, "half-open"), Lazy: true, Secret: *secret(1)})
				if err != nil {
					rt.Fatal(err)
				}
				defer func() { _ = t.Close() }()
				if equal {
					t.keys = keys{} // every product is zero
				}
				checkAgainstTwin(rt, t)
			})
		})
	}
}

func checkAgainstTwin(rt *rapid.T, t *Table) {
	dir := testDirectory()
	tw := &twin{flows: map[Ref]Entry{}}
	var b Batch
	pick := func(rt *rapid.T) Ref {
		if len(tw.flows) == 0 {
			rt.Skip("no flow")
		}
		return rapid.SampledFrom(slices.Sorted(maps.Keys(tw.flows))).Draw(rt, "flow")
	}
	rt.Repeat(map[string]func(*rapid.T){
		"insert": func(rt *rapid.T) { insertBoth(rt, t, tw, dir) },
		"remove": func(rt *rapid.T) {
			r := pick(rt)
			t.Remove(r)
			tw.remove(r)
		},
		"prove": func(rt *rapid.T) {
			r := pick(rt)
			t.proven(r, t.Entry(r))
			tw.order = slices.DeleteFunc(tw.order, func(o Ref) bool { return o == r })
		},
		"find": func(rt *rapid.T) {
			e := drawFlow(rt)
			fwd, rev := tuples(&e, dir)
			compareFind(rt, t, tw, fwd, dir)
			if rev != nil {
				compareFind(rt, t, tw, *rev, dir)
			}
		},
		"find all": func(rt *rapid.T) { compareFindAll(rt, t, tw, &b, dir) },
		"":         func(rt *rapid.T) { checkTable(rt, t, tw, dir) },
	})
}

func insertBoth(rt *rapid.T, t *Table, tw *twin, dir *Directory) {
	e := drawFlow(rt)
	fwd, rev := tuples(&e, dir)
	var evicted Entry
	before := t.Stats()
	r, st, gone := t.Insert(&e, &fwd, rev, dir, 0, &evicted)
	after := t.Stats()
	_, _, dupFwd := tw.find(fwd, dir)
	dupRev := false
	if rev != nil {
		_, _, dupRev = tw.find(*rev, dir)
	}
	half := halfOpenAtFirst(&e)
	mustGo := !dupFwd && !dupRev && half && len(tw.order) == t.HalfOpenCap()
	if gone != mustGo || after.EvictedHalfOpen-before.EvictedHalfOpen != uint64(b2i(gone)) {
		rt.Fatalf("evicted %v, want %v", gone, mustGo)
	}
	if gone {
		old := tw.flows[tw.order[0]]
		if evicted.Client != old.Client || evicted.LocalPort != old.LocalPort {
			rt.Fatalf("evicted %+v, not the oldest", evicted)
		}
		tw.remove(tw.order[0])
	}
	switch st {
	case Inserted:
		if dupFwd || dupRev || tw.flows[r].Proto != 0 || r == 0 {
			rt.Fatalf("inserted %d, but %v %v", r, dupFwd, dupRev)
		}
		tw.flows[r] = e
		if half {
			tw.order = append(tw.order, r)
		}
		return
	case DuplicateForward:
		if !dupFwd {
			rt.Fatal("no duplicate forward")
		}
	case DuplicateReply:
		if !dupRev {
			rt.Fatal("no duplicate reply")
		}
	case Full:
		if len(tw.flows) != t.Cap() {
			rt.Fatalf("full with %d", len(tw.flows))
		}
	case BucketFull:
		// Only where hashes are made equal is there no place in all of the
		// buckets one may live in.
		if t.keys != (keys{}) && uint32(len(t.buckets)) > t.probe || len(tw.flows)*2 < int(t.probe)*bucketSlots-1-len(tw.flows) {
			rt.Fatalf("bucket full with %d flows", len(tw.flows))
		}
	default:
		rt.Fatalf("status %v", st)
	}
	if r != 0 {
		rt.Fatalf("ref %d with status %v", r, st)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// compareFind looks a tuple up in all ways.
func compareFind(rt *rapid.T, t *Table, tw *twin, tu packet.Tuple, dir *Directory) {
	r, d, ok := t.Lookup(&tu, dir)
	wr, wd, wok := tw.find(tu, dir)
	if r != wr || d != wd || ok != wok || t.Has(t.Hash(&tu), &tu, dir) != wok {
		rt.Fatalf("%+v: %d %d %v, want %d %d %v", tu, r, d, ok, wr, wd, wok)
	}
	stale := Cand(rapid.Uint32().Draw(rt, "stale"))
	for _, c := range []Cand{cand(r, d), cand(r, d^1), 0, stale} {
		if c2 := t.Find(c, t.Hash(&tu), &tu, dir); c2 != cand(r, d) {
			rt.Fatalf("starting with %#x: %#x, want %#x", c, c2, cand(r, d))
		}
	}
}

// checkTable checks every count and every bucket.
func checkTable(rt *rapid.T, t *Table, tw *twin, dir *Directory) {
	if t.Len() != len(tw.flows) || t.HalfOpenLen() != len(tw.order) {
		rt.Fatalf("%d flows, %d half-open, want %d, %d", t.Len(), t.HalfOpenLen(), len(tw.flows), len(tw.order))
	}
	if s := t.Stats(); s.Inserted-s.Removed != uint64(t.Len()) {
		rt.Fatalf("stats %+v", s)
	}
	i := 0
	for r := t.OldestHalfOpen(); r != 0; r = Ref(t.half[r].next) {
		if r != tw.order[i] {
			rt.Fatalf("half-open number %d is %d, want %d", i, r, tw.order[i])
		}
		i++
	}
	items, links := 0, 0
	away := make([]uint32, len(t.buckets))
	for i := range t.buckets {
		for s, v := range t.buckets[i].slots {
			tag := t.buckets[i].tags[s/4] >> (s % 4 * 16) & 0xffff
			if (tag == 0) != (v == 0) {
				rt.Fatalf("bucket %d slot %d: tag %#x, item %#x", i, s, tag, v)
			}
			if v == 0 {
				continue
			}
			items++
			e := t.Entry(Cand(v).Ref())
			h := [2]uint32{e.fwdHash, e.revHash}[Cand(v).Dir()]
			if tagOf(h) != tag {
				rt.Fatalf("bucket %d slot %d: tag %#x, want %#x", i, s, tag, tagOf(h))
			}
			if home := t.home(h); home != uint32(i) {
				away[home]++
			}
		}
	}
	for i, n := range away {
		if b := &t.buckets[i]; b.over != n || (n == 0) != (b.reach == 0) {
			rt.Fatalf("bucket %d: %d away, %d counted, reach %d", i, n, b.over, b.reach)
		}
	}
	for r, e := range tw.flows {
		links += 1 + b2i(!e.Mode.OneWay())
		fwd, rev := tuples(&e, dir)
		if !t.Entry(r).fits(&fwd, rev, dir) {
			rt.Fatalf("flow %d is not what was inserted", r)
		}
	}
	if items != links {
		rt.Fatalf("%d items in buckets, want %d", items, links)
	}
	checkWheel(rt, t)
}

// TestInsertMismatch: a template that disagrees with the tuples or with the
// directory gets in nowhere.
func TestInsertMismatch(tt *testing.T) {
	dir := testDirectory()
	for _, c := range []struct {
		name  string
		spoil func(e *Entry, fwd *packet.Tuple, rev **packet.Tuple)
	}{
		{"client", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Client.Lo++ }},
		{"service", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Service = 1 }},
		{"unknown service", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Service = 1 << 31 }},
		{"unknown backend", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Backend = 0xffffffff }},
		{"unknown local", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Local = 0xffff }},
		{"local port", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.LocalPort++ }},
		{"mode", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Mode = DNAT }},
		{"unknown mode", func(e *Entry, _ *packet.Tuple, _ **packet.Tuple) { e.Mode = 77 }},
		{"protocol", func(_ *Entry, fwd *packet.Tuple, _ **packet.Tuple) { fwd.Proto = packet.ProtoUDP }},
		{"no protocol", func(e *Entry, fwd *packet.Tuple, _ **packet.Tuple) { e.Proto, fwd.Proto = 0, 0 }},
		{"reply protocol", func(_ *Entry, _ *packet.Tuple, rev **packet.Tuple) { (*rev).Proto = packet.ProtoUDP }},
		{"no reply", func(_ *Entry, _ *packet.Tuple, rev **packet.Tuple) { *rev = nil }},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTest(tt, Options{Flows: 10})
			e := numbered(0)
			fwd, rev := tuples(&e, dir)
			c.spoil(&e, &fwd, &rev)
			if r, st, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); st != Mismatch || r != 0 || t.Len() != 0 {
				tt.Errorf("%v, ref %d, %d flows", st, r, t.Len())
			}
		})
	}
}

// TestHairpin: a flow whose two directions have one tuple cannot be told
// apart.
func TestHairpin(tt *testing.T) {
	dir := testDirectory()
	dir.Backends[0] = dir.Services[0]
	t := newTest(tt, Options{Flows: 10})
	e := Entry{Client: dir.Services[0].Addr, ClientPort: 80, Proto: packet.ProtoTCP, Mode: DNAT}
	fwd, rev := tuples(&e, dir)
	if _, st, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); st != DuplicateReply {
		tt.Error(st)
	}
}

// TestShrunkDirectory: ids a directory does not know match nothing.
func TestShrunkDirectory(tt *testing.T) {
	t := newTest(tt, Options{Flows: 10})
	e := numbered(0)
	r := mustInsert(tt, t, &e, testDirectory(), 0)
	fwd, rev := tuples(&e, testDirectory())
	for _, tu := range []*packet.Tuple{&fwd, rev} {
		if _, _, ok := t.Lookup(tu, &Directory{}); ok {
			tt.Error("found by an empty directory")
		}
		if findAll(t, &Batch{}, &[BatchSize]packet.Packet{}, []packet.Tuple{*tu}, &Directory{})[0] != 0 {
			tt.Error("found together by an empty directory")
		}
		if t.Find(cand(r, Reply), t.Hash(tu), tu, &Directory{Locals: testDirectory().Locals}) != 0 {
			tt.Error("found without backends")
		}
	}
}

// TestFillToTheBrim: every one of the flows paid for fits in.
func TestFillToTheBrim(tt *testing.T) {
	const flows = 200_000
	dir := testDirectory()
	dir.Locals = make([]packet.Addr, 1+flows/60000)
	for i := range dir.Locals {
		dir.Locals[i] = addr4(0x0a00010a + uint32(i))
	}
	t := newTest(tt, Options{Flows: flows, HalfOpen: flows})
	for i := range flows {
		e := numbered(i)
		mustInsert(tt, t, &e, dir, 0)
	}
	e := numbered(flows)
	fwd, rev := tuples(&e, dir)
	// Half-open flows make room for each other; once proven, they do not.
	if _, st, gone := t.Insert(&e, &fwd, rev, dir, 0, nil); st != Inserted || !gone {
		tt.Errorf("%v, evicted %v", st, gone)
	}
	for r := t.OldestHalfOpen(); r != 0; r = t.OldestHalfOpen() {
		t.proven(r, t.Entry(r))
	}
	e = numbered(0)
	fwd, rev = tuples(&e, dir)
	if _, st, gone := t.Insert(&e, &fwd, rev, dir, 0, nil); st != Full || gone {
		tt.Errorf("%v, evicted %v", st, gone)
	}
	over := 0
	for i := range t.buckets {
		over += b2i(t.buckets[i].over > 0)
	}
	tt.Logf("%d of %d buckets have items further on", over, len(t.buckets))
	if s := t.Stats(); s.RefusedFull != 1 || s.RefusedBucket != 0 {
		tt.Errorf("%+v", s)
	}
}

// TestBucketFull: 64 items of one hash, no more; and nothing is left behind by
// the flow of which only one direction fitted.
func TestBucketFull(tt *testing.T) {
	dir := testDirectory()
	t := newTest(tt, Options{Flows: 100, HalfOpen: 100})
	t.keys = keys{}
	const places = maxProbe * bucketSlots
	e := Entry{Client: addr4(1), ClientPort: 9, Proto: packet.ProtoTCP, Mode: DirectReturn}
	single := mustInsert(tt, t, &e, dir, 0)
	var refs []Ref
	for i := range places/2 - 1 {
		e := numbered(i)
		refs = append(refs, mustInsert(tt, t, &e, dir, 0))
	}
	e = numbered(places)
	fwd, rev := tuples(&e, dir)
	for _, st := range []Status{BucketFull, BucketFull} {
		if r, got, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); got != st || r != 0 {
			tt.Errorf("%v, want %v", got, st)
		}
		if t.Has(t.Hash(&fwd), &fwd, dir) || t.Has(t.Hash(rev), rev, dir) || t.Len() != places/2 {
			tt.Error("half a flow is left")
		}
	}
	if b := t.buckets[0]; b.over != places-1-bucketSlots || b.reach != maxProbe-1 {
		tt.Errorf("%d away, reach %d", b.over, b.reach)
	}
	t.Remove(refs[10]) // the new flow lands near home while others are far
	mustInsert(tt, t, &e, dir, 0)
	for i := range refs {
		e := numbered(i)
		fwd, rev := tuples(&e, dir)
		if t.Has(t.Hash(&fwd), &fwd, dir) != (i != 10) || t.Has(t.Hash(rev), rev, dir) != (i != 10) {
			tt.Errorf("flow %d lost", i)
		}
	}
	if _, got, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); got != DuplicateForward {
		tt.Error(got)
	}
	e = numbered(places + 1) // no place for either
	e2 := Entry{Client: addr4(1), ClientPort: 10, Proto: packet.ProtoTCP, Mode: DirectReturn}
	mustInsert(tt, t, &e2, dir, 0)
	fwd, rev = tuples(&e, dir)
	if _, got, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); got != BucketFull {
		tt.Error(got)
	}
	t.Remove(single)
	for r := range t.entries {
		t.Remove(Ref(r))
	}
	for i, b := range t.buckets {
		if b != (bucket{}) {
			tt.Errorf("bucket %d: %+v", i, b)
		}
	}
	if s := t.Stats(); s.RefusedBucket != 3 || s.RefusedDuplicate != 1 {
		tt.Errorf("%+v", s)
	}
}

// TestStaleRef: an entry freed under the caller's hands is told apart.
func TestStaleRef(tt *testing.T) {
	dir := testDirectory()
	t := newTest(tt, Options{Flows: 10})
	pol := Policy{Timeouts: DefaultTimeouts()}
	e, other := numbered(0), numbered(1)
	fwd, rev := tuples(&e, dir)
	r := mustInsert(tt, t, &e, dir, 0)
	if !t.Holds(r, Forward, &fwd, dir) || !t.Holds(r, Reply, rev, dir) || t.Holds(r, Reply, &fwd, dir) {
		tt.Error("a live flow is not held")
	}
	t.Remove(r)
	if t.Holds(r, Forward, &fwd, dir) {
		tt.Error("held after Remove")
	}
	p := packet.Packet{Kind: packet.KindFragment}
	if out := t.Track(r, Forward, &p, packet.NoScale, 0, &pol); out != DropNoFlow {
		tt.Error(out)
	}
	t.SetExpires(r, 1)
	if r2 := mustInsert(tt, t, &other, dir, 0); r2 != r || t.Holds(r, Forward, &fwd, dir) {
		tt.Error("the entry's next flow passes for the last one")
	}
	t.PrefetchBuckets(nil)
}

package frag

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

func addr(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

var small = Options{Datagrams: 6, Held: 8, Anybody: Limit{Datagrams: 3, Held: 5}, Server: Limit{Datagrams: 5, Held: 7}, Secret: [32]byte{7}}

func table(t testing.TB, o Options) *Table {
	t.Helper()
	tab, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// gram and twin are the table as one would write it without caring for speed.
type gram struct {
	key              Key
	since            int64
	turn             int // order of entering the old queue
	state            state
	srcPort, dstPort uint16
	newID            uint32
	pieces, held     []Piece
}

type twin struct {
	o     Options
	grams []*gram
	turn  int
	loose map[uint64]Result
	slot  func(packet.Addr) uint16
}

func (w *twin) use(a packet.Addr) (grams, held, ofSource int) {
	for _, g := range w.grams {
		same := w.slot(g.key.Src) == w.slot(a)
		if same {
			grams++
		}
		held += len(g.held)
		if same {
			ofSource += len(g.held)
		}
	}
	return grams, held, ofSource
}

func (w *twin) limit(p Piece) Limit {
	if p.Server {
		return w.o.Server
	}
	return w.o.Anybody
}

// makeRoom forgets whoever began to be mapped or condemned first, a while ago.
func (w *twin) makeRoom(now int64) bool {
	var old *gram
	for _, g := range w.grams {
		if g.state != waiting && (old == nil || g.turn < old.turn) {
			old = g
		}
	}
	if old == nil || now-old.since < Settle {
		return false
	}
	w.leave(old)
	return true
}

func (w *twin) mayHold(a packet.Addr, p Piece) Result {
	_, held, ofSource := w.use(a)
	switch {
	case ofSource >= w.limit(p).Held:
		return SourceLimit
	case held+len(w.loose) >= w.o.Held:
		return HoldLimit
	}
	return Held
}

func (g *gram) place(p Piece) Result {
	from, to := int(p.Offset), int(p.Offset)+int(p.Len)
	for _, q := range g.pieces {
		if q.Offset == p.Offset && q.Len == p.Len && q.More == p.More {
			return Duplicate
		}
	}
	for _, q := range g.pieces {
		a, b := int(q.Offset), int(q.Offset)+int(q.Len)
		if from < b && a < to || !q.More && (to > a || !p.More) || !p.More && b > from {
			return Overlap
		}
	}
	if len(g.pieces) == MaxPieces {
		return Scattered
	}
	return Forward
}

func (g *gram) complete() bool {
	sum, end := 0, -1
	for _, q := range g.pieces {
		sum += int(q.Len)
		if !q.More {
			end = int(q.Offset) + int(q.Len)
		}
	}
	return sum == end
}

func (w *twin) leave(g *gram) {
	for i := range w.grams {
		if w.grams[i] == g {
			w.grams = append(w.grams[:i:i], w.grams[i+1:]...)
			return
		}
	}
}

func (w *twin) add(k Key, p Piece, now int64) (Answer, []uint64) {
	var g *gram
	opened := false
	for _, x := range w.grams {
		if x.key == k {
			g = x
		}
	}
	if g == nil {
		opened = true
		if n, _, _ := w.use(k.Src); n >= w.limit(p).Datagrams {
			return Answer{Result: SourceLimit}, nil
		}
		if r := w.mayHold(k.Src, p); p.Offset != 0 && r != Held {
			return Answer{Result: r}, nil
		}
		if len(w.grams) >= w.o.Datagrams && !w.makeRoom(now) {
			return Answer{Result: TableFull}, nil
		}
		g = &gram{key: k, since: now, newID: p.NewID}
		w.grams = append(w.grams, g)
	}
	if g.state == condemned {
		return Answer{Result: Condemned}, nil
	}
	if r := g.place(p); r != Forward {
		if r != Duplicate {
			for _, q := range g.held {
				w.loose[q.Frame] = r
			}
			g.held, g.state, g.since = nil, condemned, now
			w.turn++
			g.turn = w.turn
		}
		return Answer{Result: r}, nil
	}
	if g.state == waiting && p.Offset != 0 {
		r := w.mayHold(k.Src, p)
		if r == Held {
			g.pieces, g.held = append(g.pieces, p), append(g.held, p)
		}
		return Answer{Result: r, Opened: opened}, nil
	}
	g.pieces = append(g.pieces, p)
	if p.Offset == 0 {
		g.state, g.srcPort, g.dstPort, g.since = mapped, p.SrcPort, p.DstPort, now
		w.turn++
		g.turn = w.turn
	}
	var out []uint64
	for _, q := range g.held {
		out = append(out, q.Frame)
	}
	g.held = nil
	if g.complete() {
		w.leave(g)
	}
	return Answer{Result: Forward, SrcPort: g.srcPort, DstPort: g.dstPort, NewID: g.newID, Opened: opened}, out
}

func (w *twin) expire(now int64) {
	for _, g := range append([]*gram(nil), w.grams...) {
		if life := map[bool]int64{true: Wait, false: Life}[g.state == waiting]; now-g.since >= life {
			for _, q := range g.held {
				w.loose[q.Frame] = Expired
			}
			w.leave(g)
		}
	}
}

func drain(t *Table, r Ref) (out []uint64) {
	for r != 0 {
		f, ok := t.Next(r)
		if !ok {
			break
		}
		out = append(out, f)
	}
	return out
}

func TestTwin(t *testing.T) {
	srcs := []packet.Addr{addr("198.51.100.7"), addr("198.51.100.8"), addr("2001:db8:c::7"), addr("2001:db8:c::8"), addr("198.51.100.9")}
	rapid.Check(t, func(t *rapid.T) {
		tab, err := New(small)
		if err != nil {
			t.Fatal(err)
		}
		w := &twin{o: small, loose: map[uint64]Result{}, slot: tab.source}
		now, frame := int64(5), uint64(0)
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			switch rapid.IntRange(0, 12).Draw(t, "do") {
			case 0:
				now += rapid.SampledFrom([]int64{1, Settle, Wait / 2, Wait, Life / 2, Life}).Draw(t, "pass")
				w.expire(now)
				tab.Expire(now, 100)
			case 1:
				got := map[uint64]Result{}
				for {
					f, why, ok := tab.Loose()
					if !ok {
						break
					}
					got[f] = why
				}
				if diff := cmp.Diff(w.loose, got); diff != "" {
					t.Fatalf("loose (-want +got)\n%s", diff)
				}
				clear(w.loose)
			default:
				frame++
				src := rapid.SampledFrom(srcs).Draw(t, "src")
				k := Key{Src: src, Dst: addr("192.0.2.10"), ID: uint32(rapid.IntRange(1, 3).Draw(t, "id")), Proto: 17}
				p := Piece{
					Offset: uint16(rapid.IntRange(0, 4).Draw(t, "offset")) * 400, Len: rapid.SampledFrom([]uint16{400, 400, 400, 800, 200}).Draw(t, "len"),
					More: rapid.IntRange(0, 3).Draw(t, "more") > 0, Server: src == srcs[1], NewID: uint32(frame), Frame: frame,
				}
				if p.Offset == 0 {
					p.SrcPort, p.DstPort = uint16(frame)+1000, 53
				}
				got := tab.Add(&k, &p, now)
				want, out := w.add(k, p, now)
				if got.Waiting != 0 {
					if diff := cmp.Diff(out, drain(tab, got.Waiting)); diff != "" {
						t.Fatalf("waited (-want +got)\n%s", diff)
					}
				} else if len(out) > 0 {
					t.Fatal("frames that waited were not named")
				}
				got.Waiting = 0
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("%+v %+v (-want +got)\n%s", k, p, diff)
				}
			}
			_, held, _ := w.use(srcs[0])
			if owned := tab.Frames(nil); len(owned) != tab.Holding() {
				t.Fatalf("owns %v, %d frames", owned, tab.Holding())
			}
			if tab.Len() != len(w.grams) || tab.Holding() != held+len(w.loose) {
				t.Fatalf("%d datagrams, %d frames; want %d, %d", tab.Len(), tab.Holding(), len(w.grams), held+len(w.loose))
			}
		}
	})
}

// TestFloodIsBounded: whatever comes, the limits hold, and two seconds later
// others are served again.
func TestFloodIsBounded(t *testing.T) {
	o := Options{Datagrams: 64, Held: 27, Anybody: Limit{8, 8}, Server: Limit{8, 8}, Secret: [32]byte{1}}
	tab := table(t, o)
	var counts [NumResults]int
	a := addr("10.0.0.1")
	for i := range 100_000 {
		k := Key{Src: packet.Addr{Lo: a.Lo + uint64(i)}, Dst: addr("192.0.2.10"), ID: uint32(i), Proto: 17}
		counts[tab.Add(&k, &Piece{Offset: 1480, Len: 1480, More: true, Frame: uint64(i)}, 1).Result]++
		if tab.Holding() > o.Held || tab.Len() > o.Datagrams {
			t.Fatalf("%d frames, %d datagrams", tab.Holding(), tab.Len())
		}
	}
	// A datagram without a frame is not kept.
	if counts[Held] != 27 || tab.Len() != 27 {
		t.Errorf("%v, %d datagrams", counts, tab.Len())
	}
	tab.Expire(1+Wait, 1000)
	loose := 0
	for _, why, ok := tab.Loose(); ok; _, why, ok = tab.Loose() {
		if loose++; why != Expired {
			t.Errorf("loose for %v", why)
		}
	}
	if loose != 27 || tab.Len() != 0 || tab.Holding() != 0 || tab.shares != [sources]share{} {
		t.Errorf("%d loose, %d datagrams, %d frames", loose, tab.Len(), tab.Holding())
	}
}

// TestBeginningsMakeRoom: first fragments to which nothing follows, from
// everywhere, keep nobody out for longer than Settle.
func TestBeginningsMakeRoom(t *testing.T) {
	tab := table(t, Options{Datagrams: 64, Held: 8, Anybody: Limit{8, 8}, Server: Limit{8, 8}})
	a := addr("10.0.0.1")
	add := func(i int, now int64) Result {
		k := Key{Src: packet.Addr{Lo: a.Lo + uint64(i)}, Dst: addr("192.0.2.10"), ID: uint32(i), Proto: 17}
		return tab.Add(&k, &Piece{Len: 1480, More: true}, now).Result
	}
	for i := range 65 {
		want := Forward
		if i == 64 {
			want = TableFull
		}
		if got := add(i, int64(i)); got != want {
			t.Fatalf("datagram %d: %v", i, got)
		}
	}
	if got := add(100, Settle); got != Forward || tab.Len() != 64 {
		t.Errorf("%v, %d datagrams", got, tab.Len())
	}
	if got := add(101, Settle); got != TableFull {
		t.Errorf("%v: the next oldest is younger than Settle", got)
	}
}

// TestSourceOfIPv6 is its /64, whoever has one address of which has all.
func TestSourceOfIPv6(t *testing.T) {
	tab := table(t, small)
	var got []Result
	for i, a := range []string{"2001:db8:c::1", "2001:db8:c::2", "2001:db8:c:0:ffff::3", "2001:db8:c::4", "2001:db8:d::1"} {
		k := Key{Src: addr(a), Dst: addr("2001:db8::10"), ID: uint32(i), Proto: 17}
		got = append(got, tab.Add(&k, &Piece{Len: 400, More: true}, 1).Result)
	}
	if diff := cmp.Diff([]Result{Forward, Forward, Forward, SourceLimit, Forward}, got); diff != "" {
		t.Error(diff)
	}
}

// TestScattered: a datagram in more pieces than MaxPieces is nobody's.
func TestScattered(t *testing.T) {
	tab := table(t, small)
	k := Key{Src: addr("198.51.100.7"), Dst: addr("192.0.2.10"), ID: 1, Proto: 17}
	for i := range MaxPieces {
		if got := tab.Add(&k, &Piece{Offset: uint16(i * 8), Len: 8, More: true}, 1); got.Result != Forward {
			t.Fatalf("piece %d: %v", i, got.Result)
		}
	}
	var got []Result
	for i := range 2 {
		got = append(got, tab.Add(&k, &Piece{Offset: uint16((MaxPieces + i) * 8), Len: 8, More: true}, 1).Result)
	}
	if diff := cmp.Diff([]Result{Scattered, Condemned}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{Datagrams: 1, Held: 1, Anybody: Limit{1, 1}, Server: Limit{1, 0}}); err == nil {
		t.Error("a limit of 0 was taken")
	}
}

func TestNoAllocation(t *testing.T) {
	tab := table(t, Options{Datagrams: 256, Held: 64, Anybody: Limit{256, 64}, Server: Limit{256, 64}})
	k := Key{Src: addr("198.51.100.7"), Dst: addr("192.0.2.10"), Proto: 17}
	now := int64(1)
	if n := testing.AllocsPerRun(2000, func() {
		k.ID++
		now += Wait / 8
		tab.Add(&k, &Piece{Offset: 1480, Len: 1480, More: true, Frame: 1}, now)
		if k.ID%3 != 0 {
			a := tab.Add(&k, &Piece{Len: 1480, More: true}, now)
			for _, ok := tab.Next(a.Waiting); ok; _, ok = tab.Next(a.Waiting) {
			}
			tab.Add(&k, &Piece{Offset: 2960, Len: 100}, now)
		}
		tab.Expire(now, 8)
		for _, _, ok := tab.Loose(); ok; _, _, ok = tab.Loose() {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if tab.Len() > 256 {
		t.Error(tab.Len())
	}
}

func BenchmarkAdd(b *testing.B) {
	tab := table(b, Options{Datagrams: 4096, Held: 64, Anybody: Limit{4096, 64}, Server: Limit{4096, 64}})
	k := Key{Src: addr("198.51.100.7"), Dst: addr("192.0.2.10"), Proto: 17}
	for i := range b.N {
		k.ID = uint32(i / 6)
		tab.Add(&k, &Piece{Offset: uint16(i%6) * 1480, Len: 1480, More: i%6 < 5}, 1)
	}
}

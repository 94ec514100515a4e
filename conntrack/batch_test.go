package conntrack

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// findAll looks tuples up together, as a burst whose packets lie in reverse order.
func findAll(t *Table, b *Batch, pkts *[BatchSize]packet.Packet, tus []packet.Tuple, dir *Directory) []Cand {
	for k := range tus {
		i := len(tus) - 1 - k
		pkts[i].Tuple = tus[k]
		b.Packet[k], b.Hash[k] = uint8(i), t.Hash(&tus[k])
	}
	t.PrefetchBuckets(b.Hash[:len(tus)])
	t.Candidates(b, len(tus))
	for k := range tus {
		b.Found[k] = t.Find(b.Found[k], b.Hash[k], &pkts[b.Packet[k]].Tuple, dir)
	}
	return b.Found[:len(tus)]
}

// drawBatch is some tuples, of flows there may be and of others there are not.
func drawBatch(rt *rapid.T, dir *Directory) []packet.Tuple {
	var tus []packet.Tuple
	for range rapid.IntRange(0, 20).Draw(rt, "flows looked up") {
		e := drawFlow(rt)
		fwd, rev := tuples(&e, dir)
		if tus = append(tus, fwd); rev != nil {
			tus = append(tus, *rev)
		}
	}
	return tus
}

// compareFindAll looks tuples up together, over the rest of what was found before.
func compareFindAll(rt *rapid.T, t *Table, tw *twin, b *Batch, dir *Directory) {
	tus := drawBatch(rt, dir)
	var pkts [BatchSize]packet.Packet
	var want []Cand
	for _, tu := range tus {
		r, d, _ := tw.find(tu, dir)
		want = append(want, cand(r, d))
	}
	got := append([]Cand(nil), findAll(t, b, &pkts, tus, dir)...)
	if d := cmp.Diff(want, got); d != "" {
		rt.Fatal(d)
	}
}

// scan is candidates as a fool would write it.
func scan(t *Table, hashes []uint32) (found []Cand, byDir [2][]uint8) {
	for k, h := range hashes {
		home, c := int(t.home(h)), Cand(0)
		for d := int(t.buckets[home].reach); d >= 0; d-- {
			b := &t.buckets[(home+d)%len(t.buckets)]
			for i := bucketSlots - 1; i >= 0; i-- {
				if uint16(b.tags[i/4]>>(i%4*16)) == uint16(tagOf(h)) {
					c = Cand(b.slots[i])
				}
			}
		}
		found = append(found, c)
		byDir[c.Dir()] = append(byDir[c.Dir()], uint8(k))
	}
	return found, byDir
}

// TestCandidatesTwin runs candidates over buckets full of few tags. That it finds
// something else would only be slow: Find searches then.
func TestCandidatesTwin(tt *testing.T) {
	t := newTest(tt, Options{Flows: 30})
	tag := rapid.SampledFrom([]uint16{1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff})
	rapid.Check(tt, func(rt *rapid.T) {
		for i := range t.buckets {
			t.buckets[i] = bucket{over: rapid.Uint32().Draw(rt, "over"), reach: rapid.SampledFrom([]uint32{0, 0, 1, 2, 3, 20}).Draw(rt, "reach")}
			for range rapid.IntRange(0, bucketSlots).Draw(rt, "items") {
				t.buckets[i].put(uint64(tag.Draw(rt, "tag")), Cand(rapid.Uint32Range(1, 60).Draw(rt, "item")))
			}
			if n := rapid.IntRange(0, bucketSlots).Draw(rt, "hole"); n < bucketSlots {
				b := &t.buckets[i]
				b.take(b.tags[n/4]>>(n%4*16)&0xffff, Cand(b.slots[n]))
			}
		}
		var b Batch
		for i := range b.Hash {
			b.Hash[i], b.Found[i] = rapid.Uint32().Draw(rt, "bad hash"), ^Cand(0)
		}
		hashes := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) uint32 {
			low := uint32(tag.Draw(rt, "low"))
			high := rapid.OneOf(rapid.SampledFrom([]uint32{0xefff, 0xffff}), rapid.Uint32()).Draw(rt, "high") // at home in the last buckets, or anywhere
			return high<<16 | rapid.SampledFrom([]uint32{low, low, low, 0}).Draw(rt, "tag")
		}), 0, BatchSize).Draw(rt, "hashes")
		copy(b.Hash[:], hashes)
		replies := candidates(t, &b, uint64(len(hashes)))
		found, byDir := scan(t, hashes)
		if d := cmp.Diff(found, append([]Cand(nil), b.Found[:len(hashes)]...)); d != "" {
			rt.Fatal(d)
		}
		if int(replies) != len(byDir[Reply]) {
			rt.Fatalf("%d replies, want %d", replies, len(byDir[Reply]))
		}
		for d, want := range byDir {
			if d := cmp.Diff(want, append([]uint8(nil), b.order[d][:len(want)]...)); d != "" {
				rt.Fatal(d)
			}
		}
		for _, c := range b.Found[len(hashes):] {
			if c != ^Cand(0) {
				rt.Fatal("a row beyond was written")
			}
		}
	})
	for i := range t.buckets { // what Close's audit would not understand
		t.buckets[i] = bucket{}
	}
}

// TestCandidatesBounds: a batch is never longer than its arrays, and may be empty.
func TestCandidatesBounds(tt *testing.T) {
	t, dir, tus := crowd(tt, BatchSize, true)
	var b Batch
	var pkts [BatchSize]packet.Packet
	findAll(t, &b, &pkts, tus, dir)
	t.Candidates(&b, BatchSize+1)
	for k, c := range b.Found {
		if c == 0 || c.Dir() != Forward {
			tt.Errorf("row %d: %#x", k, c)
		}
	}
	was := b.Found
	t.Candidates(&b, 0)
	if b.Found != was {
		tt.Error("an empty batch found something")
	}
}

// TestFreeEntry: an entry that is no flow, all zero, is not taken for one whose
// ids and ports are zero.
func TestFreeEntry(tt *testing.T) {
	t, dir := newTest(tt, Options{Flows: 4}), testDirectory()
	for _, proto := range []uint8{0, packet.ProtoTCP} {
		dir.Backends[0].Proto = proto
		b, l := dir.Backends[0], dir.Locals[0]
		tu := packet.Tuple{Src: b.Addr, SrcPort: b.Port, Dst: l, Proto: proto}
		if c := t.Find(cand(1, Reply), t.Hash(&tu), &tu, dir); c != 0 {
			tt.Errorf("protocol %d: found %#x", proto, c)
		}
	}
}

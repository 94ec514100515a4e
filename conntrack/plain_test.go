package conntrack

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// TestHashes: the hash of a header as it is in a packet is that of its tuple, by the keys
// that others are given.
func TestHashes(t *testing.T) {
	table := newTest(t, Options{Flows: 10, HalfOpen: 10})
	if *table.Keys() != table.keys {
		t.Error("other keys")
	}
	if b := table.Buckets(); len(b) != len(table.buckets) || unsafe.Pointer(&b[1]) != unsafe.Pointer(&table.buckets[1]) {
		t.Error("other buckets")
	}
	rapid.Check(t, func(rt *rapid.T) {
		tu := packet.Tuple{
			SrcPort: rapid.Uint16().Draw(rt, "source port"), DstPort: rapid.Uint16().Draw(rt, "port"),
			Proto: rapid.SampledFrom([]uint8{packet.ProtoTCP, packet.ProtoUDP}).Draw(rt, "protocol"),
		}
		rest := uint64(tu.SrcPort) | uint64(tu.DstPort)<<16 | uint64(tu.Proto)<<32
		src, dst := rapid.Uint32().Draw(rt, "source"), rapid.Uint32().Draw(rt, "destination")
		tu.Src, tu.Dst = addr4(src), addr4(dst)
		if got, want := table.Hash4(uint64(src)<<32|uint64(dst), rest), table.Hash(&tu); got != want {
			rt.Fatalf("%+v: %#x, want %#x", tu, got, want)
		}
		var addrs [32]byte
		for i := 0; i < len(addrs); i += 8 {
			binary.BigEndian.PutUint64(addrs[i:], rapid.Uint64Range(1<<60, 1<<64-1).Draw(rt, "address"))
		}
		tu.Src, tu.Dst = packet.Addr16(addrs[:]), packet.Addr16(addrs[16:])
		if got, want := table.Hash6(&addrs, rest), table.Hash(&tu); got != want {
			rt.Fatalf("%+v: %#x, want %#x", tu, got, want)
		}
	})
}

// TestSteady: the flow is steady from the handshake's end until either side ends it, and
// while nobody claims that the server has begun anew.
func TestSteady(tt *testing.T) {
	c := newPeers(tt, FullNAT)
	e := c.t.Entry(c.r)
	for i, s := range []struct {
		d        Dir
		flags    uint8
		seq, ack uint32
		steady   bool
	}{
		{Forward, fSYN, 0, 0, false},
		{Reply, fSYNACK, 0, 1, false},
		{Forward, fACK, 1, 1, true},
		{Reply, fACK, 1, 1, true},
		{Reply, fSYNACK, 5000, 1, false}, // another number
	} {
		c.send(s.d, s.flags, s.seq, s.ack, 0)
		if e.Steady() != s.steady {
			tt.Errorf("segment %d: steady: %v", i, !s.steady)
		}
	}
}

// TestPlainOneWay: what PlainOneWay permits, Track does as Extend does, and no more.
func TestPlainOneWay(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		c := newPeers(tt, DirectReturn)
		c.send(Forward, fSYN, 0, 0, 0)
		c.send(Forward, fACK, 1, 1, 0)
		e := c.t.Entry(c.r)
		near := []uint32{0, 1, 1000, blindSlack - 1, blindSlack, blindSlack + 1, 1 << 30}
		seq := 1 + rapid.SampledFrom(near).Draw(rt, "off")*rapid.SampledFrom([]uint32{1, 1<<32 - 1}).Draw(rt, "sign")
		n := rapid.Uint16Range(0, 9000).Draw(rt, "length")
		want := *e
		plain := e.PlainOneWay(c.cISN + seq)
		if plain != (int32(seq-1) <= blindSlack && int32(seq-1) >= -blindSlack) {
			rt.Fatalf("%d off: plain: %v", int32(seq-1), plain)
		}
		c.send(Forward, fACK, seq, 1, n)
		if !plain {
			return
		}
		want.Win[Forward].Extend(c.cISN + seq + uint32(n))
		want.Packets, want.Bytes = e.Packets, e.Bytes
		if want != *e {
			rt.Fatalf("%+v, by Track %+v", want, *e)
		}
		if !e.HasSent(c.cISN + seq) {
			rt.Fatalf("%d off: has not been sent", int32(seq-1))
		}
	})
}

// TestAdopt: a flow that another table takes in is there as it was here.
func TestAdopt(tt *testing.T) {
	for _, mode := range []Mode{FullNAT, DNAT, DirectReturn} {
		c := newPeers(tt, mode)
		c.send(Forward, fSYN, 0, 0, 0)
		c.send(Reply, fSYNACK, 0, 1, 0)
		c.send(Forward, fACK, 1, 1, 100)
		e, dir := c.t.Entry(c.r), testDirectory()
		c.t.SetClock(c.r, 7)
		other := newTest(tt, Options{Flows: 10, HalfOpen: 10})
		r := other.Adopt(e, c.t.Clock(c.r), dir, c.now)
		if r == 0 {
			tt.Fatalf("mode %d: refused", mode)
		}
		fwd, rev := e.Tuples(dir)
		if got, d, ok := other.Lookup(&fwd, dir); !ok || got != r || d != Forward {
			tt.Errorf("mode %d: the client's tuple leads to %d, %d", mode, got, d)
		}
		if got, d, ok := other.Lookup(&rev, dir); ok == mode.OneWay() || ok && (got != r || d != Reply) {
			tt.Errorf("mode %d: the server's tuple leads to %d, %d", mode, got, d)
		}
		got, want := other.Entries()[r], *e
		for _, e := range []*Entry{&got, &want} { // where it is linked is the table's
			e.wheelNext, e.wheelPrev, e.wheelSlot = 0, 0, 0
		}
		if got.fwdHash = want.fwdHash; got.Hash() != want.Hash() {
			tt.Error("another hash")
		}
		got.revHash = want.revHash
		if d := cmp.Diff(want, got, cmp.AllowUnexported(Entry{})); d != "" || other.Clock(r) != 7 {
			tt.Errorf("mode %d, clock %d (-was +is):\n%s", mode, other.Clock(r), d)
		}
		if e.Backend = uint32(len(dir.Backends)); other.Adopt(e, 0, dir, c.now) != 0 {
			tt.Errorf("mode %d: a flow of a backend that is not", mode)
		}
	}
}

package nat

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestSplitAgain: an IPv4 datagram cut, and its pieces cut again, is whole when put
// together; nothing but lengths, offsets and checksums differs.
func TestSplitAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		s := drawShape64(t, false, udp)
		s.shape = drawFlow(t, false, udp).fromClient(s.shape)
		s.payload, s.frag, s.pad = rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "data"), 0, nil
		frame := s.frame64(t)
		was := slices.Clone(frame)
		p := parse(t, frame)
		mtus := [2]int{rapid.IntRange(128, 1500).Draw(t, "mtu"), rapid.IntRange(128, 1500).Draw(t, "second mtu")}
		link := frame[:p.L3]
		var all [][]byte
		for _, b := range split(t, frame, &p, mtus[0], packet.Fragment{}) {
			b = slices.Concat(link, b)
			q := parse(t, b)
			all = append(all, split(t, b, &q, mtus[1], packet.Fragment{ID: 77, Offset: 8, More: true})...)
		}
		got, id := joined(t, all, min(mtus[0], mtus[1]))
		if d := cmp.Diff(s.whole(t), got); d != "" || id != uint32(s.id) || !slices.Equal(was, frame) {
			t.Fatalf("id %d, want %d, or the packet itself has changed (-want +got)\n%s", id, s.id, d)
		}
	})
}

// TestSplitOptions: of IPv4 options all fragments carry those with the copied flag,
// the first one the others too.
func TestSplitOptions(t *testing.T) {
	router, security := []byte{148, 4, 0, 0}, []byte{130, 4, 7, 7} // copied
	record, stamp := []byte{7, 7, 4, 0, 0, 0, 0}, []byte{68, 5, 5, 0, 9}
	nops := func(n int) []byte { return bytesOf(1, n) }
	for _, c := range []struct {
		name          string
		options, want []byte
	}{
		{"copied", slices.Concat(router, security), slices.Concat(router, security)},
		{"not copied", slices.Concat(record, nops(1)), nops(8)},
		{"both", slices.Concat(record, router, stamp), slices.Concat(nops(7), router, nops(5))},
		{"behind the end", slices.Concat(router, []byte{0, 7, 7, 7}), slices.Concat(router, []byte{0, 7, 7, 7})},
		{"broken", []byte{7, 1, 3, 3}, []byte{7, 1, 3, 3}},
	} {
		f := flow4(conntrack.FullNAT)
		s := f.fromClient(shape{ttl: 9, udp: true, payload: bytesOf(3, 300)})
		s.ipOpts = c.options
		frame := s.frame()
		p := packet.Packet{L3: 14, L4: uint16(14 + 20 + len(c.options)), End: uint16(len(frame))}
		for k, b := range split(t, frame, &p, 140, packet.Fragment{}) {
			want := c.want
			if k == 0 {
				want = c.options
			}
			if d := cmp.Diff(want, b[20:int(b[0]&15)*4]); d != "" || slowSum(b[:20+len(want)]) != 0xffff {
				t.Errorf("%s, piece %d (-want +got)\n%s", c.name, k, d)
			}
		}
	}
}

// TestSplitRefuses: no room for data, nothing to cut, a packet that is none.
func TestSplitRefuses(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	s := f.fromClient(shape{ttl: 9, udp: true, payload: bytesOf(3, 300)})
	frame := s.frame()
	p := parse(t, frame)
	six, beyond := p, slices.Clone(frame)
	six.V6 = true
	binary.BigEndian.PutUint16(beyond[14+packet.IPv4Frag:], packet.IPv4OffsetMask)
	short, none := p, p
	short.L4, none.End = p.L3+19, p.L4
	for name, c := range map[string]struct {
		frame []byte
		p     *packet.Packet
		mtu   int
	}{
		"MTU of 27": {frame, &p, 27}, "MTU of -1": {frame, &p, -1}, "other family": {frame, &six, 1500}, "no header": {frame, &short, 1500},
		"no data": {frame, &none, 1500}, "cut": {frame[:99], &p, 1500}, "beyond 65535": {beyond, &p, 1500},
	} {
		if _, n := NewSplit(c.frame, c.p, c.mtu, packet.Fragment{}); n != 0 {
			t.Errorf("%s: %d pieces", name, n)
		}
	}
	if _, n := NewSplit(frame, &p, 28, packet.Fragment{}); n != 39 {
		t.Errorf("MTU of 28: %d pieces", n)
	}
}

// TestSplitDamage: a wrong header checksum does not become right.
func TestSplitDamage(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	s := f.fromClient(shape{ttl: 9, udp: true, payload: bytesOf(3, 300)})
	frame := s.frame()
	frame[14+packet.IPv4TOS] ^= 4
	p := parse(t, frame)
	for _, b := range split(t, frame, &p, 140, packet.Fragment{}) {
		if slowSum(b[:20]) == 0xffff {
			t.Errorf("checksum of % x is right", b[:20])
		}
	}
}

// FuzzSplit cuts any packet of TCP or UDP, translated if it is IPv6, and any
// fragment. Nothing panics, all pieces can be parsed and fit, and together they
// carry what the packet carried.
func FuzzSplit(f *testing.F) {
	g := flow64()
	s := shape64{shape: g.fromServer(shape{ttl: 9, udp: true, payload: bytesOf(7, 400), ipOpts: []byte{7, 4, 4, 0}})}
	f.Add(s.frame64(f), 100, uint32(1))
	for _, b := range append(s.fragments(f, 9, 304, false), s.fragments(f, 9, 8, false)[2]) {
		f.Add(b, 1280, uint32(0xffffffff))
	}
	s.shape = g.fromClient(shape{ttl: 9, flags: packet.ACK, payload: bytesOf(7, 400)})
	for _, b := range s.fragments(f, 9, 304, true) {
		f.Add(b, 68, uint32(2))
	}
	f.Fuzz(func(t *testing.T, frame []byte, mtu int, id uint32) {
		var p packet.Packet
		if len(frame) > 1600 || packet.Parse(slices.Clone(frame), &p) != packet.ErrNone {
			return
		}
		from := packet.Fragment{}
		if p.Kind == packet.KindFragment {
			from = p.Fragment(frame)
			if from.Offset == 0 && (p.Proto != packet.ProtoTCP && p.Proto != packet.ProtoUDP || p.FirstFragment(frame) != packet.ErrNone) {
				return
			}
		} else if p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
			return
		}
		from.ID = id
		fl, chunk, off, n, ok := flowFor64(&p, 1), inChunk(frame, headroom), headroom, len(frame), true
		switch {
		case from.Offset != 0 && p.V6:
			off, n, ok = Readdress64(chunk, off, n, &p, &fl.e, conntrack.Forward, &fl.dir, uint16(id))
		case from.Offset != 0 && id&1 != 0:
			off, n, ok = Readdress64(chunk, off, n, &p, &fl.e, conntrack.Reply, &fl.dir, uint16(id))
		case p.V6:
			off, n, ok = Forward64(chunk, off, n, &p, &fl.e, &fl.dir, uint16(id))
		case from.Offset == 0 && id&1 != 0:
			off, n, ok = Reply64(chunk, off, n, &p, &fl.e, &fl.dir)
		}
		if !ok {
			t.Fatal("refused")
		}
		out := chunk[off : off+n]
		s, pieces := NewSplit(out, &p, mtu, from)
		var data []byte
		for k := range pieces {
			b := make([]byte, min(mtu, len(out)+8))
			b = b[:s.Put(b, out, k)]
			var q packet.Packet
			if err := packet.Parse(slices.Concat(ether(!p.V6, false), b), &q); err != packet.ErrNone && err != packet.ErrTinyFragment || len(b) > mtu {
				t.Fatalf("piece %d: %v, %d bytes, MTU %d: % x", k, err, len(b), mtu, b)
			}
			data = append(data, b[q.L4-14:]...)
		}
		if pieces > 0 && !bytes.Equal(data, out[p.L4:p.End]) {
			t.Fatalf("% x, in pieces % x", out, data)
		}
	})
}

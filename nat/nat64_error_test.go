package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// about64 is "time exceeded" from a router about a packet of flow f.
func about64(f *flow, d conntrack.Dir) error64 {
	if d == conntrack.Reply {
		return error64{shape64: shape64{shape: shape{src: addr("10.9.9.9"), dst: f.dir.Locals[1], ttl: 9}}, kind: 11}
	}
	return error64{shape64: shape64{shape: shape{src: addr("2001:db8:77::1"), dst: f.dir.Services[1].Addr, ttl: 9}}, kind: 3}
}

// expected64 is what about64 becomes.
func expected64(f *flow, d conntrack.Dir) error64 {
	if d == conntrack.Reply {
		return error64{shape64: shape64{shape: shape{src: f.dir.Services[1].Addr, dst: f.e.Client, ttl: 8}}, kind: 3}
	}
	return error64{shape64: shape64{shape: shape{src: f.dir.Locals[1], dst: f.dir.Backends[2].Addr, ttl: 8}, id: 1}, kind: 11}
}

// TestError64Extensions: RFC 4884 extensions move along, and the length attribute
// counts in the other unit, or they are cut off.
func TestError64Extensions(t *testing.T) {
	mpls := unhex(t, "2000 0000 0008 0101 0001 61ff")
	mpls = append(mpls, bytesOf(7, 2)...) // an odd number of words, for the alignment
	for _, c := range []struct {
		name    string
		dir     conntrack.Dir
		kind    uint8 // of the error, 0: time exceeded
		code    uint8
		data    int    // bytes of TCP data in the embedded packet
		ext     []byte // what follows
		tail    int    // bytes of the chunk behind the frame
		want    int    // length attribute expected, 0: no extensions
		padding int    // expected before them
	}{
		{name: "to IPv6", dir: 1, data: 100, ext: mpls, tail: 100, want: 20},
		{name: "to IPv6, padded", dir: 1, data: 104, ext: mpls, tail: 100, want: 21, padding: 4},
		{name: "to IPv6, short packet", dir: 1, ext: mpls, tail: 100, want: 19, padding: 4},
		{name: "to IPv6, no space for padding", dir: 1, ext: mpls, tail: 3},
		{name: "to IPv6, just space for it", dir: 1, ext: mpls, tail: 4, want: 19, padding: 4},
		{name: "to IPv6, all of 1280 bytes", dir: 1, data: 980, ext: make2(192), tail: 100, want: 130},
		{name: "to IPv6, too long", dir: 1, data: 980, ext: make2(196), tail: 100},
		{name: "to IPv6, port unreachable", dir: 1, kind: 3, code: 3, data: 100, ext: mpls, tail: 100, want: 20},
		{name: "to IPv6, fragmentation needed", dir: 1, kind: 3, code: 4, data: 100, ext: mpls, tail: 100},
		{name: "to IPv6, protocol unreachable", dir: 1, kind: 3, code: 2, data: 100, ext: mpls, tail: 100},
		{name: "to IPv6, parameter problem", dir: 1, kind: 12, data: 100, ext: mpls, tail: 100},
		{name: "to IPv4", dir: 0, data: 140, ext: mpls, tail: 100, want: 45},
		{name: "to IPv4, short packet", dir: 0, ext: mpls, tail: 100, want: 32, padding: 20},
		{name: "to IPv4, no space for padding", dir: 0, ext: mpls, tail: 19},
		{name: "to IPv4, too long", dir: 0, data: 520, ext: mpls, tail: 100},
		{name: "to IPv4, unreachable", dir: 0, kind: 1, code: 4, data: 140, ext: mpls, tail: 100, want: 45},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow64()
			orig, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, flags: packet.ACK, payload: bytesOf(3, c.data)}}, c.dir)
			in, want := about64(f, c.dir), expected64(f, c.dir)
			unit, shift := 4, 16
			if c.dir == conntrack.Forward {
				unit, shift = 8, 24
			}
			if c.kind != 0 {
				in.kind, in.code = c.kind, c.code
				for _, r := range rows64 {
					if r.dir == c.dir && r.kind == c.kind && r.code == c.code {
						want.kind, want.code, want.rest = r.toKind, r.toCode, r.toRest
						if r.kind == 3 && r.code == 4 {
							in.rest = r.rest
						}
						break
					}
				}
			}
			in.inner, want.inner = seen.whole(t), orig.whole(t)
			for len(in.inner) < 128 || len(in.inner)%unit != 0 {
				in.inner, want.inner = append(in.inner, 0), append(want.inner, 0)
			}
			in.rest |= uint32(len(in.inner)/unit) << shift
			in.inner = append(in.inner, c.ext...)
			if c.want > 0 {
				want.rest |= uint32(c.want) << (40 - shift)
				want.inner = append(want.inner, make([]byte, c.padding)...)
				want.inner = append(want.inner, c.ext...)
			}
			want.inner = want.inner[:min(len(want.inner), map[conntrack.Dir]int{0: 576 - 28, 1: 1280 - 48}[c.dir])]
			frame := in.frame64(t)
			chunk := inChunk(frame, headroom)[:headroom+len(frame)+c.tail]
			before := slices.Clone(chunk)
			p := parse(t, frame)
			was := p
			off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, c.dir, &f.dir, 1, 0, TOARoom(&f.e))
			if res != Error64Translated {
				t.Fatal(res)
			}
			translated(t, before, chunk, headroom, len(frame), off, n, was, p, want.frame64(t))
		})
	}
}

// make2 is an extension of n bytes: version 2, then anything.
func make2(n int) []byte { return append([]byte{0x20}, bytesOf(9, n-1)...) }

// TestError64FalseExtensions: what is no extension stays part of the packet.
func TestError64FalseExtensions(t *testing.T) {
	for _, c := range []struct {
		name string
		attr int
		ext  []byte
	}{
		{"length attribute of 0", 0, make2(12)},
		{"below 128 bytes", 31, make2(12)},
		{"beyond the message", 100, make2(12)},
		{"header cut", 40, make2(3)},
		{"another version", 40, append([]byte{0x10}, make2(12)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow64()
			orig, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, flags: packet.ACK, payload: bytesOf(0x23, 120)}}, conntrack.Reply)
			in, want := about64(f, conntrack.Reply), expected64(f, conntrack.Reply)
			in.rest = uint32(c.attr) << 16
			in.inner = slices.Concat(seen.whole(t), c.ext)
			want.inner = slices.Concat(orig.whole(t), c.ext)
			frame := in.frame64(t)
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, conntrack.Reply, &f.dir, 1, 0, TOARoom(&f.e))
			if res != Error64Translated {
				t.Fatal(res)
			}
			if d := cmp.Diff(want.frame64(t), chunk[off:off+n]); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestError64ExtensionBeforeTransport: an embedded packet that ends, as the length
// attribute has it, before its transport header.
func TestError64ExtensionBeforeTransport(t *testing.T) {
	f := flow64()
	orig, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, flags: packet.ACK, payload: bytesOf(3, 50)}}, conntrack.Forward)
	seen.first, seen.ext = 60, append([]byte{6, 11, 1, 92}, bytesOf(0x20, 92)...)
	in, want := about64(f, conntrack.Forward), expected64(f, conntrack.Forward)
	in.rest = 128 / 8 << 24
	in.inner, want.inner = seen.whole(t), orig.whole(t)
	frame := in.frame64(t)
	chunk := inChunk(frame, headroom)
	p := parse(t, frame)
	off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, conntrack.Forward, &f.dir, 1, 0, TOARoom(&f.e))
	if res != Error64Translated {
		t.Fatal(res)
	}
	if d := cmp.Diff(want.frame64(t), chunk[off:off+n]); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestError64Embedded is the table of odd embedded packets.
func TestError64Embedded(t *testing.T) {
	for _, c := range []struct {
		name  string
		dir   conntrack.Dir
		inner func(seen *shape64) []byte
		want  func(orig *shape64, b []byte) []byte
	}{
		{"IPv4 options", 1, func(s *shape64) []byte { s.ipOpts = bytesOf(1, 12); return s.whole(t) }, nil},
		{"total length too small", 1, func(s *shape64) []byte {
			b := s.whole(t)
			b[2], b[3] = 0, 19
			return b
		}, func(_ *shape64, b []byte) []byte { b[4], b[5] = 0, 0; return b }},
		{"longer than what there is", 1, func(s *shape64) []byte {
			b := s.whole(t)
			b[2], b[3] = 5, 0xdc
			return b
		}, func(_ *shape64, b []byte) []byte { b[4], b[5] = 5, 0xdc-20; return b }},
		{"fragmented on the way", 1, func(s *shape64) []byte { s.frag = 0x2000; return s.whole(t) }, nil},
		{"extension headers", 0, func(s *shape64) []byte { s.extend(0); s.extend(60); return s.whole(t) }, nil},
		{"1260 bytes in IPv4", 0, func(s *shape64) []byte { s.payload = bytesOf(3, 1220); return s.whole(t) },
			func(o *shape64, _ []byte) []byte { o.payload, o.frag = bytesOf(3, 1220), 0; return o.whole(t)[:548] }},
		{"1261 bytes in IPv4", 0, func(s *shape64) []byte { s.payload = bytesOf(3, 1221); return s.whole(t) },
			func(o *shape64, _ []byte) []byte {
				o.payload, o.frag = bytesOf(3, 1221), 0x4000
				return o.whole(t)[:548]
			}},
		{"flow label", 0, func(s *shape64) []byte { s.label = 0x12345; return s.whole(t) }, nil},
		{"atomic fragment", 0, func(s *shape64) []byte { s.extend(44); return s.whole(t) },
			func(o *shape64, _ []byte) []byte { o.id, o.frag = 0x5678, 0; return o.whole(t) }},
		{"first fragment", 0, func(s *shape64) []byte { s.extend(60); s.extend(44); s.ext[19] = 1; return s.whole(t) },
			func(o *shape64, _ []byte) []byte { o.id, o.frag = 0x5678, 0x2000; return o.whole(t) }},
		{"payload length too small", 0, func(s *shape64) []byte {
			s.extend(60)
			b := s.whole(t)
			b[4], b[5] = 0, 9
			return b
		}, func(_ *shape64, b []byte) []byte { b[2], b[3] = 0, 20; recomputeHeader(b); return b }},
		{"payload length of all ones", 0, func(s *shape64) []byte {
			b := s.whole(t)
			b[4], b[5] = 0xff, 0xff
			return b
		}, func(_ *shape64, b []byte) []byte {
			b[2], b[3], b[6] = 0xff, 0xff, 0x40
			recomputeHeader(b)
			return b
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow64()
			f.e.SeqDelta = 12345
			orig, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, seq: 7, ack: 8, flags: packet.ACK, payload: bytesOf(3, 20)}, class: 0x2d}, c.dir)
			in, want := about64(f, c.dir), expected64(f, c.dir)
			in.inner, want.inner = c.inner(&seen), orig.whole(t)
			if c.want != nil {
				want.inner = c.want(&orig, want.inner)
			}
			frame := in.frame64(t)
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, c.dir, &f.dir, 1, 0, TOARoom(&f.e))
			if res != Error64Translated {
				t.Fatal(res)
			}
			if d := cmp.Diff(want.frame64(t), chunk[off:off+n]); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestError64ThereAndBack: where a type survives both tables, an error that goes
// twice there and back, the second time with the numbers moved the other way, comes
// back as it was, the hops apart.
func TestError64ThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		m := f.mirror()
		m.e.SeqDelta = edgy(t, "mirror's delta")
		d := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))
		in, _ := error64About(t, f, d, udp)
		in.id, in.frag, in.label, in.pad = 0, 0, 0, nil
		in.ttl = uint8(rapid.IntRange(5, 255).Draw(t, "outer ttl"))
		in.inner = in.inner[:min(len(in.inner), 300)]
		types := [][2]uint8{{3, 1}, {3, 3}, {3, 10}, {11, 0}, {11, 1}}
		if d == conntrack.Forward {
			types = [][2]uint8{{1, 0}, {1, 1}, {1, 4}, {3, 0}, {3, 1}}
			in.src = f.e.Client
		} else {
			in.src = f.dir.Backends[0].Addr
		}
		k := rapid.SampledFrom(types).Draw(t, "type")
		in.kind, in.code = k[0], k[1]
		frame := in.frame64(t)
		chunk := inChunk(frame, headroom)
		off, n := headroom, len(frame)
		for i := range 4 {
			p := parse(t, chunk[off:off+n])
			by, towards := f, d
			var res Error64
			if i%2 == 1 {
				by, towards = m, 1-d
			}
			off, n, res = TranslateError64(chunk, off, n, &p, &by.e, towards, &by.dir, 0, 0, TOARoom(&by.e))
			if res != Error64Translated || i%2 == 1 && off != headroom {
				t.Fatalf("%v at %d", res, off)
			}
			judgeRaw(t, chunk[off:off+n])
			if i == 1 {
				f.e.SeqDelta, m.e.SeqDelta = -f.e.SeqDelta, -m.e.SeqDelta
			}
		}
		in.ttl -= 4
		if d := cmp.Diff(in.frame64(t), chunk[off:off+n]); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestError64DamageSurvives: an error with a wrong checksum gets no right one, also
// if the damage is in what is cut off.
func TestError64DamageSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFlow64(t, true)
		d := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))
		in, _ := error64About(t, f, d, true)
		in.kind = 11
		if d == conntrack.Forward {
			in.kind = 3
		}
		frame := in.frame64(t)
		p := parse(t, frame)
		at := int(p.L4) + rapid.SampledFrom([]int{2, 3, int(p.End-p.L4) - 1}).Draw(t, "byte")
		frame[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		chunk := inChunk(frame, headroom)
		off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, d, &f.dir, 1, 0, TOARoom(&f.e))
		if res != Error64Translated {
			t.Fatal(res)
		}
		if packet.VerifyL4(chunk[off:off+n], &p) {
			t.Fatal("a damaged error has become a good one")
		}
	})
}

func TestError64Refuses(t *testing.T) {
	for _, c := range []struct {
		name string
		want Error64
		edit func(f *flow, p *packet.Packet, chunk *[]byte, off, n *int)
	}{
		{"not an error", Error64NotThisFlow, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Kind = packet.KindEcho }},
		{"service unknown", Error64NotThisFlow, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Service = 9 }},
		{"backend unknown", Error64NotThisFlow, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Backend = 9 }},
		{"local unknown", Error64NotThisFlow, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Local = 9 }},
		{"one family", Error64NotThisFlow, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Flags |= conntrack.V6Server }},
		{"DNAT", Error64NotThisFlow, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Mode = conntrack.DNAT }},
		{"other direction's family", Error64NotThisFlow, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.V6 = !p.V6 }},
		{"offset below 0", Error64NotThisFlow, func(_ *flow, _ *packet.Packet, _ *[]byte, off, _ *int) { *off = -1 }},
		{"offset beyond the chunk", Error64NotThisFlow, func(_ *flow, _ *packet.Packet, _ *[]byte, off, _ *int) { *off = 4000 }},
		{"length below 0", Error64NotThisFlow, func(_ *flow, _ *packet.Packet, _ *[]byte, _, n *int) { *n = -1 }},
		{"frame beyond the chunk", Error64NotThisFlow, func(_ *flow, _ *packet.Packet, c *[]byte, _, _ *int) { *c = (*c)[:300] }},
		{"frame cut", Error64NotThisFlow, func(_ *flow, p *packet.Packet, _ *[]byte, _, n *int) { *n = int(p.End) - 1 }},
		{"no Ethernet header", Error64NotThisFlow, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.L3 = 4 }},
		{"embedded header misplaced", Error64NotThisFlow, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Inner4 = p.Payload }},
		{"of no type of an error", Error64NoCounterpart, func(_ *flow, p *packet.Packet, c *[]byte, off, _ *int) { (*c)[*off+int(p.L4)] = 200 }},
	} {
		for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
			f := flow64()
			_, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, flags: packet.ACK}}, d)
			in := about64(f, d)
			in.inner = seen.whole(t)
			frame := in.frame64(t)
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n := headroom, len(frame)
			c.edit(f, &p, &chunk, &off, &n)
			was, before := p, slices.Clone(chunk)
			gotOff, gotN, res := TranslateError64(chunk, off, n, &p, &f.e, d, &f.dir, 1, 0, TOARoom(&f.e))
			if res != c.want || gotOff != off || gotN != n || p != was || !slices.Equal(chunk, before) {
				t.Errorf("%s, direction %d: %v, want %v, or something changed", c.name, d, res, c.want)
			}
		}
	}
}

func TestError64String(t *testing.T) {
	want := []string{"icmp64_not_this_flow", "icmp64_no_counterpart", "icmp64_no_headroom", "icmp64_translated", "icmp64_unknown"}
	for r := range NumError64 + 1 {
		if r.String() != want[r] {
			t.Errorf("%d: %q, want %q", r, r, want[r])
		}
	}
}

// TestMSSCut64: with every server MTU, the client's longest segment fits the same
// MTU on either side, and one byte more would not.
func TestMSSCut64(t *testing.T) {
	for _, more := range []uint16{0, 8, toaLen6, 52, 107} {
		for mtu := 1280; mtu <= 9000; mtu++ {
			f := flow64()
			mss := binary.BigEndian.AppendUint16([]byte{2, 4}, uint16(mtu-40))
			s := shape64{shape: f.fromServer(shape{ttl: 9, flags: packet.SYN | packet.ACK, opts: mss})}
			frame := s.frame()
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			LowerMSS(chunk[headroom:headroom+len(frame)], &p, MSSCut64(more))
			off, n, ok := Reply64(chunk, headroom, len(frame), &p, &f.e, &f.dir)
			if !ok {
				t.Fatal("refused")
			}
			o := packet.ScanOptions(chunk[off:off+n], &p)
			v6, v4 := int(o.MSS)+60, int(o.MSS)+40+int(more)
			if v6 > mtu || v4 > mtu || v6 != mtu && v4 != mtu {
				t.Fatalf("MTU %d, %d more: IPv6 %d, IPv4 %d", mtu, more, v6, v4)
			}
		}
	}
}

func TestPathMTU64(t *testing.T) {
	for _, c := range []struct{ v6, v4, want int }{
		{1500, 1500, 1500}, {1500, 1480, 1500}, {1500, 1479, 1499}, {9000, 1500, 1520}, {1280, 9000, 1280},
	} {
		if got := PathMTU64(c.v6, c.v4); got != c.want {
			t.Errorf("%d and %d: %d, want %d", c.v6, c.v4, got, c.want)
		}
	}
}

func TestError64AllocatesNothing(t *testing.T) {
	for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
		chunk, good, f := benchError64(t, d)
		buf := slices.Clone(chunk)
		if n := testing.AllocsPerRun(100, func() {
			copy(buf, chunk)
			p := good
			if _, _, res := TranslateError64(buf, headroom, int(p.End), &p, &f.e, d, &f.dir, 1, 1500, TOARoom(&f.e)); res != Error64Translated {
				panic(res)
			}
		}); n != 0 {
			t.Errorf("direction %d: %v allocations", d, n)
		}
	}
}

// benchError64 is an error with an extension about a packet with a SACK block.
func benchError64(tb testing.TB, d conntrack.Dir) (chunk []byte, p packet.Packet, f *flow) {
	f = flow64()
	f.e.SeqDelta = 5
	opts := append(bytesOf(1, 2), 5, 10, 0, 0, 0, 1, 0, 0, 0, 2)
	_, seen := f.quoted64(tb, shape64{shape: shape{ttl: 9, flags: packet.ACK, opts: opts, payload: bytesOf(1, 136)}}, d)
	in := about64(f, d)
	in.inner = append(seen.whole(tb), make2(12)...)
	in.rest = uint32(len(in.inner)-12) / 4 << 16
	if d == conntrack.Forward {
		in.rest = uint32(len(in.inner)-12) / 8 << 24
	}
	frame := in.frame64(tb)
	return inChunk(frame, headroom), parse(tb, frame), f
}

func BenchmarkTranslateError64(b *testing.B) {
	chunk, good, f := benchError64(b, conntrack.Reply)
	buf := slices.Clone(chunk)
	b.ReportAllocs()
	for b.Loop() {
		copy(buf[headroom-40:], chunk[headroom-40:headroom+400])
		p := good
		TranslateError64(buf, headroom, int(p.End), &p, &f.e, conntrack.Reply, &f.dir, 1, 0, TOARoom(&f.e))
	}
}

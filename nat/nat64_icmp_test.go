package nat

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// quoted64 returns the packet of flow f that an error in direction d is about, as
// its receiver of the error sent it and as the error's sender saw it, as far as
// NAT64 can give it back. s is drawn for the family of the client (Reply) or of the
// server.
func (f *flow) quoted64(t rapid.TB, s shape64, d conntrack.Dir) (orig, seen shape64) {
	t.Helper()
	s.ext, s.label, s.ipOpts, s.noCsum, s.id = nil, 0, nil, false, 0
	if d == conntrack.Reply {
		s.shape = f.fromClient(s.shape)
		s.frag = 0
		seen = f.toServer64(s, 0)
	} else {
		s.shape = f.fromServer(s.shape)
		seen = f.toClient64(s)
		s.frag = 0
		if 20+len(s.transport(t)) > 1260 {
			s.frag = packet.IPv4DontFragment
		}
	}
	s.ttl = seen.ttl // not given back
	return s, seen
}

// error64About draws an error in direction d about a packet of flow f, and makes
// what it must become, types apart.
func error64About(t *rapid.T, f *flow, d conntrack.Dir, udp bool) (in, want error64) {
	s := drawShape64(t, d == conntrack.Reply, udp)
	orig, seen := f.quoted64(t, s, d)
	head := 20 + len(s.opts)
	all := len(seen.transport(t))
	n := rapid.OneOf(rapid.IntRange(8, min(all, 70)), rapid.Just(all)).Draw(t, "embedded transport bytes")
	if !udp {
		if n == 17 {
			n++ // half a checksum is not looked at
		}
		if n < head { // its SACK blocks cannot be put right, so have none
			orig.opts, seen.opts = bytesOf(1, len(s.opts)), bytesOf(1, len(s.opts))
		}
		if n < 14 { // without flags no ACK field is known to be one
			orig.ack = seen.ack
		}
	}
	in.inner, want.inner = seen.whole(t), orig.whole(t)
	in.inner = in.inner[:len(in.inner)-all+n]
	want.inner = want.inner[:len(want.inner)-all+n]
	vip, rs, local := f.dir.Services[0].Addr, f.dir.Backends[0].Addr, f.dir.Locals[0]
	in.shape = shape{ttl: s.ttl, vlan: s.vlan, pad: s.pad}
	in.class, in.id, in.frag = rapid.Byte().Draw(t, "outer class"), 9, packet.IPv4DontFragment
	want.shape, want.class = in.shape, in.class
	want.ttl--
	want.pad = nil
	router := rapid.Bool().Draw(t, "from a router")
	if d == conntrack.Reply {
		in.src, in.dst, want.src, want.dst = rs, local, vip, f.e.Client
		if router {
			in.src = packet.Addr{Lo: 0xffff_0a090807}
		}
	} else {
		in.src, in.dst, want.src, want.dst = f.e.Client, vip, local, rs
		in.label = 0x777
		if router {
			in.src = packet.Addr{Hi: 0x20010db8_00000077, Lo: 1}
		}
	}
	return in, want
}

// TestError64Twin compares whole errors, embedding any length of a packet, with
// those gopacket makes about the packet that the receiver once sent.
func TestError64Twin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		d := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))
		in, want := error64About(t, f, d, udp)
		row := rapid.SampledFrom(slices.DeleteFunc(slices.Clone(rows64), func(r row64) bool { return r.dir != d })).Draw(t, "type")
		in.kind, in.code, in.rest = row.kind, row.code, row.rest
		want.kind, want.code, want.rest = row.toKind, row.toCode, row.toRest
		limit := 1280 - 48
		if d == conntrack.Forward {
			limit = 576 - 28
		}
		want.inner = want.inner[:min(len(want.inner), limit)]
		want.id = rapid.Uint16().Draw(t, "new id")

		frame := in.frame64(t)
		room := rapid.SampledFrom([]int{headroom, headroom, 40, 39, 0}).Draw(t, "room")
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p
		off, n, res := TranslateError64(chunk, room, len(frame), &p, &f.e, d, &f.dir, want.id, 0, TOARoom(&f.e))
		if d == conntrack.Reply && room < 40 {
			if res != Error64NoHeadroom || off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatalf("%v, or something changed", res)
			}
			return
		}
		if res != Error64Translated {
			t.Fatal(res)
		}
		translated(t, before, chunk, room, len(frame), off, n, was, p, want.frame64(t))
	})
}

// row64 is an error and what RFC 7915 makes of it.
type row64 struct {
	dir            conntrack.Dir
	kind, code     uint8
	rest           uint32
	toKind, toCode uint8
	toRest         uint32
}

// rows64 is all that RFC 7915 translates, one row each: section 4.2 with figure 3
// (direction Reply), section 5.2 with figure 6. MTUs are TestError64MTU's.
var rows64 = slices.Concat([]row64{
	{1, 3, 0, 0, 1, 0, 0}, {1, 3, 1, 0, 1, 0, 0}, {1, 3, 2, 0, 4, 1, 6}, {1, 3, 3, 0, 1, 4, 0}, {1, 3, 4, 1200, 2, 0, 1280},
	{1, 3, 5, 0, 1, 0, 0}, {1, 3, 6, 0, 1, 0, 0}, {1, 3, 7, 0, 1, 0, 0}, {1, 3, 8, 0, 1, 0, 0}, {1, 3, 9, 0, 1, 1, 0},
	{1, 3, 10, 0, 1, 1, 0}, {1, 3, 11, 0, 1, 0, 0}, {1, 3, 12, 0, 1, 0, 0}, {1, 3, 13, 0, 1, 1, 0}, {1, 3, 15, 0, 1, 1, 0},
	{1, 11, 0, 0, 3, 0, 0}, {1, 11, 1, 0, 3, 1, 0},
	{0, 1, 0, 0, 3, 1, 0}, {0, 1, 1, 0, 3, 10, 0}, {0, 1, 2, 0, 3, 1, 0}, {0, 1, 3, 0, 3, 1, 0}, {0, 1, 4, 0, 3, 3, 0},
	{0, 2, 0, 1400, 3, 4, 1380},
	{0, 3, 0, 0, 11, 0, 0}, {0, 3, 1, 0, 11, 1, 0},
	{0, 4, 1, 6, 3, 2, 0}, {0, 4, 1, 40, 3, 2, 0},
},
	pointers(0, 0, 0), pointers(1, 1, 1), pointers(2, 3, 4), pointers(8, 8, 7), pointers(9, 9, 6),
	pointers(12, 15, 8), pointers(16, 19, 24),
	pointers6to4(0, 0, 0), pointers6to4(1, 1, 1), pointers6to4(4, 5, 2), pointers6to4(6, 6, 9), pointers6to4(7, 7, 8),
	pointers6to4(8, 23, 12), pointers6to4(24, 39, 16))

// pointers are the rows of figure 3 for IPv4 pointers from..to, codes 0 (pointer)
// and 2 (bad length).
func pointers(from, to, v6 uint32) (rows []row64) {
	for at := from; at <= to; at++ {
		rows = append(rows, row64{1, 12, 0, at << 24, 4, 0, v6}, row64{1, 12, 2, at << 24, 4, 0, v6})
	}
	return rows
}

// pointers6to4 are those of figure 6.
func pointers6to4(from, to, v4 uint32) (rows []row64) {
	for at := from; at <= to; at++ {
		rows = append(rows, row64{0, 4, 0, at, 12, 0, v4 << 24})
	}
	return rows
}

// TestError64Types goes through every type that Parse takes for an error, with
// every code, and every pointer where there is one: what is no row is dropped.
func TestError64Types(t *testing.T) {
	type key struct {
		dir        conntrack.Dir
		kind, code uint8
		rest       uint32
	}
	table := map[key]row64{}
	for _, r := range rows64 {
		table[key{r.dir, r.kind, r.code, r.rest}] = r
	}
	seen := 0
	for _, first := range []key{{1, 3, 0, 0}, {1, 11, 0, 0}, {1, 12, 0, 0}, {0, 1, 0, 0}, {0, 2, 0, 1400}, {0, 3, 0, 0}, {0, 4, 0, 0}} {
		for code := range 256 {
			k := first
			k.code = uint8(code)
			var rests []uint32
			switch {
			case k.kind == 12:
				for v := range uint32(256) {
					rests = append(rests, v<<24)
				}
			case k.kind == 4:
				for v := range uint32(50) {
					rests = append(rests, v, v<<24|40)
				}
			case k.dir == conntrack.Reply && k.kind == 3 && code == 4:
				rests = []uint32{1200}
			default:
				rests = []uint32{first.rest}
			}
			for _, k.rest = range rests {
				want, ok := table[k]
				switch {
				case k.kind == 11 || k.kind == 3 && k.dir == conntrack.Forward:
					want, ok = table[key{k.dir, k.kind, 0, 0}], true
					want.toCode = k.code // any code, unchanged
				case k.kind == 2: // its code is ignored (RFC 4443 section 3.2)
					want, ok = table[key{k.dir, k.kind, 0, k.rest}], true
				case k.kind == 4 && k.code == 1: // and so is this one's pointer
					want, ok = table[key{k.dir, k.kind, 1, 6}], true
				}
				if ok {
					seen++
				}
				row := row64{k.dir, k.kind, k.code, k.rest, want.toKind, want.toCode, want.toRest}
				if !ok {
					row.toKind = 0xff
				}
				if err := oneRow(t, row); err != nil {
					t.Errorf("%+v: %v", k, err)
				}
			}
		}
	}
	if seen < len(table) {
		t.Errorf("%d of %d rows seen", seen, len(table))
	}
}

// oneRow sends an error through TranslateError64. It is to be dropped if toKind is
// 0xff.
func oneRow(t *testing.T, r row64) error {
	t.Helper()
	f := flow64()
	_, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, flags: packet.ACK}}, r.dir)
	m := error64{shape64: shape64{shape: shape{src: f.e.Client, dst: f.dir.Services[1].Addr, ttl: 9}},
		kind: r.kind, code: r.code, rest: r.rest, inner: seen.whole(t)}
	if r.dir == conntrack.Reply {
		m.src, m.dst = f.dir.Backends[2].Addr, f.dir.Locals[1]
	}
	frame := m.frame64(t)
	chunk := inChunk(frame, headroom)
	before := slices.Clone(chunk)
	p := parse(t, frame)
	off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, r.dir, &f.dir, 1, 0, TOARoom(&f.e))
	if r.toKind == 0xff {
		if res != Error64NoCounterpart || off != headroom || n != len(frame) || !slices.Equal(chunk, before) {
			return fmt.Errorf("%v, or something changed", res)
		}
		return nil
	}
	if res != Error64Translated {
		return fmt.Errorf("%v", res)
	}
	judge64(t, chunk[off:off+n])
	h := chunk[off+int(p.L4):]
	got := row64{r.dir, r.kind, r.code, r.rest, h[0], h[1], binary.BigEndian.Uint32(h[4:])}
	if got != r {
		return fmt.Errorf("%+v, want %+v", got, r)
	}
	return nil
}

// TestError64MTU is the table of the MTUs.
func TestError64MTU(t *testing.T) {
	for _, c := range []struct {
		name  string
		dir   conntrack.Dir
		udp   bool
		acked bool
		rest  uint32
		total int // of the embedded packet, if not what it is
		path  int
		frag  bool
		want  uint32
	}{
		{name: "longer by the headers, less TOA", dir: 1, rest: 1400, want: 1400},
		{name: "TOA is no longer sent", dir: 1, acked: true, rest: 1400, want: 1420},
		{name: "UDP has no TOA", dir: 1, udp: true, rest: 1400, want: 1420},
		{name: "upper half is not the MTU's", dir: 1, udp: true, rest: 9<<16 | 1400, want: 1420},
		{name: "not below IPv6's least", dir: 1, udp: true, rest: 1259, want: 1280},
		{name: "IPv4's least", dir: 1, udp: true, rest: 68, want: 1280},
		{name: "just above", dir: 1, udp: true, rest: 1261, want: 1281},
		{name: "the greatest", dir: 1, udp: true, rest: 65535, want: 65555},
		{name: "bounded by the next hops", dir: 1, udp: true, rest: 9000, path: 1500, want: 1500},
		{name: "next hops have more", dir: 1, udp: true, rest: 1400, path: 1500, want: 1420},
		{name: "next hops below IPv6's least", dir: 1, udp: true, rest: 1400, path: 1000, want: 1280},
		{name: "old router, 1500", dir: 1, udp: true, total: 1500, want: 1492},
		{name: "old router, on a plateau", dir: 1, udp: true, total: 1492, want: 1280},
		{name: "old router, above it", dir: 1, udp: true, total: 1493, want: 1492},
		{name: "old router, 2002", dir: 1, udp: true, total: 2002, want: 1492},
		{name: "old router, 2003", dir: 1, udp: true, total: 2003, want: 2002},
		{name: "old router, 4500", dir: 1, udp: true, total: 4500, want: 4352},
		{name: "old router, 9000", dir: 1, udp: true, total: 9000, want: 8166},
		{name: "old router, 18000", dir: 1, udp: true, total: 18000, want: 17914},
		{name: "old router, 40000", dir: 1, udp: true, total: 40000, want: 32000},
		{name: "old router, 65535", dir: 1, udp: true, total: 65535, want: 32000},
		{name: "old router, TCP", dir: 1, total: 1500, want: 1492},
		{name: "old router, next hop has less", dir: 1, total: 9000, path: 1500, want: 1500},
		{name: "old router, short packet", dir: 1, total: 576, want: 1280},

		{name: "shorter by the headers", dir: 0, rest: 1400, want: 1380},
		{name: "IPv6's least", dir: 0, rest: 1280, want: 1260},
		{name: "below it", dir: 0, rest: 600, want: 580},
		{name: "not below IPv4's least", dir: 0, rest: 80, want: 68},
		{name: "zero", dir: 0, rest: 0, want: 68},
		{name: "more than 16 bits", dir: 0, rest: 1 << 31, want: 65535},
		{name: "the greatest in 16 bits", dir: 0, rest: 65555, want: 65535},
		{name: "a bit less", dir: 0, rest: 65554, want: 65534},
		{name: "bounded by the next hops, to the server", dir: 0, rest: 9000, path: 1520, want: 1500},
		{name: "packet with a fragment header", dir: 0, rest: 1400, frag: true, want: 1372},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow64()
			if c.acked {
				f.e.Flags |= conntrack.HasServerISN | conntrack.ServerAcked
			}
			if c.udp {
				f.e.Proto = packet.ProtoUDP
			}
			_, seen := f.quoted64(t, shape64{shape: shape{ttl: 9, udp: c.udp, flags: packet.ACK}}, c.dir)
			m := error64{shape64: shape64{shape: shape{src: f.e.Client, dst: f.dir.Services[1].Addr, ttl: 9}}, kind: 2, rest: c.rest}
			if c.frag {
				seen.extend(60)
				seen.extend(44)
			}
			m.inner = seen.whole(t)
			if c.dir == conntrack.Reply {
				m.src, m.dst, m.kind, m.code = f.dir.Backends[2].Addr, f.dir.Locals[1], 3, 4
				if c.total != 0 {
					binary.BigEndian.PutUint16(m.inner[2:], uint16(c.total))
				}
			}
			frame := m.frame64(t)
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, res := TranslateError64(chunk, headroom, len(frame), &p, &f.e, c.dir, &f.dir, 1, c.path, TOARoom(&f.e))
			if res != Error64Translated {
				t.Fatal(res)
			}
			judge64(t, chunk[off:off+n])
			if got := binary.BigEndian.Uint32(chunk[off+int(p.L4)+4:]); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}

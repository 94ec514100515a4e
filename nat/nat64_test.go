package nat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// translated checks what a translation of the frame at room in chunk has returned:
// the new frame is want, p tells the truth of it, nothing else has changed.
func translated(t rapid.TB, before, chunk []byte, room, n, off, length int, was, p packet.Packet, want []byte) {
	t.Helper()
	if d := cmp.Diff(want, chunk[off:off+length]); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	again := parse(t, chunk[off:off+length])
	again.Tuple, again.Seq, again.Ack = was.Tuple, was.Seq, was.Ack
	if again != p {
		t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
	}
	from, to := min(off, room), max(off+length, room+n)
	if !slices.Equal(chunk[:from], before[:from]) || !slices.Equal(chunk[to:], before[to:]) {
		t.Fatal("wrote outside the frame")
	}
}

// TestForward64Twin compares Forward64, whole packet, with the IPv4 packet that
// gopacket makes from scratch.
func TestForward64Twin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		s := drawShape64(t, true, udp)
		s.shape = f.fromClient(s.shape)
		id := rapid.Uint16().Draw(t, "id")
		frame := s.frame64(t)
		room := rapid.SampledFrom([]int{0, headroom}).Draw(t, "room")
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p
		grow := Growth64(&p)
		off, n, ok := Forward64(chunk, room, len(frame), &p, &f.e, &f.dir, id)
		if !ok {
			t.Fatal("refused")
		}
		if got := p.IPLen() - was.IPLen(); got != grow || off != room-grow {
			t.Fatalf("grew by %d and begins at %d, not by %d", got, off, grow)
		}
		want := f.toServer64(s, id)
		want.pad = nil
		translated(t, before, chunk, room, len(frame), off, n, was, p, want.frame64(t))
	})
}

// TestReply64Twin does the same for the way back.
func TestReply64Twin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		s := drawShape64(t, false, udp)
		s.shape = f.fromServer(s.shape)
		frame := s.frame64(t)
		room := rapid.SampledFrom([]int{headroom, headroom, 20, 19, 0}).Draw(t, "room")
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p
		grow := Growth64(&p)
		off, n, ok := Reply64(chunk, room, len(frame), &p, &f.e, &f.dir)
		if ok != (grow <= room) {
			t.Fatalf("%v with %d bytes of headroom for %d", ok, room, grow)
		}
		if !ok {
			if off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatal("refused, and something changed")
			}
			return
		}
		if got := p.IPLen() - was.IPLen(); got != grow || off != room-grow {
			t.Fatalf("grew by %d and begins at %d, not by %d", got, off, grow)
		}
		want := f.toClient64(s)
		want.pad = nil
		translated(t, before, chunk, room, len(frame), off, n, was, p, want.frame64(t))
	})
}

// mirror is the flow by which Reply64 undoes Forward64, and the other way round:
// what was the client is the VIP, what was the local address the server.
func (f *flow) mirror() *flow {
	vip, rs, local := f.dir.Services[f.e.Service], f.dir.Backends[f.e.Backend], f.dir.Locals[f.e.Local]
	m := &flow{e: conntrack.Entry{Client: vip.Addr, ClientPort: vip.Port, LocalPort: rs.Port, Proto: f.e.Proto}}
	m.dir = conntrack.Directory{
		Services: []conntrack.Endpoint{{Addr: f.e.Client, Port: f.e.ClientPort}},
		Backends: []conntrack.Endpoint{{Addr: local, Port: f.e.LocalPort}},
		Locals:   []packet.Addr{rs.Addr},
	}
	Prepare(&m.e, &m.dir)
	return m
}

// TestThereAndBack64: a packet without what RFC 7915 loses (extension headers, flow
// label, IPv4 options) has the addresses and ports it had after a translation and
// that of the mirrored flow. After another such pair, which moves the numbers back
// that the first has moved, it is the packet it was, the four hops apart.
func TestThereAndBack64(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		m := f.mirror()
		m.e.SeqDelta = edgy(t, "mirror's delta")
		s := drawShape64(t, v6, udp)
		s.ext, s.label, s.ipOpts, s.pad, s.noCsum = nil, 0, nil, nil, false
		s.ttl = uint8(rapid.IntRange(5, 255).Draw(t, "ttl"))
		if v6 {
			s.shape = f.fromClient(s.shape)
		} else {
			s.shape = f.fromServer(s.shape)
			long := 20+len(s.transport(t)) > 1260
			s.frag = 0
			if long {
				s.frag = packet.IPv4DontFragment
			}
		}
		frame := s.frame64(t)
		chunk := inChunk(frame, headroom)
		p := parse(t, frame)
		off, n := headroom, len(frame)
		first, second := f, m
		if !v6 {
			first, second = m, f
		}
		for i := range 4 {
			var ok bool
			if p.V6 {
				off, n, ok = Forward64(chunk, off, n, &p, &first.e, &first.dir, s.id)
			} else {
				off, n, ok = Reply64(chunk, off, n, &p, &second.e, &second.dir)
			}
			if !ok || i%2 == 1 && off != headroom {
				t.Fatalf("%v at %d", ok, off)
			}
			judgeRaw(t, chunk[off:off+n])
			if i == 1 {
				f.e.SeqDelta, m.e.SeqDelta = -f.e.SeqDelta, -m.e.SeqDelta
			}
		}
		s.ttl -= 4
		if d := cmp.Diff(s.frame64(t), chunk[off:off+n]); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestTOA64: InsertTOA before Forward64 and after it gives the same IPv4 packet,
// the one gopacket makes, with the IPv6 client's option first.
func TestTOA64(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFlow64(t, false)
		s := drawShape64(t, true, false)
		s.shape = f.fromClient(s.shape)
		s.opts = s.opts[:min(len(s.opts), 20)&^3]
		id := rapid.Uint16().Draw(t, "id")
		toa := slowTOA(&f.e, 254)
		want := f.toServer64(s, id) // DF as without the option
		want.opts, want.pad = slices.Concat(toa, want.opts), nil
		frame := s.frame64(t)
		whole := want.frame64(t)
		mtu := len(want.whole(t)) // not a byte more

		run := func(name string, first func(chunk []byte, off, n int, p *packet.Packet) (int, int, bool),
			then func(chunk []byte, off, n int, p *packet.Packet) (int, int, bool)) {
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, ok := first(chunk, headroom, len(frame), &p)
			if ok {
				off, n, ok = then(chunk, off, n, &p)
			}
			if !ok {
				t.Fatalf("%s: refused", name)
			}
			if d := cmp.Diff(whole, chunk[off:off+int(p.End)]); d != "" {
				t.Fatalf("%s (-want +got):\n%s", name, d)
			}
			judge64(t, chunk[off:off+n])
		}
		insert := func(chunk []byte, off, n int, p *packet.Packet) (int, int, bool) {
			limit := mtu
			if p.V6 {
				limit -= Growth64(p)
			}
			off, n, res := InsertTOA(chunk, off, n, p, &f.e, 254, limit)
			return off, n, res == TOAInserted
		}
		forward := func(chunk []byte, off, n int, p *packet.Packet) (int, int, bool) {
			return Forward64(chunk, off, n, p, &f.e, &f.dir, id)
		}
		run("InsertTOA, Forward64", insert, forward)
		run("Forward64, InsertTOA", forward, insert)
	})
}

// judge64 has our own verifier look at a frame.
func judge64(t rapid.TB, frame []byte) {
	t.Helper()
	p := parse(t, frame)
	if !packet.VerifyIPv4(frame, &p) || !packet.VerifyL4(frame, &p) {
		t.Fatalf("checksum\n% x", frame)
	}
}

// TestForward64Headers is the IPv4 header for some clients' packets, field by
// field.
func TestForward64Headers(t *testing.T) {
	type header struct {
		tos, ttl uint8
		id, frag uint16
		size     int
	}
	for _, c := range []struct {
		name string
		edit func(s *shape64)
		want header
	}{
		{"plain", func(*shape64) {}, header{ttl: 9, id: 7, size: 40}},
		{"traffic class and ECN", func(s *shape64) { s.class = 0xbb }, header{tos: 0xbb, ttl: 9, id: 7, size: 40}},
		{"flow label", func(s *shape64) { s.label = 0xfffff }, header{ttl: 9, id: 7, size: 40}},
		{"1260 bytes", func(s *shape64) { s.payload = bytesOf(1, 1220) }, header{ttl: 9, id: 7, size: 1260}},
		{"1261 bytes", func(s *shape64) { s.payload = bytesOf(1, 1221) }, header{ttl: 9, id: 7, frag: 0x4000, size: 1261}},
		{"1280 bytes with TOA", func(s *shape64) {
			s.payload, s.opts = bytesOf(1, 1220), slowTOA(&flow64().e, 77)
		}, header{ttl: 9, id: 7, size: 1280}},
		{"1281 bytes with TOA", func(s *shape64) {
			s.payload, s.opts = bytesOf(1, 1221), slowTOA(&flow64().e, 77)
		}, header{ttl: 9, id: 7, frag: 0x4000, size: 1281}},
		{"1280 bytes with somebody else's option", func(s *shape64) {
			s.payload, s.opts = bytesOf(1, 1220), append([]byte{254, 20}, make([]byte, 18)...)
		}, header{ttl: 9, id: 7, frag: 0x4000, size: 1280}},
		{"1280 bytes with another port's TOA", func(s *shape64) {
			s.payload, s.opts = bytesOf(1, 1220), slowTOA(&flow64().e, 254)
			s.opts[3]++
		}, header{ttl: 9, id: 7, frag: 0x4000, size: 1280}},
		{"1280 bytes with a longer option", func(s *shape64) {
			s.payload, s.opts = bytesOf(1, 1216), append(slowTOA(&flow64().e, 254), 0, 0, 0, 0)
			s.opts[1] += 4
		}, header{ttl: 9, id: 7, frag: 0x4000, size: 1280}},
		{"1280 bytes of UDP", func(s *shape64) { s.payload, s.udp = bytesOf(1, 1252), true }, header{ttl: 9, id: 7, frag: 0x4000, size: 1280}},
		{"destination options", func(s *shape64) { s.extend(60) }, header{ttl: 9, id: 7, size: 40}},
		{"hop-by-hop, routing, options", func(s *shape64) {
			s.extend(0)
			s.extend(43)
			s.extend(60)
		}, header{ttl: 9, id: 7, size: 40}},
		{"long, with options", func(s *shape64) {
			s.extend(60)
			s.payload = bytesOf(1, 1300)
		}, header{ttl: 9, id: 7, frag: 0x4000, size: 1340}},
		{"long atomic fragment", func(s *shape64) {
			s.extend(60)
			s.extend(44)
			s.payload = bytesOf(1, 1300)
		}, header{ttl: 9, id: 7, size: 1340}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow64()
			s := shape64{shape: f.fromClient(shape{ttl: 10, flags: packet.ACK})}
			c.edit(&s)
			frame := s.frame64(t)
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, ok := Forward64(chunk, headroom, len(frame), &p, &f.e, &f.dir, 7)
			if !ok {
				t.Fatal("refused")
			}
			got := chunk[off : off+n]
			judge64(t, got)
			h := got[p.L3:]
			be := func(at int) uint16 { return uint16(h[at])<<8 | uint16(h[at+1]) }
			if d := cmp.Diff(c.want, header{h[1], h[8], be(4), be(6), int(be(2))}, cmp.AllowUnexported(header{})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestReply64ZeroChecksum: RFC 7915 section 4.5. Among the payloads is one whose
// sum is that of a checksum of 0, which is sent as 0xffff.
func TestReply64ZeroChecksum(t *testing.T) {
	f := flow64()
	f.e.Proto = packet.ProtoUDP
	seen := false
	for _, surplus := range []int{0, 3} {
		for v := range 1 << 16 {
			s := shape{udp: true, ttl: 9, noCsum: true, payload: []byte{byte(v >> 8), byte(v), 'x'}}
			s = f.fromServer(s)
			frame := s.frame()
			frame = append(frame, bytesOf(0x77, surplus)...)
			frame[packet.EthLen+packet.IPv4TotalLen+1] += byte(surplus)
			recomputeHeader(frame[packet.EthLen:])
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, ok := Reply64(chunk, headroom, len(frame), &p, &f.e, &f.dir)
			if !ok {
				t.Fatal("refused")
			}
			got := chunk[off : off+n]
			if !packet.VerifyL4(got, &p) {
				t.Fatalf("checksum\n% x", got)
			}
			csum := uint16(got[p.L4+6])<<8 | uint16(got[p.L4+7])
			if csum == 0 {
				t.Fatal("no checksum")
			}
			seen = seen || csum == 0xffff
			if v > 4096 && surplus > 0 {
				break
			}
		}
	}
	if !seen {
		t.Error("no payload whose checksum computes to 0")
	}
}

// recomputeHeader sets the checksum of an IPv4 header without options.
func recomputeHeader(d []byte) {
	d[10], d[11] = 0, 0
	c := ^uint16(slowSum(d[:20]))
	d[10], d[11] = byte(c>>8), byte(c)
}

// TestDamageSurvives64: a packet with a wrong checksum is translated, not repaired.
func TestDamageSurvives64(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		s := drawShape64(t, v6, udp)
		s.noCsum, s.surplus, s.payload = false, nil, append(s.payload, 'x')
		if v6 {
			s.shape = f.fromClient(s.shape)
		} else {
			s.shape = f.fromServer(s.shape)
		}
		frame := s.frame64(t)
		p := parse(t, frame)
		frame[p.End-1] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		chunk := inChunk(frame, headroom)
		off, n := headroom, len(frame)
		var ok bool
		if v6 {
			off, n, ok = Forward64(chunk, off, n, &p, &f.e, &f.dir, 1)
		} else {
			off, n, ok = Reply64(chunk, off, n, &p, &f.e, &f.dir)
		}
		if !ok || packet.VerifyL4(chunk[off:off+n], &p) {
			t.Fatalf("%v: a damaged packet has become a good one", ok)
		}
	})
}

// TestRewrite64Refuses: what is refused is not touched.
func TestRewrite64Refuses(t *testing.T) {
	for _, c := range []struct {
		name string
		only byte // 'f' or 'r' if the other direction does not mind
		edit func(f *flow, p *packet.Packet, chunk *[]byte, off, n *int)
	}{
		{"backend unknown", 'f', func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Backend = 3 }},
		{"local unknown", 'f', func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Local = 2 }},
		{"service unknown", 'r', func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Service = 2 }},
		{"one family", 0, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Flags |= conntrack.V6Server }},
		{"IPv4 client", 0, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Flags = 0 }},
		{"DNAT", 0, func(f *flow, _ *packet.Packet, _ *[]byte, _, _ *int) { f.e.Mode = conntrack.DNAT }},
		{"other direction's family", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.V6 = !p.V6 }},
		{"fragment", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Kind = packet.KindFragment }},
		{"offset below 0", 0, func(_ *flow, _ *packet.Packet, _ *[]byte, off, _ *int) { *off = -1 }},
		{"offset beyond the chunk", 0, func(_ *flow, _ *packet.Packet, _ *[]byte, off, _ *int) { *off = 4000 }},
		{"frame beyond the chunk", 0, func(_ *flow, _ *packet.Packet, c *[]byte, _, _ *int) { *c = (*c)[:300] }},
		{"frame cut", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, n *int) { *n = int(p.End) - 1 }},
		{"IP header cut", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.L4 = p.L3 + 19 }},
		{"no Ethernet header", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.L3 = 4 }},
		{"TCP header cut", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Payload = p.L4 + 19 }},
		{"payload beyond the end", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Payload = p.End + 1 }},
		{"UDP header cut", 0, func(_ *flow, p *packet.Packet, _ *[]byte, _, _ *int) { p.Kind, p.End = packet.KindUDP, p.L4+7 }},
		{"no headroom", 'r', func(_ *flow, _ *packet.Packet, c *[]byte, off, _ *int) { *c, *off = (*c)[headroom-19:], 19 }},
		{"too long for 16 bits", 'r', func(_ *flow, p *packet.Packet, c *[]byte, _, n *int) {
			*c = append(*c, make([]byte, 1<<16)...)
			*n, p.End = 65530, 65530
		}},
	} {
		for _, d := range "fr" {
			if c.only != 0 && rune(c.only) != d {
				continue
			}
			t.Run(c.name+" "+string(d), func(t *testing.T) {
				f := flow64()
				s := f.fromServer(shape{ttl: 9, flags: packet.ACK, payload: []byte("x")})
				if d == 'f' {
					s = f.fromClient(shape{ttl: 9, flags: packet.ACK, payload: []byte("x")})
				}
				frame := s.frame()
				chunk := inChunk(frame, headroom)
				p := parse(t, frame)
				off, n := headroom, len(frame)
				var gotOff, gotN int
				var ok bool
				c.edit(f, &p, &chunk, &off, &n)
				was, before := p, slices.Clone(chunk)
				if d == 'f' {
					gotOff, gotN, ok = Forward64(chunk, off, n, &p, &f.e, &f.dir, 1)
				} else {
					gotOff, gotN, ok = Reply64(chunk, off, n, &p, &f.e, &f.dir)
				}
				if ok || gotOff != off || gotN != n || p != was || !slices.Equal(chunk, before) {
					t.Errorf("%v, or something changed", ok)
				}
			})
		}
	}
}

func TestRewrite64AllocatesNothing(t *testing.T) {
	f := flow64()
	f.e.SeqDelta = 77
	m := f.mirror()
	m.e.SeqDelta = 5
	for name, s := range map[string]shape{
		"tcp": {ttl: 200, flags: packet.ACK, opts: append(bytesOf(1, 2), 5, 10, 0, 0, 0, 1, 0, 0, 0, 2)},
		"udp": {ttl: 200, udp: true, payload: []byte("x")},
	} {
		s = f.fromClient(s)
		frame := s.frame()
		chunk := inChunk(frame, headroom)
		p := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			off, n, ok := Forward64(chunk, headroom, len(frame), &p, &f.e, &f.dir, 1)
			if !ok {
				panic("Forward64")
			}
			if off, _, ok = Reply64(chunk, off, n, &p, &m.e, &m.dir); !ok || off != headroom {
				panic("Reply64")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

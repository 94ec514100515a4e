package nat

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

const headroom = 256

// inChunk puts a frame into a chunk the way it is received, all other bytes
// being 0xee.
func inChunk(frame []byte, room int) []byte {
	c := bytesOf(0xee, 2048)
	copy(c[room:], frame)
	return c
}

func slowTOA(e *conntrack.Entry, kind byte) []byte {
	a := addrBytes(e.Client)
	return append([]byte{kind, byte(4 + len(a)), byte(e.ClientPort >> 8), byte(e.ClientPort)}, a...)
}

// slowSqueeze is what InsertTOA may do to options to make them fit.
func slowSqueeze(opts []byte, limit int) (out []byte, ok bool) {
	var each [][]byte
	if eachOption(opts, func(from, to int) { each = append(each, slices.Clone(opts[from:to])) }) >= 0 {
		return nil, false
	}
	for {
		out = slices.Concat(each...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
		if len(out) <= limit {
			return out, true
		}
		trimmed := false
		for i := len(each) - 1; i >= 0; i-- { // the last SACK option, should there be several
			if each[i][0] != 5 {
				continue
			}
			if len(each[i]) >= 18 {
				each[i] = each[i][:len(each[i])-8]
				each[i][1] -= 8
				trimmed = true
			}
			break
		}
		if !trimmed {
			return nil, false
		}
	}
}

// TestInsertTOATwin compares InsertTOA, followed by Forward, with packets built
// from scratch, and looks that nothing but the frame and its headroom changed.
func TestInsertTOATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		s := f.fromClient(drawShape(t, v6, false))
		mtu := rapid.SampledFrom([]int{1500, 1500, 100, 80, 0}).Draw(t, "mtu")
		room := rapid.SampledFrom([]int{headroom, headroom, 20, 7}).Draw(t, "room")
		frame := s.frame()
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p

		toa := slowTOA(&f.e, 254)
		limit := min(40, mtu-(p.IPLen()-len(s.opts))) - len(toa)
		want := s
		fits := true
		if len(s.opts) > limit {
			want.opts, fits = slowSqueeze(s.opts, limit)
		}
		off, n, res := InsertTOA(chunk, room, len(frame), &p, &f.e, 254, mtu)
		grow := len(toa) + len(want.opts) - len(s.opts)
		if !fits || grow > room {
			if res == TOAInserted || off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatalf("%v: %d %d", res, off, n)
			}
			return
		}
		want.opts = slices.Concat(toa, want.opts)
		want.pad = nil
		whole := want.frame()
		if short := min(60, len(frame)+grow) - len(whole); short > 0 {
			want.pad = make([]byte, short)
			whole = want.frame()
		}
		if res != TOAInserted || off != room-grow {
			t.Fatalf("%v at %d, want inserted at %d", res, off, room-grow)
		}
		got := chunk[off : off+n]
		if d := cmp.Diff(whole, got); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		if again := parse(t, got); again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
		if !Forward(got, &p, &f.e, &f.dir) {
			t.Fatal("Forward")
		}
		out := f.toServer(want)
		if d := cmp.Diff(out.frame(), got); d != "" {
			t.Fatalf("forwarded (-want +got):\n%s", d)
		}
		if !slices.Equal(chunk[:min(off, room)], before[:min(off, room)]) ||
			!slices.Equal(chunk[room+len(frame):], before[room+len(frame):]) {
			t.Fatal("wrote outside the frame")
		}
	})
}

// TestTOALayout is the option on the wire, byte for byte.
func TestTOALayout(t *testing.T) {
	for _, c := range []struct {
		name string
		f    *flow
		kind uint8
		opts []byte
		want string
	}{
		{"v4", flow4(conntrack.FullNAT), 254, nil, "fe08c001c6336407"},
		{"v4, another kind", flow4(conntrack.FullNAT), 252, nil, "fc08c001c6336407"},
		{"v4 before timestamps", flow4(conntrack.FullNAT), 254, []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8},
			"fe08c001c6336407" + "0101080a0102030405060708"},
		{"v6", flow6(conntrack.FullNAT), 254, nil, "fe14c00120010db8000900000000000000000007"},
		{"v6 before timestamps", flow6(conntrack.FullNAT), 254, []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8},
			"fe14c00120010db8000900000000000000000007" + "0101080a0102030405060708"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.f.fromClient(shape{ttl: 9, flags: packet.ACK, opts: c.opts, payload: []byte("GET /")})
			frame := s.frame()
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, res := InsertTOA(chunk, headroom, len(frame), &p, &c.f.e, c.kind, 1500)
			if res != TOAInserted {
				t.Fatal(res)
			}
			got := chunk[off : off+n]
			judge(t, got)
			if o := hex.EncodeToString(got[p.L4+20 : p.Payload]); o != c.want {
				t.Errorf("options %s, want %s", o, c.want)
			}
			if pay := string(got[p.Payload:p.End]); pay != "GET /" {
				t.Errorf("payload %q", pay)
			}
		})
	}
}

func TestInsertTOARefuses(t *testing.T) {
	full := append([]byte{30, 40}, make([]byte, 38)...)
	sack4 := append([]byte{1, 1, 5, 34}, make([]byte, 32)...)
	for _, c := range []struct {
		name string
		opts []byte
		mtu  int
		room int
		edit func(p *packet.Packet)
		want TOAResult
	}{
		{"fits", nil, 1500, 256, nil, TOAInserted},
		{"header is full", full, 1500, 256, nil, TOANoRoom},
		{"fourth SACK block goes", sack4, 1500, 256, nil, TOAInserted},
		{"padding goes", bytesOf(1, 40), 1500, 256, nil, TOAInserted},
		{"malformed options stay", []byte{30, 0, 0, 0}, 50, 256, nil, TOATooBig},
		{"malformed options in a full header", append([]byte{30, 0}, make([]byte, 38)...), 1500, 256, nil, TOANoRoom},
		{"exactly the MTU", nil, 53, 256, nil, TOAInserted},
		{"over the MTU", nil, 52, 256, nil, TOATooBig},
		{"no headroom", nil, 1500, 7, nil, TOANoHeadroom},
		{"not TCP", nil, 1500, 256, func(p *packet.Packet) { p.Kind = packet.KindUDP }, TOANoHeadroom},
		{"end beyond the frame", nil, 1500, 256, func(p *packet.Packet) { p.End = 1000 }, TOANoHeadroom},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			s := f.fromClient(shape{ttl: 9, flags: packet.ACK, opts: c.opts, payload: []byte("hello")})
			frame := s.frame()
			chunk := inChunk(frame, c.room)
			before := slices.Clone(chunk)
			p := parse(t, frame)
			if c.edit != nil {
				c.edit(&p)
			}
			was := p
			off, n, res := InsertTOA(chunk, c.room, len(frame), &p, &f.e, 254, c.mtu)
			if res != c.want {
				t.Fatalf("%v, want %v", res, c.want)
			}
			if res == TOAInserted {
				judge(t, chunk[off:off+n])
				return
			}
			if off != c.room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Error("something changed")
			}
		})
	}
}

func TestTOANeeded(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags conntrack.Flags
		tcp   uint8
		edit  func(e *conntrack.Entry, p *packet.Packet)
		want  bool
	}{
		{"handshake ACK", conntrack.HasServerISN, packet.ACK, nil, true},
		{"first request", conntrack.HasServerISN, packet.ACK | packet.PSH, nil, true},
		{"FIN", conntrack.HasServerISN, packet.ACK | packet.FIN, nil, true},
		{"IPv6", conntrack.HasServerISN | conntrack.V6Client, packet.ACK, nil, true},
		{"SYN", 0, packet.SYN, nil, false},
		{"SYN once the server answered", conntrack.HasServerISN, packet.SYN, nil, false},
		{"SYN-ACK", conntrack.HasServerISN, packet.SYN | packet.ACK, nil, false},
		{"RST", conntrack.HasServerISN, packet.RST, nil, false},
		{"RST-ACK", conntrack.HasServerISN, packet.RST | packet.ACK, nil, false},
		{"no ACK flag", conntrack.HasServerISN, packet.PSH, nil, false},
		{"before the SYN-ACK", 0, packet.ACK, nil, false},
		{"once server data is acknowledged", conntrack.HasServerISN | conntrack.ServerAcked, packet.ACK, func(_ *conntrack.Entry, p *packet.Packet) { p.Ack = 701 }, false},
		{"and then the handshake's ACK again", conntrack.HasServerISN | conntrack.ServerAcked, packet.ACK, func(_ *conntrack.Entry, p *packet.Packet) { p.Ack = 700 }, true},
		{"of a server that began anew", conntrack.ServerAcked, packet.ACK, func(_ *conntrack.Entry, p *packet.Packet) { p.Ack = 700 }, true},
		{"while that may be forged", conntrack.ServerAcked, packet.ACK, func(_ *conntrack.Entry, p *packet.Packet) { p.Ack = 300 }, true},
		{"DNAT", conntrack.HasServerISN, packet.ACK, func(e *conntrack.Entry, _ *packet.Packet) { e.Mode = conntrack.DNAT }, false},
		{"UDP", conntrack.HasServerISN, packet.ACK, func(_ *conntrack.Entry, p *packet.Packet) { p.Kind = packet.KindUDP }, false},
	} {
		e := conntrack.Entry{Mode: conntrack.FullNAT, Flags: c.flags, ServerNext: 700}
		p := packet.Packet{Kind: packet.KindTCP, TCPFlags: c.tcp}
		if c.edit != nil {
			c.edit(&e, &p)
		}
		if got := TOANeeded(&e, &p); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTOAResultString(t *testing.T) {
	want := []string{"toa_inserted", "toa_no_room", "toa_too_big", "toa_no_headroom", "toa_unknown"}
	for r := range NumTOAResults + 1 {
		if r.String() != want[r] {
			t.Errorf("%d: %q, want %q", r, r, want[r])
		}
	}
}

func TestTOALen(t *testing.T) {
	if n := TOALen(&flow4(conntrack.FullNAT).e); n != 8 {
		t.Errorf("v4: %d", n)
	}
	if n := TOALen(&flow6(conntrack.FullNAT).e); n != 20 {
		t.Errorf("v6: %d", n)
	}
}

func TestInsertTOAAllocatesNothing(t *testing.T) {
	f := flow6(conntrack.FullNAT)
	for name, opts := range map[string][]byte{"plain": nil, "squeezed": bytesOf(1, 40)} {
		s := f.fromClient(shape{flags: packet.ACK, opts: opts})
		frame := s.frame()
		chunk := inChunk(frame, headroom)
		good := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			p := good
			copy(chunk[headroom:], frame)
			if _, _, res := InsertTOA(chunk, headroom, len(frame), &p, &f.e, 254, 1500); res != TOAInserted {
				panic(res)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkInsertTOA4(b *testing.B) {
	f := flow4(conntrack.FullNAT)
	s := f.fromClient(shape{flags: packet.ACK})
	frame := s.frame()
	chunk := inChunk(frame, headroom)
	good := parse(b, frame)
	b.ReportAllocs()
	for b.Loop() {
		p := good
		copy(chunk[headroom:], frame)
		InsertTOA(chunk, headroom, len(frame), &p, &f.e, 254, 1500)
	}
}

// TestPlainTOATwin compares PlainTOA with InsertTOA wherever there is room.
func TestPlainTOATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFlow(t, false, false)
		s := f.fromClient(drawShape(t, false, false))
		frame := s.frame()
		p := parse(t, frame)
		if p.L4-p.L3 != packet.IPv4MinLen || p.Payload-p.L4 > packet.TCPMaxLen-PlainTOALen || p.IPLen() > 1500-PlainTOALen {
			return
		}
		kind := rapid.Uint8().Draw(t, "kind")
		if rapid.Bool().Draw(t, "odd checksums") {
			for _, at := range []int{int(p.L3) + packet.IPv4Checksum, int(p.L4) + packet.TCPChecksum} {
				binary.BigEndian.PutUint16(frame[at:], rapid.SampledFrom([]uint16{0, 1, 7, 8, 0xfffe, 0xffff}).Draw(t, "checksum"))
			}
		}
		want, got := inChunk(frame, headroom), inChunk(frame, headroom)
		q := p
		off, _, res := InsertTOA(want, headroom, len(frame), &q, &f.e, kind, 1500)
		if res != TOAInserted || off != headroom-PlainTOALen {
			t.Fatalf("%v at %d", res, off)
		}
		at := off + int(p.L3)
		PlainTOA((*[PlainTOALen + packet.IPv4MinLen + packet.TCPMinLen]byte)(got[at:]), &f.e, kind)
		if d := cmp.Diff(want[at:off+int(q.End)], got[at:off+int(q.End)]); d != "" {
			t.Fatalf("(-InsertTOA +PlainTOA):\n%s", d)
		}
		if !slices.Equal(got[:at], inChunk(frame, headroom)[:at]) {
			t.Fatal("wrote before the headers")
		}
	})
}

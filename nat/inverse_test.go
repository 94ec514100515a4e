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

// inverse is the flow whose Forward undoes f's Forward and whose Reply undoes f's
// Reply: client and local address, VIP and server have changed places, and numbers
// move the other way.
func (f *flow) inverse() *flow {
	vip, rs := f.dir.Services[f.e.Service], f.dir.Backends[f.e.Backend]
	m := &flow{e: conntrack.Entry{Client: f.e.Client, ClientPort: f.e.ClientPort, Proto: f.e.Proto, Mode: f.e.Mode, SeqDelta: -f.e.SeqDelta}}
	m.dir = conntrack.Directory{Services: []conntrack.Endpoint{rs}, Backends: []conntrack.Endpoint{vip}}
	if f.e.Mode == conntrack.FullNAT {
		m.e.Client, m.e.ClientPort, m.e.LocalPort = f.dir.Locals[f.e.Local], f.e.LocalPort, f.e.ClientPort
		m.dir.Locals = []packet.Addr{f.e.Client}
	}
	if !Prepare(&m.e, &m.dir) {
		panic("Prepare")
	}
	return m
}

// drawAny is a packet of any alignment, options in any order, perhaps malformed,
// one in four with a SACK option at an odd offset.
func drawAny(t *rapid.T, v6, udp bool) shape {
	s := drawShape(t, v6, udp)
	if !udp && rapid.IntRange(0, 3).Draw(t, "odd SACK") == 0 {
		s.opts = append([]byte{1, 5, 18}, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil,
			uint64(edgy(t, "edge 1"))<<32|uint64(edgy(t, "edge 2"))), uint64(edgy(t, "edge 3"))<<32|uint64(edgy(t, "edge 4")))...)
		s.opts = append(s.opts, 4, 2, 3, 3, 7)
		s.flags |= packet.ACK
	}
	s.ttl = uint8(rapid.IntRange(10, 255).Draw(t, "hops left"))
	return s
}

// pass is one rewrite of a frame, judged.
func pass(t rapid.TB, name string, fn rewriter, f *flow, frame []byte) {
	t.Helper()
	p := parse(t, frame)
	if !fn(frame, &p, &f.e, &f.dir) {
		t.Fatalf("%s refused % x", name, frame)
	}
	judgeRaw(t, frame)
}

// TestThereAndBack: a packet that went through Forward, or Reply, and then through
// the inverse is the packet it was, but for its TTL, whatever the difference of
// sequence numbers, and wherever a SACK block lies.
func TestThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		m := f.inverse()
		for _, way := range []struct {
			name string
			fn   rewriter
			s    shape
		}{
			{"Forward", Forward, f.fromClient(drawAny(t, v6, udp))},
			{"Reply", Reply, f.fromServer(drawAny(t, v6, udp))},
		} {
			frame := way.s.frame()
			pass(t, way.name, way.fn, f, frame)
			pass(t, "inverse "+way.name, way.fn, m, frame)
			way.s.ttl -= 2
			if d := cmp.Diff(way.s.frame(), frame); d != "" {
				t.Fatalf("%s (-want +got):\n%s", way.name, d)
			}
		}
	})
}

// TestForwardThenReply: in Full-NAT the Reply of the mirrored flow gives the
// addresses of a forwarded packet back, having moved its acknowledgement and SACK
// blocks as Forward did its sequence number; once more with the differences
// negated, and it is the packet it was.
func TestForwardThenReply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		f.e.Mode = conntrack.FullNAT
		Prepare(&f.e, &f.dir)
		m := f.mirror()
		m.e.SeqDelta = edgy(t, "mirror's delta")
		s := f.fromClient(drawAny(t, v6, udp))
		frame := s.frame()
		pass(t, "Forward", Forward, f, frame)
		pass(t, "Reply", Reply, m, frame)
		want := s
		want.ttl -= 2
		if !udp {
			want.seq += f.e.SeqDelta
			if s.flags&packet.ACK != 0 {
				want.ack, want.opts = s.ack-m.e.SeqDelta, slowShift(s.opts, -m.e.SeqDelta)
			}
		}
		if d := cmp.Diff(want.frame(), frame); d != "" {
			t.Fatalf("half way (-want +got):\n%s", d)
		}
		f.e.SeqDelta, m.e.SeqDelta = -f.e.SeqDelta, -m.e.SeqDelta
		pass(t, "Forward", Forward, f, frame)
		pass(t, "Reply", Reply, m, frame)
		s.ttl -= 4
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestNumbersComeBack: a server that acknowledges, and reports in SACK blocks, the
// numbers that it was sent, acknowledges to the client the numbers that this has
// sent; NAT64 too.
func TestNumbersComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, six4 := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "NAT64")
		f := drawFlow(t, v6, false)
		if six4 {
			f = drawFlow64(t, false)
		}
		var sent, seen [5]uint32 // acknowledged, then two SACK blocks
		for i := range sent {
			sent[i] = edgy(t, "seq")
			s := f.fromClient(shape{ttl: 9, flags: packet.ACK, seq: sent[i]})
			_, p := there(t, f, s.frame(), six4)
			seen[i] = p.Seq
		}
		back := f.fromServer(shape{ttl: 9, flags: packet.ACK, ack: seen[0]})
		back.opts = bytesOf(1, rapid.IntRange(0, 3).Draw(t, "NOPs"))
		back.opts = append(back.opts, 5, 18)
		for _, edge := range seen[1:] {
			back.opts = binary.BigEndian.AppendUint32(back.opts, edge)
		}
		for len(back.opts)%4 != 0 {
			back.opts = append(back.opts, 0)
		}
		frame, p := there(t, f, back.frame(), six4)
		got := [5]uint32{p.Ack}
		at := int(packet.ScanOptions(frame, &p).SACKOff)
		if at == 0 {
			t.Fatal("no SACK option")
		}
		for i := range got[1:] {
			got[1+i] = binary.BigEndian.Uint32(frame[at+2+4*i:])
		}
		if got != sent {
			t.Fatalf("sent %d, acknowledged %d", sent, got)
		}
	})
}

// there rewrites a packet of either end for the other.
func there(t rapid.TB, f *flow, frame []byte, six4 bool) ([]byte, packet.Packet) {
	t.Helper()
	p := parse(t, frame)
	off, n := headroom, len(frame)
	var ok bool
	chunk := inChunk(frame, headroom)
	client := p.Src == f.e.Client && p.SrcPort == f.e.ClientPort
	switch {
	case six4 && client:
		off, n, ok = Forward64(chunk, off, n, &p, &f.e, &f.dir, 1)
	case six4:
		off, n, ok = Reply64(chunk, off, n, &p, &f.e, &f.dir)
	case client:
		ok = Forward(chunk[off:off+n], &p, &f.e, &f.dir)
	default:
		ok = Reply(chunk[off:off+n], &p, &f.e, &f.dir)
	}
	if !ok {
		t.Fatal("refused")
	}
	judgeRaw(t, chunk[off:off+n])
	return chunk[off : off+n], parse(t, chunk[off:off+n])
}

// TestTOAInAndOut: a packet that got TOA, went to the server and has TOA taken out
// there is the client's packet, all other options in their order. Where they had to
// make room, what is missing is padding, and SACK blocks but the first.
func TestTOAInAndOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		m := f.inverse()
		s := f.fromClient(drawAny(t, v6, false))
		frame := s.frame()
		chunk := inChunk(frame, headroom)
		p := parse(t, frame)
		kind := rapid.SampledFrom([]byte{254, 252}).Draw(t, "kind")
		off, n, res := InsertTOA(chunk, headroom, len(frame), &p, &f.e, kind, 1500)
		if res != TOAInserted {
			return
		}
		got := chunk[off : off+n]
		judgeRaw(t, got)
		if !Forward(got, &p, &f.e, &f.dir) {
			t.Fatal("refused")
		}
		judgeRaw(t, got)
		p = parse(t, got)
		toa, at := slowTOA(&f.e, kind), int(p.L4)+packet.TCPMinLen
		if !slices.Equal(got[at:at+len(toa)], toa) {
			t.Fatalf("TOA is % x, want % x", got[at:at+len(toa)], toa)
		}
		left := slices.Clone(got[at+len(toa) : p.Payload])
		sameOptions(t, s.opts, left)
		frame = without(got[:p.End], &p, at, len(toa))
		pass(t, "inverse Forward", Forward, m, frame)
		s.pad, s.ttl = nil, s.ttl-2
		if len(left) != len(s.opts) {
			s.opts = left // compared above
		}
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// without is a TCP frame with n bytes of options taken out, all lengths and
// checksums made anew.
func without(frame []byte, p *packet.Packet, at, n int) []byte {
	out := slices.Delete(slices.Clone(frame), at, at+n)
	out[p.L4+packet.TCPOffset] -= byte(n / 4 << 4)
	d := out[p.L3:]
	length := d[packet.IPv4TotalLen:]
	if p.V6 {
		length = d[packet.IPv6PayloadLen:]
	}
	binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)-uint16(n))
	recompute(d, int(p.L4-p.L3), packet.ProtoTCP, false)
	return out
}

// sameOptions compares two lists of TCP options, padding apart.
func sameOptions(t rapid.TB, want, got []byte) {
	t.Helper()
	list := func(b []byte) (out [][]byte) {
		if bad := eachOption(b, func(from, to int) { out = append(out, b[from:to]) }); bad >= 0 {
			out = append(out, b[bad:])
		}
		return out
	}
	w, g := list(want), list(got)
	if len(w) != len(g) {
		t.Fatalf("options % x, want % x", g, w)
	}
	for i := range w {
		cut := len(want) != len(got) && w[i][0] == packet.OptSACK && len(g[i]) >= 10 && len(g[i]) < len(w[i]) && (len(w[i])-len(g[i]))%8 == 0
		if cut && slices.Equal(w[i][2:len(g[i])], g[i][2:]) && int(g[i][1]) == len(g[i]) {
			continue
		}
		if !slices.Equal(w[i], g[i]) {
			t.Fatalf("option % x, want % x", g[i], w[i])
		}
	}
}

// TestOptionsJudged: whatever is done to the options of whatever packet, gopacket
// computes the same checksum.
func TestOptionsJudged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		s := drawFlow(t, v6, false).fromClient(drawAny(t, v6, false))
		if rapid.Bool().Draw(t, "SYN") {
			s.flags |= packet.SYN
		}
		frame := s.frame()
		p := parse(t, frame)
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 5), 1, 6).Draw(t, "steps") {
			switch step {
			case 0:
				LowerMSS(frame, &p, rapid.Uint16().Draw(t, "by"))
			case 1:
				ClampMSS(frame, &p, rapid.Uint16().Draw(t, "most"))
			case 2:
				StripOptions(frame, &p, packet.OptTOA, packet.OptTimestamps, packet.OptFastOpen)
			case 3:
				StripOption(frame, &p, rapid.SampledFrom([]byte{254, 8, 5, 30, 77}).Draw(t, "kind"))
			case 4:
				ShiftTimestamps(frame, &p, conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction")), edgy(t, "clock"))
			case 5:
				frame = frame[:CutSYN(frame, &p)]
			}
			judgeRaw(t, frame)
		}
	})
}

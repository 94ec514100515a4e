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

// pend brings the flow's entry to where the client's data begins at start and the
// server has not acknowledged the header; sent is how much data there was.
func (f *flow) pend(start, sent uint32) {
	f.e.State, f.e.Flags = conntrack.Established, f.e.Flags|conntrack.HasServerISN
	f.e.ServerNext = 500
	f.e.Win[conntrack.Forward].End, f.e.Win[conntrack.Reply].End = start+sent, 600
	f.e.Created = start + f.e.SeqDelta
}

// withUrgent is s as a frame, with another urgent pointer.
func withUrgent(s *shape, urgent uint16) []byte {
	frame := s.frame()
	end := len(frame) - len(s.pad)
	d := frame[end-len(s.datagram()) : end]
	l4 := 40
	if s.src.Is4() {
		l4 = 20 + len(s.ipOpts)
	}
	binary.BigEndian.PutUint16(d[l4+18:], urgent)
	recompute(d, l4, 6, false)
	return frame
}

// TestInsertProxyTwin compares what becomes of any client's packet of a flow whose
// header is on its way with packets built from scratch.
func TestInsertProxyTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		f.e.Mode = conntrack.FullNAT
		Prepare(&f.e, &f.dir)
		start := edgy(t, "start")
		f.e.SeqDelta = ProxyDelta(edgy(t, "server's ISN"), start-1)
		f.pend(start, 1000)
		s := f.fromClient(drawShape(t, v6, false))
		at := rapid.SampledFrom([]int{0, 0, 0, 1, 2, 1000, -1, -2, -20, -40, 1 << 30, -1 << 30}).Draw(t, "from start")
		s.seq = start + uint32(at)
		if rapid.Bool().Draw(t, "usual") {
			s.flags = s.flags&^(packet.SYN|packet.RST) | packet.ACK
		}
		mtu := rapid.SampledFrom([]int{1500, 1500, 1500, 150, 0}).Draw(t, "mtu")
		room := rapid.SampledFrom([]int{headroom, headroom, 104, 40, 7}).Draw(t, "room")
		version := ProxyVersion(rapid.IntRange(1, 2).Draw(t, "version"))
		header := make([]byte, ProxyLen(&f.e, &f.dir, version))
		putProxy(header, &f.e, &f.dir, version)

		frame := s.frame()
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was, e := p, f.e
		off, n, res := InsertProxy(chunk, room, len(frame), &p, &f.e, &f.dir, version, mtu)

		syn, rst, ack := s.flags&2 != 0, s.flags&4 != 0, s.flags&16 != 0
		size := len(s.payload)
		if s.flags&1 != 0 {
			size++
		}
		if syn {
			size++
		}
		want, wantRes, urgent := s, ProxyUntouched, uint16(0x1234)
		switch {
		case syn && len(s.payload) > 0, at < 0 && !syn && at+size > 0, rst && at == 0 && !ack && len(s.payload) > 0:
			wantRes = ProxyEarly
		case syn:
			wantRes = ProxyProbe
			want.seq, want.ack, want.flags, want.opts = start-1<<16, 600, 16, bytesOf(1, len(s.opts))
		case at < 0, rst && at == 0 && !ack:
		case at > 0, rst:
			wantRes = ProxyShifted
			want.seq += uint32(len(header))
		case was.IPLen()+len(header) > mtu:
			wantRes = ProxyTooBig
		case room < len(header):
			wantRes = ProxyNoHeadroom
		default:
			wantRes = ProxyInserted
			want.payload = slices.Concat(header, s.payload)
			want.pad = nil
			if s.flags&32 != 0 {
				urgent += uint16(len(header))
			}
			if short := min(60, len(frame)+len(header)) - len(want.frame()); short > 0 {
				want.pad = make([]byte, short)
			}
		}
		if res != wantRes || e != f.e {
			t.Fatalf("%v at %d, want %v", res, at, wantRes)
		}
		if res.Drop() {
			if off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatal("changed")
			}
			return
		}
		got := chunk[off : off+n]
		judgeRaw(t, got)
		if d := cmp.Diff(withUrgent(&want, urgent), got); d != "" {
			t.Fatalf("%v (-want +got):\n%s", res, d)
		}
		if again := parse(t, got); again != p {
			t.Fatalf("%v (-parsed +updated):\n%s", res, cmp.Diff(again, p))
		}
		if !slices.Equal(chunk[:min(off, room)], before[:min(off, room)]) || !slices.Equal(chunk[room+len(frame):], before[room+len(frame):]) {
			t.Fatal("wrote outside the frame")
		}
	})
}

// TestInsertProxyDamaged: a packet damaged on its way stays so, at either parity.
func TestInsertProxyDamaged(t *testing.T) {
	for _, version := range []ProxyVersion{ProxyV1, ProxyV2} {
		for _, port := range []uint16{9999, 10000} { // an even and an odd header
			f := flow4(conntrack.FullNAT)
			f.e.ClientPort = port
			f.pend(1000, 0)
			s := f.fromClient(shape{ttl: 9, flags: packet.ACK, seq: 1000, payload: []byte("GET / HTTP/1.0")})
			frame := s.frame()
			frame[len(frame)-3] ^= 0x40
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			off, n, res := InsertProxy(chunk, headroom, len(frame), &p, &f.e, &f.dir, version, 1500)
			if res != ProxyInserted || packet.VerifyL4(chunk[off:off+n], &p) {
				t.Errorf("version %d, port %d: %v, healed", version, port, res)
			}
		}
	}
}

// TestInsertProxyPhases is the table of what happens outside the phase in which
// the header is on its way.
func TestInsertProxyPhases(t *testing.T) {
	for _, c := range []struct {
		name    string
		state   conntrack.State
		word    uint32
		flags   uint8
		seq     uint32
		payload string
		edit    func(f *flow, p *packet.Packet)
		version ProxyVersion
		want    ProxyResult
	}{
		{name: "SYN", state: conntrack.SynSent, flags: packet.SYN, seq: 999, want: ProxyUntouched},
		{name: "SYN with data", state: conntrack.SynSent, flags: packet.SYN, seq: 999, payload: "x", want: ProxyEarly},
		{name: "another SYN", state: conntrack.SynRecv, flags: packet.SYN, seq: 7, want: ProxyProbe},
		{name: "ACK that does not fit", state: conntrack.SynRecv, flags: packet.ACK, seq: 1000, want: ProxyUntouched},
		{name: "data before the handshake", state: conntrack.SynRecv, flags: packet.ACK, seq: 1000, payload: "x", want: ProxyEarly},
		{name: "FIN before the handshake", state: conntrack.SynSent, flags: packet.ACK | packet.FIN, seq: 1000, want: ProxyEarly},
		{name: "done", state: conntrack.Established, flags: packet.ACK, seq: 1000, payload: "x", want: ProxyUntouched},
		{name: "SYN when done", state: conntrack.Established, flags: packet.SYN, seq: 5, want: ProxyProbe},
		{name: "closed while on its way", state: conntrack.Closed, word: 1000, flags: packet.ACK, seq: 1000, payload: "x", want: ProxyInserted},
		{name: "UDP", state: conntrack.Established, word: 1000, edit: func(_ *flow, p *packet.Packet) { p.Kind = packet.KindUDP }, want: ProxyRefused},
		{name: "DNAT", state: conntrack.Established, word: 1000, edit: func(f *flow, _ *packet.Packet) { f.e.Mode = conntrack.DNAT }, want: ProxyRefused},
		{name: "header cut", state: conntrack.Established, word: 1000, edit: func(_ *flow, p *packet.Packet) { p.Payload = p.L4 }, want: ProxyRefused},
		{name: "frame cut", state: conntrack.Established, word: 1000, edit: func(_ *flow, p *packet.Packet) { p.End = 2000 }, want: ProxyRefused},
		{name: "no such version", state: conntrack.Established, word: 1000, flags: packet.ACK, seq: 1000, version: 9, want: ProxyRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			f.pend(1000, 0)
			f.e.State, f.e.Created = c.state, c.word
			s := f.fromClient(shape{ttl: 9, flags: c.flags, seq: c.seq, payload: []byte(c.payload)})
			frame := s.frame()
			p := parse(t, frame)
			if c.edit != nil {
				c.edit(f, &p)
			}
			if c.version == 0 {
				c.version = ProxyV2
			}
			if _, _, res := InsertProxy(inChunk(frame, headroom), headroom, len(frame), &p, &f.e, &f.dir, c.version, 1500); res != c.want {
				t.Errorf("%v, want %v", res, c.want)
			}
		})
	}
	if ProxyResult(77).String() != "proxy_unknown" || !ProxyResult(77).Drop() || ProxyInserted.String() != "proxy_inserted" || !ProxyRefused.Drop() {
		t.Error("results")
	}
}

// TestCutSYNTwin compares with the same SYN built without data and cookie.
func TestCutSYNTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		s := drawFlow(t, v6, false).fromClient(drawShape(t, v6, false))
		if rapid.Bool().Draw(t, "cookie") {
			s.opts = []byte{1, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1}
		}
		frame := s.frame()
		p := parse(t, frame)
		n := CutSYN(frame, &p)
		want := s
		if s.flags&2 != 0 {
			want.opts = slowStrip(s.opts, 34)
			if len(s.payload) > 0 {
				want.payload, want.pad = nil, nil
				want.pad = make([]byte, max(0, min(60, len(frame))-len(want.frame())))
			}
		}
		if d := cmp.Diff(want.frame(), frame[:n]); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		if again := parse(t, frame[:n]); again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
	})
}

// TestProxyReplyTwin compares a server's packet, in every phase and with any
// acknowledgement and SACK blocks, with one built from scratch.
func TestProxyReplyTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		start := edgy(t, "start")
		f.e.SeqDelta = ProxyDelta(edgy(t, "server's ISN"), start-1)
		there := start + f.e.SeqDelta // towards the server
		const sent = 1000
		f.pend(start, sent)
		size := rapid.SampledFrom([]int{28, 44, 52, 103}).Draw(t, "size")
		scaled := rapid.Bool().Draw(t, "scaled")
		if scaled {
			f.e.Flags |= conntrack.WindowScaled
			f.e.WScale[conntrack.Reply] = uint8(rapid.SampledFrom([]int{0, 1, 7, 14}).Draw(t, "scale"))
		}
		phase := rapid.SampledFrom([]string{"syn sent", "syn recv", "pending", "pending", "done"}).Draw(t, "phase")
		near := []int{0, 0, -1, -100, 1, size - 1, size, size + 1, size + sent, size + sent + 1, 1 << 30, -1 << 30}
		s := drawShape(t, v6, false)
		switch phase {
		case "syn sent":
			f.e.State = conntrack.SynSent
		case "syn recv":
			f.e.State = conntrack.SynRecv
		case "done":
			f.e.Created = 0
		}
		if phase[0] == 's' {
			f.e.Win[conntrack.Forward].End = start
		}
		s.seq = rapid.SampledFrom([]uint32{499, 499, 77}).Draw(t, "seq")
		into := rapid.SampledFrom(near).Draw(t, "ack")
		s.ack = there + uint32(into)
		if rapid.Bool().Draw(t, "SACK") {
			a, b := rapid.SampledFrom(near).Draw(t, "left"), rapid.SampledFrom(near).Draw(t, "right")
			s.opts = binary.BigEndian.AppendUint32([]byte{5, 10}, there+uint32(a))
			s.opts = append(binary.BigEndian.AppendUint32(s.opts, there+uint32(b)), 1, 1)
			if rapid.Bool().Draw(t, "odd") {
				s.opts = slices.Concat([]byte{1}, s.opts[:11])
			}
		}
		s = f.fromServer(s)
		frame := s.frame()
		p := parse(t, frame)
		e := f.e
		ok := ProxyReply(frame, &p, &f.e, size)

		syn, rst, ack := s.flags&2 != 0, s.flags&4 != 0, s.flags&16 != 0
		if wantOK := !syn || s.seq == 499 || phase[0] == 's'; ok != wantOK {
			t.Fatalf("%v", ok)
		}
		want, limit, window := s, size, 0x2000
		flip := phase == "pending" && ack && !rst && ok && into >= size && into <= size+sent
		touched := ok && ack && !flip && phase != "done" && (phase != "syn sent" || into == 0)
		if touched {
			if phase == "syn recv" {
				limit = max(size, into)
			}
			show := func(edge uint32) uint32 {
				d := int(int32(edge - there))
				return there + uint32(d-min(max(d, 0), limit))
			}
			want.ack = show(s.ack)
			want.opts = slices.Clone(s.opts)
			eachOption(s.opts, func(from, to int) {
				for j := from + 2; s.opts[from] == 5 && j+4 <= to; j += 4 {
					binary.BigEndian.PutUint32(want.opts[j:], show(binary.BigEndian.Uint32(s.opts[j:])))
				}
			})
			taken := limit - min(max(into, 0), limit)
			unit := 1
			if scaled && !syn {
				unit = 1 << e.WScale[conntrack.Reply]
			}
			window -= (taken + unit - 1) / unit
		}
		out := want.frame()
		l4 := int(p.L4)
		d := out[p.L3 : len(out)-len(want.pad)]
		binary.BigEndian.PutUint16(out[l4+14:], uint16(window))
		recompute(d, l4-int(p.L3), 6, false)
		if diff := cmp.Diff(out, frame); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if again := parse(t, frame); again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
		if flip {
			e.SeqDelta += uint32(size)
			e.Created = 0
		}
		if e != f.e {
			t.Fatalf("entry (-want +got):\n%s", cmp.Diff(e, f.e, cmp.AllowUnexported(conntrack.Entry{})))
		}
	})
}

func TestProxyReplyRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		size int
		edit func(p *packet.Packet)
	}{
		{"no header", 0, func(*packet.Packet) {}},
		{"UDP", 44, func(p *packet.Packet) { p.Kind = packet.KindUDP }},
		{"frame cut", 44, func(p *packet.Packet) { p.Payload = 900 }},
		{"header cut", 44, func(p *packet.Packet) { p.Payload = p.L4 + 19 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			f.pend(1000, 10)
			s := f.fromServer(shape{ttl: 9, flags: packet.ACK, seq: 600, ack: 1044})
			frame := s.frame()
			p := parse(t, frame)
			c.edit(&p)
			if ProxyReply(frame, &p, &f.e, c.size) || ProxyDone(&f.e) {
				t.Error("accepted")
			}
		})
	}
}

// TestProxyNumbers: a number comes back from the server as it went there, and the
// header shows as its start.
func TestProxyNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start, size := edgy(t, "start"), rapid.Uint32Range(1, MaxProxyLen).Draw(t, "size")
		k := rapid.Uint32Range(1, 1<<30).Draw(t, "k")
		for seq, there := range map[uint32]uint32{start + k: start + k + size, start: start, start - k: start - k} {
			if got := ProxyAck(there, start, size); got != seq {
				t.Fatalf("%d became %d", seq-start, got-start)
			}
		}
		if got := ProxyAck(start+min(k, size), start, size); got != start {
			t.Fatalf("inside the header: %d", got-start)
		}
		isn, seq := edgy(t, "isn"), edgy(t, "seq")
		if got := seq + ProxyDelta(isn, seq); got != isn && (isn != 1<<32-1 || got != 0) {
			t.Fatalf("%d became %d", isn, got)
		}
	})
}

// TestProxyErrorTwin: an error about a packet on its way to the server, corrected
// and translated, embeds what the client sent.
func TestProxyErrorTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		f.e.Mode = conntrack.FullNAT
		f.e.Flags |= conntrack.HasServerISN | conntrack.ServerAcked // else the MTU is lowered for TOA too
		Prepare(&f.e, &f.dir)
		start := edgy(t, "start")
		f.e.SeqDelta = ProxyDelta(edgy(t, "server's ISN"), start-1)
		f.pend(start, 1000)
		size := rapid.SampledFrom([]int{28, 43, 104}).Draw(t, "size")
		at := rapid.SampledFrom([]int{0, 0, 1, 900, -1, 1 << 29}).Draw(t, "from start")
		s := shape{ttl: 9, flags: packet.ACK, seq: start + uint32(at), ack: 7, payload: bytesOf(7, 30)}
		orig := f.fromClient(s)
		shifted := s
		if at > 0 {
			shifted.seq += uint32(size)
		}
		done := rapid.IntRange(0, 4).Draw(t, "done") == 0
		if done {
			f.e.Created = 0
			shifted.seq = s.seq // whoever is done has all in SeqDelta
		}
		sent := f.toServer(f.fromClient(shifted))
		cut := rapid.SampledFrom([]int{len(sent.datagram()) - 30, len(sent.datagram()) - 42, len(sent.datagram()), len(sent.datagram()) - 17}).Draw(t, "embedded bytes")
		in := icmpError{src: f.dir.Backends[0].Addr, dst: sent.src, ttl: 64}
		drawError(t, &in, v6)
		want := in
		want.src, want.dst = f.dir.Services[0].Addr, f.e.Client
		want.ttl--
		orig.ttl--
		if cut == len(sent.datagram())-42 { // without flags no ACK is known to be one
			orig.ack = sent.ack
		}
		in.inner, want.inner = sent.datagram()[:cut], orig.datagram()[:cut]
		tooBig, least := in.kind == 3 && in.code == 4, 68
		if v6 {
			tooBig, least = in.kind == 2, 1280
		}
		if tooBig && at == 0 && !done && int(in.rest) > least {
			want.rest = uint32(max(int(in.rest)-size, least))
		}
		frame := in.frame()
		p := parse(t, frame)
		ProxyError(frame, &p, &f.e, size)
		if again := parse(t, frame); again != p {
			t.Fatal("p is not true any more")
		}
		if !TranslateError(frame, &p, &f.e, conntrack.Reply, &f.dir, TOARoom(&f.e)) {
			t.Fatal("refused")
		}
		if d := cmp.Diff(want.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

func TestProxyAllocatesNothing(t *testing.T) {
	f := flow6(conntrack.FullNAT)
	f.pend(1000, 0)
	s := f.fromClient(shape{ttl: 9, flags: packet.ACK, seq: 1000, payload: []byte("GET")})
	frame := s.frame()
	chunk := inChunk(frame, headroom)
	p := parse(t, frame)
	back := f.fromServer(shape{ttl: 9, flags: packet.ACK, seq: 600, ack: 1000, opts: []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2}})
	reply := back.frame()
	q := parse(t, reply)
	b := make([]byte, MaxProxyLen)
	for _, version := range []ProxyVersion{ProxyV1, ProxyV2} {
		if n := testing.AllocsPerRun(100, func() {
			copy(chunk[headroom:], frame)
			r := p
			CutSYN(chunk[headroom:headroom+len(frame)], &r)
			MarkProxy(&f.e).Tracked(&f.e)
			if _, _, res := InsertProxy(chunk, headroom, len(frame), &r, &f.e, &f.dir, version, 1500); res != ProxyInserted {
				panic(res)
			}
			if !ProxyReply(reply, &q, &f.e, putProxy(b, &f.e, &f.dir, version)) || ProxyDone(&f.e) {
				panic("reply")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

package nat

import (
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// flowFor64 makes a flow that the packet would be found for, the direction given by
// its family, with fixed addresses on the other side.
func flowFor64(p *packet.Packet, delta uint32) *flow {
	f := flow64()
	f.e.Proto, f.e.SeqDelta, f.e.Flags = p.Proto, delta, conntrack.HasServerISN
	if p.V6 {
		f.e.Client, f.e.ClientPort = p.Src, p.SrcPort
		f.dir.Services[1].Addr, f.dir.Services[1].Port = p.Dst, p.DstPort
	} else {
		f.dir.Backends[2].Addr, f.dir.Backends[2].Port = p.Src, p.SrcPort
		f.dir.Locals[1], f.e.LocalPort = p.Dst, p.DstPort
	}
	Prepare(&f.e, &f.dir)
	return f
}

// through64 does to the frame what would be done to it in the dataplane; how says
// what of what is optional.
func through64(chunk []byte, off, n int, p *packet.Packet, f *flow, how byte) (newOff, newLen int, ok bool) {
	switch {
	case p.Kind == packet.KindICMPError:
		d := conntrack.Reply
		if p.V6 {
			d = conntrack.Forward
		}
		off, n, res := TranslateError64(chunk, off, n, p, &f.e, d, &f.dir, 1, int(how)<<8, TOARoom(&f.e))
		return off, n, res == Error64Translated
	case p.V6:
		if how&1 != 0 && TOANeeded(&f.e, p) {
			off, n, _ = InsertTOA(chunk, off, n, p, &f.e, packet.OptTOA, 1500-Growth64(p))
		}
		off, n, ok = Forward64(chunk, off, n, p, &f.e, &f.dir, 1)
		if ok && how&2 != 0 && TOANeeded(&f.e, p) {
			off, n, _ = InsertTOA(chunk, off, n, p, &f.e, packet.OptTOA, 1500)
		}
		return off, n, ok
	}
	LowerMSS(chunk[off:off+n], p, MSSCut64(TOALen(&f.e)))
	return Reply64(chunk, off, n, p, &f.e, &f.dir)
}

// FuzzNAT64 sends any packet that Parse accepts through NAT64. Nothing panics, only
// the frame, what it grows by (TOA for a while too) and 20 bytes behind it change, what comes out can be
// parsed and p tells the truth of it, and checksums that were right are right again.
func FuzzNAT64(f *testing.F) {
	for _, s := range append(seeds(), seeds64(f)...) {
		f.Add(s, uint32(0x89abcdef), byte(1))
		f.Add(s, uint32(0), byte(2))
	}
	f.Fuzz(func(t *testing.T, frame []byte, delta uint32, how byte) {
		var p packet.Packet
		if len(frame) > 1600 || packet.Parse(slices.Clone(frame), &p) != packet.ErrNone {
			return
		}
		good := packet.VerifyIPv4(frame, &p) && packet.VerifyL4(frame, &p)
		kind, v6 := p.Kind, p.V6
		fl := flowFor64(&p, delta)
		chunk := inChunk(frame, headroom)
		off, n, ok := through64(chunk, headroom, len(frame), &p, fl, how)
		for i, c := range chunk {
			if c != 0xee && (i < min(off, headroom)-toaLen6 || i >= headroom+len(frame)+20) {
				t.Fatalf("byte %d of the chunk changed; frame at %d..%d", i, off, off+n)
			}
		}
		if !ok {
			if kind == packet.KindTCP || kind == packet.KindUDP {
				t.Fatal("refused")
			}
			return
		}
		out := chunk[off : off+n]
		var q packet.Packet
		if err := packet.Parse(out, &q); err != packet.ErrNone {
			t.Fatalf("leaves unparsable: %v\n% x", err, out)
		}
		q.Tuple, q.Seq, q.Ack = p.Tuple, p.Seq, p.Ack
		if q != p || q.V6 == v6 {
			t.Fatalf("parsed %+v, updated %+v", q, p)
		}
		if good && (!packet.VerifyIPv4(out, &q) || !packet.VerifyL4(out, &q)) {
			t.Fatalf("checksum\n% x\n% x", frame, out)
		}
	})
}

// seeds64 are what seeds has not: extension headers, IPv4 options, UDP without
// checksum, long errors, errors with extensions.
func seeds64(tb testing.TB) [][]byte {
	f := flow64()
	a := shape64{shape: f.fromClient(shape{ttl: 9, flags: packet.ACK, payload: []byte("abc")})}
	a.extend(0)
	a.extend(43)
	a.extend(44)
	b := shape64{shape: f.fromServer(shape{ttl: 9, udp: true, noCsum: true, payload: []byte("abc"), ipOpts: bytesOf(1, 8)})}
	all := [][]byte{a.frame64(tb), b.frame64(tb)}
	for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
		chunk, p, _ := benchError64(tb, d)
		all = append(all, chunk[headroom:headroom+int(p.End)])
		for _, r := range rows64 {
			if r.dir == d {
				_, seen := f.quoted64(tb, shape64{shape: shape{ttl: 9, flags: packet.ACK, payload: bytesOf(1, 700)}}, d)
				m := about64(f, d)
				m.kind, m.code, m.rest, m.inner = r.kind, r.code, r.rest, seen.whole(tb)
				all = append(all, m.frame64(tb))
			}
		}
	}
	return all
}

// FuzzNAT64Offsets tries it all with offsets, lengths and a Packet that agree with
// nothing.
func FuzzNAT64Offsets(f *testing.F) {
	f.Add(256, 200, uint16(14), uint16(54), uint16(74), uint16(114), uint16(200), byte(packet.KindTCP), true, byte(3))
	f.Add(0, 60, uint16(14), uint16(34), uint16(54), uint16(54), uint16(0), byte(packet.KindUDP), false, byte(0))
	f.Add(40, 300, uint16(18), uint16(38), uint16(46), uint16(300), uint16(66), byte(packet.KindICMPError), false, byte(3))
	f.Fuzz(func(_ *testing.T, off, n int, l3, l4, payload, end, inner4 uint16, kind byte, v6 bool, fill byte) {
		fl := flow64()
		p := packet.Packet{Kind: packet.Kind(kind), L3: l3, L4: l4, Payload: payload, End: end, Inner4: inner4, V6: v6}
		p.Proto = packet.ProtoTCP
		for _, size := range []int{2048, 300} {
			q := p
			Forward64(bytesOf(fill, size), off, n, &q, &fl.e, &fl.dir, 1)
			q = p
			Reply64(bytesOf(fill, size), off, n, &q, &fl.e, &fl.dir)
			q = p
			from := packet.Fragment{ID: 1, Offset: end &^ 7, More: v6}
			if frame := bytesOf(fill, size); n >= 0 && n <= size {
				if s, pieces := NewSplit(frame[:n], &q, off, from); pieces > 0 {
					s.Put(make([]byte, size), frame[:n], pieces-1)
				}
			}
			for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
				q = p
				Readdress64(bytesOf(fill, size), off, n, &q, &fl.e, d, &fl.dir, 1)
				q = p
				TranslateError64(bytesOf(fill, size), off, n, &q, &fl.e, d, &fl.dir, 1, 0, TOARoom(&fl.e))
			}
		}
	})
}

package nat

import (
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// flowFor makes a flow that a packet travelling in direction d would be found
// for.
func flowFor(p *packet.Packet, d conntrack.Dir, mode conntrack.Mode, delta uint32) *flow {
	other := addr("10.255.255.254")
	local := addr("10.254.0.1")
	if p.V6 {
		other, local = addr("2001:db8:ffff::fffe"), addr("2001:db8:fffe::1")
	}
	f := &flow{e: conntrack.Entry{Proto: p.Proto, Mode: mode, SeqDelta: delta, Flags: conntrack.HasServerISN}}
	f.dir.Services = []conntrack.Endpoint{{Addr: other, Port: 80, Proto: p.Proto}}
	f.dir.Backends = []conntrack.Endpoint{{Addr: other, Port: 8080, Proto: p.Proto}}
	f.dir.Locals = []packet.Addr{local}
	f.e.LocalPort = 40000
	if d == conntrack.Forward {
		f.e.Client, f.e.ClientPort = p.Src, p.SrcPort
		f.dir.Services[0].Addr, f.dir.Services[0].Port = p.Dst, p.DstPort
	} else {
		f.e.Client, f.e.ClientPort = p.Dst, p.DstPort
		f.dir.Backends[0].Addr, f.dir.Backends[0].Port = p.Src, p.SrcPort
		if mode == conntrack.FullNAT {
			f.e.Client, f.e.ClientPort = other, 5
			f.dir.Locals[0], f.e.LocalPort = p.Dst, p.DstPort
		}
	}
	Prepare(&f.e, &f.dir)
	return f
}

// FuzzNAT sends any packet that Parse accepts through everything that could
// happen to it. Nothing panics, no byte outside the frame (and the headroom, for
// TOA) changes, and checksums that were right are right again.
func FuzzNAT(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint32(0x89abcdef), byte(0))
		f.Add(s, uint32(0), byte(3))
	}
	f.Fuzz(func(t *testing.T, frame []byte, delta uint32, how byte) {
		if len(frame) > 1600 {
			return
		}
		var p packet.Packet
		if packet.Parse(slices.Clone(frame), &p) != packet.ErrNone {
			return
		}
		good := packet.VerifyIPv4(frame, &p) && packet.VerifyL4(frame, &p)
		d := conntrack.Dir(how & 1)
		fl := flowFor(&p, d, conntrack.Mode(how>>1&1), delta)
		chunk := inChunk(frame, headroom)
		off, n := headroom, len(frame)
		sent, grown := through(chunk, &off, &n, &p, fl, d)
		for i, c := range chunk {
			if c != 0xee && (i < min(off, headroom) || i >= headroom+max(len(frame), grown)) {
				t.Fatalf("byte %d of the chunk changed; frame at %d..%d", i, off, off+n)
			}
		}
		if !sent {
			return
		}
		out := chunk[off : off+n]
		var q packet.Packet
		if err := packet.Parse(out, &q); err != packet.ErrNone {
			switch err {
			case packet.ErrLand, packet.ErrMartianSource, packet.ErrMartianDest:
				return // the flow made up here has odd addresses: of those an ICMP error quotes Parse refuses none
			}
			t.Fatalf("leaves unparsable: %v\n% x", err, out)
		}
		if good && (!packet.VerifyIPv4(out, &q) || !packet.VerifyL4(out, &q)) {
			t.Fatalf("checksum\n% x\n% x", frame, out)
		}
	})
}

// through rewrites the frame by its kind. grown is what an answer of our own is
// long.
func through(chunk []byte, off, n *int, p *packet.Packet, f *flow, d conntrack.Dir) (sent bool, grown int) {
	frame := chunk[*off : *off+*n]
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP:
		if d == conntrack.Reply {
			LowerMSS(frame, p, TOALen(&f.e))
			ClampMSS(frame, p, 1240)
			return Reply(frame, p, &f.e, &f.dir), 0
		}
		StripUOA(frame, p)
		StripOptions(frame, p, packet.OptTOA, packet.OptTimestamps, packet.OptFastOpen)
		if TOANeeded(&f.e, p) {
			*off, *n, _ = InsertTOA(chunk, *off, *n, p, &f.e, packet.OptTOA, 1500)
		}
		ShiftTimestamps(chunk[*off:*off+*n], p, d, f.e.SeqDelta)
		return Forward(chunk[*off:*off+*n], p, &f.e, &f.dir), 0
	case packet.KindICMPError:
		return TranslateError(frame, p, &f.e, d, &f.dir, TOARoom(&f.e)), 0
	case packet.KindARP:
		return AnswerARP(frame, p, ourMAC), 0
	case packet.KindNS:
		grown = AnswerNS(frame, p, ourMAC)
		*n = max(grown, *n)
		return grown != 0, grown
	case packet.KindEcho:
		return AnswerEcho(frame, p), 0
	}
	return false, 0
}

// seeds are frames of every kind.
func seeds() [][]byte {
	var all [][]byte
	for _, f := range []*flow{flow4(conntrack.FullNAT), flow6(conntrack.FullNAT)} {
		for _, s := range []shape{
			{ttl: 9, flags: packet.SYN, opts: []byte{2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 8, 10, 1, 1, 1, 1, 0, 0, 0, 0}},
			{ttl: 9, flags: packet.ACK, opts: []byte{254, 8, 1, 2, 3, 4, 5, 6, 1, 5, 10, 9, 9, 9, 9, 8, 8, 8, 8, 0}, payload: []byte("abc")},
			{ttl: 9, flags: packet.ACK | packet.FIN, vlan: true, pad: make([]byte, 4), opts: append([]byte{1, 1, 5, 34}, make([]byte, 32)...)},
			{ttl: 9, udp: true, payload: []byte("abc")},
			{ttl: 9, udp: true, payload: []byte("abc"), ipOpts: []byte{1, 31, 8, 0, 1, 10, 9, 8, 7, 31, 2, 0}},
		} {
			s = f.fromClient(s)
			all = append(all, s.frame())
			m := icmpError{src: addr("10.9.9.9"), dst: s.src, ttl: 7, kind: 3, code: 4, rest: 1400, inner: s.datagram()}
			if !s.src.Is4() {
				m.src, m.kind, m.code = addr("2001:db8:77::1"), 2, 0
			}
			all = append(all, m.frame(), echo(&m, !s.src.Is4()))
		}
	}
	return all
}

// FuzzInsertTOA tries InsertTOA with offsets, lengths and a Packet that agree
// with nothing.
func FuzzInsertTOA(f *testing.F) {
	f.Add(256, 60, uint16(14), uint16(34), uint16(54), uint16(54), 1500)
	f.Add(0, 60, uint16(14), uint16(34), uint16(94), uint16(94), 40)
	f.Fuzz(func(_ *testing.T, off, n int, l3, l4, payload, end uint16, mtu int) {
		fl := flow6(conntrack.FullNAT)
		p := packet.Packet{Kind: packet.KindTCP, L3: l3, L4: l4, Payload: payload, End: end}
		InsertTOA(bytesOf(0xee, 2048), off, n, &p, &fl.e, packet.OptTOA, mtu)
	})
}

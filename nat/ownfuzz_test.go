package nat

import (
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// FuzzOwnPackets has every packet that Parse accepts answered by an error and a
// RST and sent through PROXY and timestamps. Nothing panics, no byte outside the
// frame and its headroom changes, and checksums that were right are right again.
func FuzzOwnPackets(f *testing.F) {
	for i, s := range seeds() {
		f.Add(s, uint32(i), byte(i))
		f.Add(s, uint32(0x89abcdef), byte(3+i))
	}
	f.Fuzz(func(t *testing.T, frame []byte, word uint32, how byte) {
		if len(frame) > 1600 {
			return
		}
		var p packet.Packet
		if packet.Parse(slices.Clone(frame), &p) != packet.ErrNone {
			return
		}
		good := packet.VerifyIPv4(frame, &p) && packet.VerifyL4(frame, &p)
		fl := flowFor(&p, conntrack.Dir(how&1), conntrack.FullNAT, word)
		fl.e.State, fl.e.Created = conntrack.State(how>>2%10), p.Seq+word
		if p.Kind == packet.KindICMPError {
			fl.e.Created = p.Seq - word%200
		}
		for i := range 8 {
			chunk := inChunk(frame, headroom)
			before := slices.Clone(chunk)
			q, e := p, fl.e
			off, n, fresh := headroom, len(frame), false
			switch i {
			case 0:
				off, n, fresh = TimeExceeded(chunk, off, n, &q, ourAddr(&p))
			case 1:
				off, n, fresh = TooBig(chunk, off, n, &q, ourAddr(&p), int(word))
			case 2:
				off, n, fresh = Unreachable(chunk, off, n, &q, ourAddr(&p), Unreach(word))
			case 3:
				off, n, fresh = ResetFor(chunk, off, n, &q)
			case 4:
				n = CutSYN(chunk[off:off+n], &q)
				off, n, _ = InsertProxy(chunk, off, n, &q, &e, &fl.dir, ProxyVersion(how%3), int(word%3000))
			case 5:
				ProxyReply(chunk[off:off+n], &q, &e, int(word%105))
			case 6:
				ProxyError(chunk[off:off+n], &q, &e, int(word%105))
			case 7:
				ShiftTimestamps(chunk[off:off+n], &q, conntrack.Dir(how&1), word)
			}
			end := headroom + len(frame)
			if off < 0 || n < 0 || off+n > end || !slices.Equal(chunk[end:], before[end:]) || !slices.Equal(chunk[:min(off, headroom)], before[:min(off, headroom)]) {
				t.Fatalf("step %d wrote outside the frame", i)
			}
			var r packet.Packet
			if err := packet.Parse(chunk[off:off+n], &r); err != packet.ErrNone && !fresh {
				t.Fatalf("step %d made it unreadable: %v", i, err)
			} else if (good || fresh) && err == packet.ErrNone && !(packet.VerifyIPv4(chunk[off:off+n], &r) && packet.VerifyL4(chunk[off:off+n], &r)) {
				t.Fatalf("step %d: checksum", i)
			}
		}
	})
}

func ourAddr(p *packet.Packet) packet.Addr {
	if p.V6 {
		return addr("2001:db8::10")
	}
	return addr("192.0.2.10")
}

// FuzzOwnOffsets tries everything that moves a frame with offsets, lengths and a
// Packet that agree with nothing.
func FuzzOwnOffsets(f *testing.F) {
	f.Add(256, 60, uint16(14), uint16(34), uint16(54), uint16(54), byte(1), byte(packet.ACK), 1500)
	f.Add(0, 60, uint16(14), uint16(54), uint16(94), uint16(94), byte(9), byte(packet.SYN), 40)
	f.Add(200, 1500, uint16(18), uint16(58), uint16(78), uint16(1500), byte(13), byte(0), 1280)
	f.Fuzz(func(_ *testing.T, off, n int, l3, l4, payload, end uint16, kind, flags byte, mtu int) {
		p := packet.Packet{Kind: packet.Kind(kind & 7), V6: kind&8 != 0, TCPFlags: flags, L3: l3, L4: l4, Payload: payload, End: end}
		p.Src, p.Dst, p.Proto = addr("10.0.0.1"), addr("10.0.0.2"), kind>>4
		fl := flow4(conntrack.FullNAT)
		if p.V6 {
			p.Src, p.Dst = addr("2001:db8::1"), addr("2001:db8::2")
			fl = flow6(conntrack.FullNAT)
		}
		fl.e.State, fl.e.Created = conntrack.Established, 1
		for i := range 5 {
			q, chunk := p, bytesOf(kind, 2048)
			switch i {
			case 0:
				TimeExceeded(chunk, off, n, &q, ourAddr(&p))
			case 1:
				TooBig(chunk, off, n, &q, ourAddr(&p), mtu)
			case 2:
				ResetFor(chunk, off, n, &q)
			case 3:
				InsertProxy(chunk, off, n, &q, &fl.e, &fl.dir, ProxyV1, mtu)
			case 4:
				BuildReset(chunk[:max(0, min(2048, n))], &fl.e, conntrack.Dir(flags&1), &fl.dir, n&127)
			}
		}
	})
}

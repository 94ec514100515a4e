package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestNoBitIsRepaired damages the bits of packets of all kinds, one at a time, every
// one of the headers and some of the data, and sends them through everything that
// could happen to them: none comes out with right checksums.
func TestNoBitIsRepaired(t *testing.T) {
	cases, every := 0, 1
	if testing.Short() {
		every = 7
	}
	for _, whole := range append(seeds(), seeds64(t)...) {
		q := parse(t, whole)
		if !packet.VerifyIPv4(whole, &q) || !packet.VerifyL4(whole, &q) || q.Kind == packet.KindNS { // the caller verifies those
			continue
		}
		for bit := int(q.L3) * 8; bit < int(q.End)*8; bit += every {
			if bit > 160*8 && bit%101 != 0 {
				continue
			}
			frame := slices.Clone(whole)
			frame[bit/8] ^= 0x80 >> (bit % 8)
			var p packet.Packet
			if packet.Parse(frame, &p) != packet.ErrNone || p.Kind != q.Kind || !shows(frame, &p) {
				continue
			}
			for _, how := range []byte{0, 1, 2, 3} {
				cases++
				if out := rewritten(frame, p, how, false); repaired(out) {
					t.Fatalf("bit %d, %d:\n% x\n% x", bit, how, frame, out)
				}
				// Its IPv4 header is the caller's to verify.
				if out := rewritten(frame, p, how, true); packet.VerifyIPv4(frame, &p) && repaired(out) {
					t.Fatalf("NAT64, bit %d, %d:\n% x\n% x", bit, how, frame, out)
				}
			}
		}
	}
	if cases < 10000 {
		t.Errorf("%d cases", cases)
	}
}

// shows reports whether a checksum shows that the frame is damaged. Some bits of the
// IPv6 header are under none, and UDP may do without.
func shows(frame []byte, p *packet.Packet) bool {
	return !packet.VerifyIPv4(frame, p) || !packet.VerifyL4(frame, p)
}

// repaired reports whether out, nil if nothing was sent, is a packet that its
// receiver would take.
func repaired(out []byte) bool {
	var p packet.Packet
	return out != nil && packet.Parse(out, &p) == packet.ErrNone && !shows(out, &p) &&
		(p.Kind != packet.KindUDP || binary.BigEndian.Uint16(out[p.L4+packet.UDPChecksum:]) != 0)
}

// rewritten is what becomes of a frame, nil if it is not sent.
func rewritten(frame []byte, p packet.Packet, how byte, six4 bool) []byte {
	chunk := inChunk(frame, headroom)
	off, n := headroom, len(frame)
	var ok bool
	if six4 {
		off, n, ok = through64(chunk, off, n, &p, flowFor64(&p, 0x89abcdef), how)
	} else {
		d := conntrack.Dir(how & 1)
		ok, _ = through(chunk, &off, &n, &p, flowFor(&p, d, conntrack.Mode(how>>1), 0x89abcdef), d)
	}
	if !ok {
		return nil
	}
	return chunk[off : off+n]
}

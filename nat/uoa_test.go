package nat

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// drawIPOptions draws IPv4 options that Parse accepts.
func drawIPOptions(t *rapid.T) []byte {
	var o []byte
	for range rapid.IntRange(0, 5).Draw(t, "IPv4 options") {
		next := []byte{1}
		if kind := rapid.SampledFrom([]byte{31, 31, 31, 159, 7, 68, 148, 0, 1}).Draw(t, "type"); kind > 1 {
			n := rapid.SampledFrom([]int{2, 3, 8, 20}).Draw(t, "length")
			next = append([]byte{kind, byte(n)}, rapid.SliceOfN(rapid.Byte(), n-2, n-2).Draw(t, "data")...)
		} else {
			next[0] = kind
		}
		if len(o)+len(next) <= 40 {
			o = append(o, next...)
		}
	}
	fill := rapid.SampledFrom([]byte{0, 1}).Draw(t, "fill")
	for len(o)%4 != 0 {
		o = append(o, fill)
	}
	return o
}

// TestStripUOATwin compares with packets built from scratch, at all alignments.
func TestStripUOATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		udp := rapid.Bool().Draw(t, "udp")
		s := drawFlow(t, false, udp).fromClient(drawShape(t, false, udp))
		s.ipOpts = drawIPOptions(t)
		frame := s.frame()
		p := parse(t, frame)
		was := s.ipOpts
		s.ipOpts = slowStrip(was, 31)
		if found := StripUOA(frame, &p); found != !slices.Equal(was, s.ipOpts) {
			t.Fatalf("% x: %v", was, found)
		}
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("% x (-want +got):\n%s", was, d)
		}
	})
}

// TestStripUOADamaged: a header that came damaged is not repaired.
func TestStripUOADamaged(t *testing.T) {
	s := flow4(conntrack.FullNAT).fromClient(shape{ttl: 9, udp: true, ipOpts: []byte{31, 8, 0, 1, 2, 3, 4, 5}})
	frame := s.frame()
	p := parse(t, frame)
	frame[packet.EthLen+packet.IPv4ID] ^= 4
	if !StripUOA(frame, &p) || packet.VerifyIPv4(frame, &p) {
		t.Error("the header's checksum is right")
	}
}

// TestStripUOARefuses: a Packet that is not of this frame, and options that Parse
// refuses, do no harm.
func TestStripUOARefuses(t *testing.T) {
	s := flow4(conntrack.FullNAT).fromClient(shape{ttl: 9, udp: true, ipOpts: []byte{31, 8, 0, 1, 2, 3, 4, 5}})
	for _, c := range []struct {
		name string
		edit func(frame []byte, p *packet.Packet) []byte
	}{
		{"IPv6", func(b []byte, p *packet.Packet) []byte { p.V6 = true; return b }},
		{"cut", func(b []byte, _ *packet.Packet) []byte { return b[:40] }},
		{"no header", func(b []byte, p *packet.Packet) []byte { p.L4 = p.L3; return b }},
		{"length 0", func(b []byte, _ *packet.Packet) []byte { b[35] = 0; return b }},
		{"length 1", func(b []byte, _ *packet.Packet) []byte { b[35] = 1; return b }},
		{"too long", func(b []byte, _ *packet.Packet) []byte { b[35] = 9; return b }},
	} {
		frame := s.frame()
		p := parse(t, frame)
		frame = c.edit(frame, &p)
		before := bytes.Clone(frame)
		if StripUOA(frame, &p) || !bytes.Equal(before, frame) {
			t.Errorf("%s: changed", c.name)
		}
	}
}

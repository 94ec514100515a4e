package nat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// withOPP is a datagram with UOA in a header of protocol 248, put together by hand; its IP
// header's checksum is right.
func withOPP(d []byte, e *conntrack.Entry, more ...byte) []byte {
	head, proto, length := 40, 6, 4
	if d[0]>>4 == 4 {
		head, proto, length = int(d[0]&15)*4, 9, 2
	}
	o := slices.Concat(slowTOA(e, 31), more)
	version := byte(0x10)
	if !e.Client.Is4() {
		version = 0x20
	}
	out := slices.Concat(d[:head], []byte{version, 17, 0, byte(4 + len(o))}, o, d[head:])
	out[proto] = 248
	n := int(out[length])<<8 + int(out[length+1]) + 4 + len(o)
	out[length], out[length+1] = byte(n>>8), byte(n)
	if d[0]>>4 == 4 {
		clear(out[10:12])
		sum := ^uint16(slowSum(out[:head]))
		out[10], out[11] = byte(sum>>8), byte(sum)
	}
	return out
}

// TestUnquoteUOATwin: what is left is the error about the datagram without UOA.
func TestUnquoteUOATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, true)
		f.e.Mode = conntrack.FullNAT
		if !v6 && rapid.Bool().Draw(t, "NAT64") {
			f.e.Client = addr("2001:db8:60::7")
		}
		s := drawShape(t, v6, true)
		s.pad = nil
		s = f.toServer(s)
		inner := s.datagram()
		full := withOPP(inner, &f.e)
		least := len(full) - len(inner) + 28 + len(s.ipOpts)
		if v6 {
			least += 20
		}
		cut := rapid.IntRange(least, len(full)).Draw(t, "quoted")
		icmp := icmpError{src: s.dst, dst: s.src, ttl: 9, kind: 3, code: 4, inner: full[:cut]}
		if v6 {
			icmp.kind, icmp.code = 2, 0
		}
		frame := icmp.frame()
		p := parse(t, frame)
		if !QuotesUOAProtocol(frame, &p) {
			t.Fatal("not seen")
		}
		n := UnquoteUOA(frame, &p, &f.e)
		if n != len(full)-len(inner) {
			t.Fatalf("%d bytes", n)
		}
		icmp.inner = inner[:cut-n]
		want := icmp.frame()
		q := parse(t, want)
		if d := cmp.Diff(want[:q.End], frame[:p.End]); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		if d := cmp.Diff(q, p); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestUnquoteUOADamaged: an error that came damaged stays so.
func TestUnquoteUOADamaged(t *testing.T) {
	for name, f := range map[string]*flow{"v4": udpFlow(flow4(conntrack.FullNAT)), "v6": udpFlow(flow6(conntrack.FullNAT))} {
		s := f.toServer(shape{udp: true, ttl: 9, payload: []byte("hello")})
		icmp := icmpError{src: s.dst, dst: s.src, ttl: 9, kind: 3, code: 4, inner: withOPP(s.datagram(), &f.e)}
		if name == "v6" {
			icmp.kind, icmp.code = 2, 0
		}
		for _, at := range []int{1, 7, 20} { // from the end
			frame := icmp.frame()
			p := parse(t, frame)
			frame[int(p.End)-at] ^= 4
			if UnquoteUOA(frame, &p, &f.e) == 0 || !complains(func(tb rapid.TB) { judgeRaw(tb, frame[:p.End]) }) {
				t.Errorf("%s, %d bytes from the end: not damaged any more", name, at)
			}
		}
	}
}

func TestUnquoteUOARefuses(t *testing.T) {
	f := udpFlow(flow4(conntrack.FullNAT))
	s := f.toServer(shape{udp: true, ttl: 9, payload: []byte("hello")})
	plain := s.datagram()
	good := icmpError{src: s.dst, dst: s.src, ttl: 9, kind: 3, code: 4, inner: withOPP(plain, &f.e)}
	for name, c := range map[string]struct {
		edit   func(e *icmpError)
		frame  func(b []byte)
		quotes bool
	}{
		"protocol unreachable": {edit: func(e *icmpError) { e.code = 2 }, quotes: true},
		"time exceeded":        {edit: func(e *icmpError) { e.kind, e.code = 11, 0 }, quotes: true},
		"of the balancer's":    {edit: func(e *icmpError) { e.inner = withOPP(plain, &f.e, 0, 0, 0, 0) }, quotes: true},
		"with extensions":      {frame: func(b []byte) { b[14+20+5] = 32 }, quotes: true},
		"plain UDP":            {edit: func(e *icmpError) { e.inner = plain }},
	} {
		x := good
		if c.edit != nil {
			c.edit(&x)
		}
		frame := x.frame()
		if c.frame != nil {
			c.frame(frame)
		}
		p := parse(t, frame)
		before, was := slices.Clone(frame), p
		if n := UnquoteUOA(frame, &p, &f.e); n != 0 || p != was || !slices.Equal(frame, before) {
			t.Errorf("%s: %d bytes taken", name, n)
		}
		if QuotesUOAProtocol(frame, &p) != c.quotes {
			t.Errorf("%s: quotes it: %v", name, !c.quotes)
		}
	}
	for cut := range len(good.inner) {
		x := good
		x.inner = good.inner[:cut]
		frame := x.frame()
		var p packet.Packet
		if packet.Parse(frame, &p) == packet.ErrNone && p.Kind == packet.KindICMPError && cut < 20+12+8 {
			t.Errorf("%d bytes quoted: %+v", cut, p)
		}
	}
}

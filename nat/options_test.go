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

// eachOption walks options slowly and gives every one's bounds; bad is where the
// walk had to stop at an impossible one, else -1.
func eachOption(o []byte, see func(from, to int)) (bad int) {
	for i := 0; i < len(o) && o[i] != 0; {
		if o[i] == 1 {
			i++
			continue
		}
		if i+1 == len(o) || o[i+1] < 2 || i+int(o[i+1]) > len(o) {
			return i
		}
		see(i, i+int(o[i+1]))
		i += int(o[i+1])
	}
	return -1
}

func slowStrip(opts []byte, kind byte) []byte {
	out := slices.Clone(opts)
	bad := eachOption(opts, func(from, to int) {
		if opts[from] == kind {
			copy(out[from:to], bytesOf(1, to-from))
		}
	})
	if bad >= 0 && opts[bad] == kind {
		copy(out[bad:], bytesOf(1, len(out)-bad))
	}
	return out
}

func slowMSS(opts []byte, by, most int) []byte {
	out := slices.Clone(opts)
	eachOption(opts, func(from, to int) {
		if mss := int(binary.BigEndian.Uint16(append(opts[from:to:to], 0, 0, 0, 0)[2:])); opts[from] == 2 && to-from == 4 && mss > MinMSS {
			binary.BigEndian.PutUint16(out[from+2:], uint16(max(min(mss-by, most), MinMSS)))
		}
	})
	return out
}

// TestOptionsTwin: options at all alignments, rewritten and compared byte by
// byte, checksum included, with packets built from scratch.
func TestOptionsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		s := f.fromClient(drawShape(t, v6, false))
		frame := s.frame()
		p := parse(t, frame)

		kind := rapid.SampledFrom([]byte{254, 77, 30, 8, 5}).Draw(t, "kind")
		was := s.opts
		s.opts = slowStrip(s.opts, kind)
		if found := StripOption(frame, &p, kind); found != !slices.Equal(was, s.opts) {
			t.Fatalf("StripOption(%d) of % x: %v", kind, was, found)
		}
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("StripOption(%d) of % x (-want +got):\n%s", kind, was, d)
		}
		by := rapid.SampledFrom([]uint16{0, 8, 20, 0xffff}).Draw(t, "by")
		if s.flags&packet.SYN != 0 {
			s.opts = slowMSS(s.opts, int(by), 0xffff)
		}
		LowerMSS(frame, &p, by)
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("LowerMSS(%d) of % x (-want +got):\n%s", by, was, d)
		}
		most := rapid.SampledFrom([]uint16{0, 256, 257, 536, 1440, 0xffff}).Draw(t, "most")
		if s.flags&packet.SYN != 0 {
			s.opts = slowMSS(s.opts, 0, int(most))
		}
		ClampMSS(frame, &p, most)
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("ClampMSS(%d) of % x (-want +got):\n%s", most, was, d)
		}
		var kinds [3]uint8
		before := s.opts
		for i := range kinds {
			kinds[i] = rapid.SampledFrom([]byte{0, 1, 8, 34, 254, 2, 5}).Draw(t, "kinds")
			if kinds[i] > 1 {
				s.opts = slowStrip(s.opts, kinds[i])
			}
		}
		if found := StripOptions(frame, &p, kinds[0], kinds[1], kinds[2]); found != !slices.Equal(before, s.opts) {
			t.Fatalf("StripOptions(%d) of % x: %v", kinds, before, found)
		}
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("StripOptions(%d) of % x (-want +got):\n%s", kinds, before, d)
		}
	})
}

func TestStripOption(t *testing.T) {
	toa := []byte{254, 8, 0, 80, 10, 0, 0, 1}
	for _, c := range []struct {
		name       string
		opts, want []byte
		found      bool
	}{
		{"none", nil, nil, false},
		{"timestamps only", []byte{1, 1, 8, 10, 254, 8, 0, 0, 0, 0, 0, 0}, []byte{1, 1, 8, 10, 254, 8, 0, 0, 0, 0, 0, 0}, false},
		{"one", toa, bytesOf(1, 8), true},
		{"two", slices.Concat(toa, toa), bytesOf(1, 16), true},
		{"odd offset", slices.Concat([]byte{3, 3, 7}, toa, []byte{0}), slices.Concat([]byte{3, 3, 7}, bytesOf(1, 8), []byte{0}), true},
		{"behind the end of the list", slices.Concat([]byte{0, 0, 0, 0}, toa), slices.Concat([]byte{0, 0, 0, 0}, toa), false},
		{"length 0", []byte{1, 254, 0, 9}, bytesOf(1, 4), true},
		{"length beyond the header", []byte{1, 254, 9, 9}, bytesOf(1, 4), true},
		{"length missing", []byte{1, 1, 1, 254}, bytesOf(1, 4), true},
		{"another is malformed", []byte{1, 30, 9, 254}, []byte{1, 30, 9, 254}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, flags := range []uint8{packet.SYN, packet.ACK} {
				f := flow4(conntrack.FullNAT)
				s := f.fromClient(shape{ttl: 3, flags: flags, opts: c.opts, payload: []byte("x")})
				frame := s.frame()
				p := parse(t, frame)
				if found := StripOption(frame, &p, 254); found != c.found {
					t.Errorf("found %v, want %v", found, c.found)
				}
				s.opts = c.want
				if d := cmp.Diff(s.frame(), frame); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
		})
	}
	f := flow4(conntrack.FullNAT)
	s := f.fromClient(shape{opts: []byte{1, 1, 1, 0}})
	frame := s.frame()
	p := parse(t, frame)
	if StripOption(frame, &p, 1) || StripOption(frame, &p, 0) {
		t.Error("padding is no option to strip")
	}
	s = f.fromClient(shape{udp: true, payload: toa})
	frame = s.frame()
	p = parse(t, frame)
	if StripOption(frame, &p, 254) {
		t.Error("UDP has no options")
	}
}

func TestLowerMSS(t *testing.T) {
	for _, c := range []struct {
		name       string
		flags      uint8
		opts, want []byte
		by         uint16
		found      bool
	}{
		{"Ethernet, v4 TOA", packet.SYN | packet.ACK, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0xac}, 8, true},
		{"Ethernet, v6 TOA", packet.SYN | packet.ACK, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0xa0}, 20, true},
		{"odd offset", packet.SYN, []byte{1, 2, 4, 0x05, 0xb4, 1, 1, 1}, []byte{1, 2, 4, 0x05, 0xac, 1, 1, 1}, 8, true},
		{"not below the least", packet.SYN, []byte{2, 4, 1, 2}, []byte{2, 4, 1, 0}, 8, true},
		{"small ones stay", packet.SYN, []byte{2, 4, 0, 200}, []byte{2, 4, 0, 200}, 8, true},
		{"absent", packet.SYN, []byte{1, 3, 3, 7}, []byte{1, 3, 3, 7}, 8, false},
		{"of a wrong length", packet.SYN, []byte{2, 3, 5, 1}, []byte{2, 3, 5, 1}, 8, false},
		{"not on a SYN", packet.ACK, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0xb4}, 8, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			s := f.fromServer(shape{ttl: 3, flags: c.flags, opts: c.opts})
			frame := s.frame()
			p := parse(t, frame)
			if found := LowerMSS(frame, &p, c.by); found != c.found {
				t.Errorf("found %v, want %v", found, c.found)
			}
			s.opts = c.want
			if d := cmp.Diff(s.frame(), frame); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestClampMSS(t *testing.T) {
	for _, c := range []struct {
		name       string
		flags      uint8
		opts, want []byte
		most       uint16
		found      bool
	}{
		{"a SYN", packet.SYN, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0x14}, 1300, true},
		{"a SYN-ACK", packet.SYN | packet.ACK, []byte{2, 4, 0xff, 0xff}, []byte{2, 4, 0x05, 0x14}, 1300, true},
		{"odd offset", packet.SYN, []byte{1, 2, 4, 0x05, 0xb4, 1, 1, 1}, []byte{1, 2, 4, 0x05, 0x14, 1, 1, 1}, 1300, true},
		{"never raises", packet.SYN, []byte{2, 4, 0x05, 0x13}, []byte{2, 4, 0x05, 0x13}, 1300, true},
		{"not below the least", packet.SYN, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 1, 0}, 20, true},
		{"small ones stay", packet.SYN, []byte{2, 4, 0, 200}, []byte{2, 4, 0, 200}, 100, true},
		{"absent", packet.SYN, []byte{1, 3, 3, 7}, []byte{1, 3, 3, 7}, 1300, false},
		{"not on a SYN", packet.ACK, []byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0xb4}, 1300, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			s := f.fromClient(shape{ttl: 3, flags: c.flags, opts: c.opts})
			frame := s.frame()
			p := parse(t, frame)
			if found := ClampMSS(frame, &p, c.most); found != c.found {
				t.Errorf("found %v, want %v", found, c.found)
			}
			s.opts = c.want
			if d := cmp.Diff(s.frame(), frame); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestOptionsAllocateNothing(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	s := f.fromClient(shape{flags: packet.SYN, opts: []byte{2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 8, 10, 1, 1, 1, 1, 0, 0, 0, 0}})
	frame := s.frame()
	p := parse(t, frame)
	if n := testing.AllocsPerRun(100, func() {
		StripOption(frame, &p, 254)
		StripOptions(frame, &p, 254, 8, 34)
		LowerMSS(frame, &p, 8)
		ClampMSS(frame, &p, 1300)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

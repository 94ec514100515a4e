package packet

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// tcpWith is an IPv4 TCP frame with these option bytes, padded by OptEnd.
func tcpWith(options []byte) []byte {
	o := slices.Clone(options)
	for len(o)%4 != 0 {
		o = append(o, OptEnd)
	}
	frame := slices.Concat(eth4(ip4(fwd4, ProtoTCP, 0, "", ack)), o)
	frame[17] += uint8(len(o))
	frame[46] += uint8(len(o) / 4 << 4)
	return frame
}

func TestOptions(t *testing.T) {
	type opt struct {
		Kind uint8
		Off  int
		Data string
	}
	for _, c := range []struct {
		name      string
		options   string
		want      []opt
		malformed bool
		scan      TCPOptions
	}{
		{name: "none"},
		{name: "linux syn", options: "020405b4 0402 080a 0000002a 00000001 01 030307",
			want: []opt{{2, 54, "\x05\xb4"}, {4, 58, ""}, {8, 60, "\x00\x00\x00\x2a\x00\x00\x00\x01"}, {3, 71, "\x07"}},
			scan: TCPOptions{MSSOff: 54, MSS: 1460, SACKPermOff: 58, SACKPermitted: true, TSOff: 60, TSVal: 42, TSEcr: 1, WScaleOff: 71, WScale: 7}},
		{name: "toa first", options: "fe08 c001 c6336407 01 01 080a 00000001 00000002",
			want: []opt{{254, 54, "\xc0\x01\xc6\x33\x64\x07"}, {8, 64, "\x00\x00\x00\x01\x00\x00\x00\x02"}},
			scan: TCPOptions{TSOff: 64, TSVal: 1, TSEcr: 2}},
		{name: "two sack blocks", options: "0101 0512 00000001 00000002 00000003 00000004",
			want: []opt{{5, 56, "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x04"}},
			scan: TCPOptions{SACKOff: 56, SACKBlocks: 2}},
		{name: "end hides the rest", options: "01 00 0402"},
		{name: "nops only", options: "01010101"},
		{name: "forty nops", options: "0101010101010101010101010101010101010101 0101010101010101010101010101010101010101"},
		{name: "length 0", options: "0402 fe00", want: []opt{{4, 54, ""}}, malformed: true,
			scan: TCPOptions{SACKPermOff: 54, SACKPermitted: true, Malformed: true}},
		{name: "length 1", options: "fe01 0402", malformed: true, scan: TCPOptions{Malformed: true}},
		{name: "length beyond header", options: "fe05 0102", malformed: true, scan: TCPOptions{Malformed: true}},
		{name: "no length byte", options: "010101 fe", malformed: true, scan: TCPOptions{Malformed: true}},
		{name: "unknown, shortest and to the end", options: "fd02 fe06 01020304",
			want: []opt{{253, 54, ""}, {254, 56, "\x01\x02\x03\x04"}}},
		{name: "wrong lengths are absent", options: "020305 03020403 01 0806 00000001 0506 00000001",
			want: []opt{{2, 54, "\x05"}, {3, 57, ""}, {4, 59, "\x01"}, {8, 62, "\x00\x00\x00\x01"}, {5, 68, "\x00\x00\x00\x01"}}},
		{name: "empty sack", options: "0502 0101", want: []opt{{5, 54, ""}}},
		{name: "scale above the limit", options: "030310 01", want: []opt{{3, 54, "\x10"}}, scan: TCPOptions{WScaleOff: 54, WScale: 14}},
		{name: "twice, the last counts", options: "02040200 02040100", want: []opt{{2, 54, "\x02\x00"}, {2, 58, "\x01\x00"}},
			scan: TCPOptions{MSSOff: 58, MSS: 256}},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := tcpWith(hx(c.options))
			var p Packet
			if e := Parse(frame, &p); e != ErrNone {
				t.Fatal(e)
			}
			var got []opt
			it := Options(frame, &p)
			for it.Next() {
				got = append(got, opt{it.Kind, it.Off, string(it.Data())})
			}
			if d := cmp.Diff(c.want, got); d != "" || it.Malformed != c.malformed || it.Next() {
				t.Errorf("malformed %v (-want +got):\n%s", it.Malformed, d)
			}
			if d := cmp.Diff(c.scan, ScanOptions(frame, &p)); d != "" {
				t.Errorf("ScanOptions (-want +got):\n%s", d)
			}
			if n := testing.AllocsPerRun(50, func() { ScanOptions(frame, &p) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
	frame := caseFrame(t, "udp4")
	var p Packet
	if Parse(frame, &p); ScanOptions(frame, &p) != (TCPOptions{}) {
		t.Error("UDP has options")
	}
}

// TestOptionsAreTwin compares the walk with a recursive one over any bytes.
func TestOptionsAreTwin(t *testing.T) {
	var twin func(b []byte, off int) (offs []int, malformed bool)
	twin = func(b []byte, off int) ([]int, bool) {
		switch {
		case len(b) == 0 || b[0] == 0:
			return nil, false
		case b[0] == 1:
			return twin(b[1:], off+1)
		case len(b) == 1 || b[1] < 2 || int(b[1]) > len(b):
			return nil, true
		}
		rest, bad := twin(b[b[1]:], off+int(b[1]))
		return append([]int{off}, rest...), bad
	}
	rapid.Check(t, func(t *rapid.T) {
		o := rapid.SliceOfN(rapid.OneOf(rapid.ByteRange(0, 12), rapid.Byte()), 0, 10).Draw(t, "options")
		for len(o)%4 != 0 {
			o = append(o, 0)
		}
		frame := tcpWith(o)
		var p Packet
		if e := Parse(frame, &p); e != ErrNone {
			t.Fatal(e)
		}
		want, bad := twin(o, 54)
		var got []int
		it := Options(frame, &p)
		for it.Next() {
			got = append(got, it.Off)
		}
		if !slices.Equal(got, want) || it.Malformed != bad {
			t.Fatalf("%x: %v %v, want %v %v", o, got, it.Malformed, want, bad)
		}
	})
}

// TestScanSYN: the short walk finds what the long ones do, whatever the options.
func TestScanSYN(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.OneOf(
			rapid.SampledFrom([][]byte{{OptNop}, {OptEnd}, {3, 3, 7}, {3, 3, 200}, {3, 4, 1, 2}, {3, 3, 0}, {4, 2}, {2, 4, 5, 180}, {254, 0}, {3}}),
			rapid.SliceOfN(rapid.Byte(), 1, 6))
		options := slices.Concat(rapid.SliceOfN(piece, 0, 6).Draw(t, "options")...)
		frame := tcpWith(options[:min(len(options), 40)])
		var p Packet
		if err := Parse(frame, &p); err != ErrNone {
			t.Fatal(err)
		}
		o := ScanOptions(frame, &p)
		want := SYNOptions{Scale: NoScale}
		if o.WScaleOff != 0 {
			want.Scale = o.WScale
		}
		for at := int(p.L4) + TCPMinLen; ; {
			kind, n := OptionAt(frame[:p.Payload], at)
			if kind > OptNop {
				want.kinds |= 1 << min(kind, 63)
			}
			if n <= 0 {
				break
			}
			at += n
		}
		got := ScanSYN(frame, &p)
		if got != want {
			t.Fatalf("% x: %+v, want %+v", options, got, want)
		}
		for kind := range 256 {
			if k := uint8(kind); got.May(k) != (want.kinds>>min(kind, 63)&1 != 0) {
				t.Fatalf("% x: May(%d) = %v", options, k, got.May(k))
			}
		}
		if p.Kind = KindUDP; ScanSYN(frame, &p) != (SYNOptions{Scale: NoScale}) {
			t.Fatalf("of a datagram: %+v", ScanSYN(frame, &p))
		}
	})
}

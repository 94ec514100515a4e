package packet

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type parseCase struct {
	name  string
	frame []byte
	want  Packet
}

// Shorthands for what most cases have in common.
var (
	tuple4 = Tuple{Src: client4, Dst: vip4, SrcPort: 49153, DstPort: 80, Proto: ProtoTCP}
	tuple6 = Tuple{Src: client6, Dst: vip6, SrcPort: 49153, DstPort: 80, Proto: ProtoTCP}
	dns4   = Tuple{Src: client4, Dst: vip4, SrcPort: 49153, DstPort: 53, Proto: ProtoUDP}
	dns6   = Tuple{Src: client6, Dst: vip6, SrcPort: 49153, DstPort: 53, Proto: ProtoUDP}
)

// bare4 and bare6 are tuples without ports.
func bare4(proto uint8) Tuple { return Tuple{Src: client4, Dst: vip4, Proto: proto} }
func bare6(proto uint8) Tuple { return Tuple{Src: client6, Dst: vip6, Proto: proto} }

func tcp4Packet(l3, l4, payload, end uint16) Packet {
	return Packet{Tuple: tuple4, Seq: 0x01020304, Ack: 0x05060708, L3: l3, L4: l4, Payload: payload, End: end,
		Kind: KindTCP, TCPFlags: ACK, Window: 0x2000}
}

func tcp6Packet(l3, l4, payload, end uint16) Packet {
	return Packet{Tuple: tuple6, Seq: 0x01020304, Ack: 0x05060708, L3: l3, L4: l4, Payload: payload, End: end,
		Kind: KindTCP, TCPFlags: ACK, Window: 0x2000, V6: true}
}

// synOpts is MSS 1460, SACK permitted, timestamps, NOP, window scale 7.
const (
	syn     = "c001 0050 01020304 00000000 a002 ffff 0000 0000 "
	synOpts = "020405b4 0402 080a 0000002a 00000000 01 030307 "
)

var parseCases = slices.Concat([]parseCase{
	{"tcp4", eth4(ip4(fwd4, 6, 0x4000, "", ack)), tcp4Packet(14, 34, 54, 54)},
	{"tcp4 data", eth4(ip4(fwd4, 6, 0, "", ack+"616263")), tcp4Packet(14, 34, 54, 57)},
	{"tcp4 padded by ethernet", append(eth4(ip4(fwd4, 6, 0, "", ack)), 1, 2, 3, 4, 5, 6), tcp4Packet(14, 34, 54, 54)},
	{"tcp4 reserved fragment bit", eth4(ip4(fwd4, 6, 0x8000, "", ack)), tcp4Packet(14, 34, 54, 54)},
	{"tcp4 tos", with(eth4(ip4(fwd4, 6, 0, "", ack)), 15, "b8"), tcp4Packet(14, 34, 54, 54)},
	{"tcp4 syn options", eth4(ip4(fwd4, 6, 0, "", syn+synOpts)), Packet{Tuple: tuple4, Seq: 0x01020304,
		L3: 14, L4: 34, Payload: 74, End: 74, Kind: KindTCP, TCPFlags: SYN, Window: 0xffff}},
	{"tcp4 offset 15", eth4(ip4(fwd4, 6, 0, "", strings.Replace(ack, "5010", "f010", 1)+strings.Repeat("01", 40))),
		tcp4Packet(14, 34, 94, 94)},
	{"tcp4 vlan", hx(macs, tag, "0800", ip4(fwd4, 6, 0, "", ack)), tcp4Packet(18, 38, 58, 58)},
	{"tcp4 service vlan", hx(macs, stag, "0800", ip4(fwd4, 6, 0, "", ack)), tcp4Packet(18, 38, 58, 58)},
	{"tcp4 ip options", eth4(ip4(fwd4, 6, 0, "01 94040000 00 0000", ack)), tcp4Packet(14, 42, 62, 62)},
	{"tcp4 same address other port", eth4(ip4("c000020a c000020a", 6, 0, "", ack)), func() Packet {
		p := tcp4Packet(14, 34, 54, 54)
		p.Src = p.Dst
		return p
	}()},
	{"tcp4 class e source", eth4(ip4("f0000001 c000020a", 6, 0, "", ack)), func() Packet {
		p := tcp4Packet(14, 34, 54, 54)
		p.Src = addr("240.0.0.1")
		return p
	}()},
	{"udp4", eth4(ip4(fwd4, 17, 0, "", dns)), Packet{Tuple: dns4, L3: 14, L4: 34, Payload: 42, End: 45, Kind: KindUDP}},
	{"udp4 padded by ethernet", append(eth4(ip4(fwd4, 17, 0, "", dns)), make([]byte, 15)...),
		Packet{Tuple: dns4, L3: 14, L4: 34, Payload: 42, End: 45, Kind: KindUDP}},
	{"udp4 64 bytes", eth4(ip4(fwd4, 17, 0, "", "c001 0035 001e 1234"+strings.Repeat("61", 22))),
		Packet{Tuple: dns4, L3: 14, L4: 34, Payload: 42, End: 64, Kind: KindUDP}},
	{"udp4 zero checksum", eth4(ip4(fwd4, 17, 0, "", "c001 0035 0008 0000")),
		Packet{Tuple: dns4, L3: 14, L4: 34, Payload: 42, End: 42, Kind: KindUDP}},
	{"udp4 shorter than datagram", eth4(ip4(fwd4, 17, 0, "", dns+"ffff")),
		Packet{Tuple: dns4, L3: 14, L4: 34, Payload: 42, End: 47, Kind: KindUDP}},
	{"gre4", eth4(ip4(fwd4, 47, 0, "", "00000800")), Packet{Tuple: bare4(47), L3: 14, L4: 34, Payload: 34, End: 38}},
	{"icmpv6 in ipv4", eth4(ip4(fwd4, 58, 0, "", "8000 0000 0001 0001")),
		Packet{Tuple: bare4(58), L3: 14, L4: 34, Payload: 34, End: 42}},
	{"empty datagram 4", eth4(ip4(fwd4, 59, 0, "", "")), Packet{Tuple: bare4(59), L3: 14, L4: 34, Payload: 34, End: 34}},
	{"fragment4 first", eth4(ip4(fwd4, 6, 0x2000, "", ack+"61626364")), Packet{Tuple: bare4(6),
		L3: 14, L4: 34, Payload: 34, End: 58, Kind: KindFragment}},
	{"fragment4 later", eth4(ip4(fwd4, 17, 0x0003, "", "616263")), Packet{Tuple: bare4(17),
		L3: 14, L4: 34, Payload: 34, End: 37, Kind: KindFragment}},
	{"fragment4 icmp first", eth4(ip4(fwd4, 1, 0x2000, "", "0800 0000 0001 0001")), Packet{Tuple: bare4(1),
		L3: 14, L4: 34, Payload: 34, End: 42, Kind: KindFragment}},

	{"tcp6", eth6(ip6(fwd6, 6, ack)), tcp6Packet(14, 54, 74, 74)},
	{"tcp6 vlan data", hx(macs, tag, "86dd", ip6(fwd6, 6, ack+"61")), tcp6Packet(18, 58, 78, 79)},
	{"udp6", eth6(ip6(fwd6, 17, dns)), Packet{Tuple: dns6, L3: 14, L4: 54, Payload: 62, End: 65, Kind: KindUDP, V6: true}},
	{"tcp6 ext headers", eth6(ip6(fwd6, 0, "3c00 010400000000 2b01 010400000000 0000000000000000 0600 000000000000"+ack)),
		tcp6Packet(14, 86, 106, 106)},
	{"tcp6 atomic fragment", eth6(ip6(fwd6, 44, "0600 0000 00c0ffee"+ack)), tcp6Packet(14, 62, 82, 82)},
	{"tcp6 eight headers", eth6(ip6(fwd6, 60, strings.Repeat("3c00 010400000000", 7)+"0600 010400000000"+ack)),
		tcp6Packet(14, 118, 138, 138)},
	{"ah6", eth6(ip6(fwd6, 51, "0604 0000 00000001 00000001 000000000000000000000000"+ack)),
		Packet{Tuple: bare6(51), L3: 14, L4: 54, Payload: 54, End: 98, V6: true}},
	{"esp6", eth6(ip6(fwd6, 50, "00000001 00000001")), Packet{Tuple: bare6(50), L3: 14, L4: 54, Payload: 54, End: 62, V6: true}},
	{"no next header 6", eth6(ip6(fwd6, 60, "3b00 010400000000")),
		Packet{Tuple: bare6(59), L3: 14, L4: 62, Payload: 62, End: 62, V6: true}},
	{"fragment6 first", eth6(ip6(fwd6, 44, "1100 0001 00c0ffee"+"c001 0035 0010 1234 6162636465666768")),
		Packet{Tuple: bare6(17), L3: 14, L4: 62, Payload: 62, End: 78, Kind: KindFragment, V6: true}},
	{"fragment6 later", eth6(ip6(fwd6, 44, "0600 0020 00c0ffee"+"616263")),
		Packet{Tuple: bare6(6), L3: 14, L4: 62, Payload: 62, End: 65, Kind: KindFragment, V6: true}},
	{"fragment6 of options", eth6(ip6(fwd6, 44, "3c00 0001 00c0ffee"+"0600 010400000000")),
		Packet{Tuple: bare6(60), L3: 14, L4: 62, Payload: 62, End: 70, Kind: KindFragment, V6: true}},
	{"multicast destination 6", eth6(ip6("fe800000000000000000000000000001 ff020000000000000000000000000016", 58, "8f00 0000 0000 0000")),
		Packet{Tuple: Tuple{Src: addr("fe80::1"), Dst: addr("ff02::16"), Proto: 58}, L3: 14, L4: 54, Payload: 62, End: 62, V6: true}},

	{"arp request", hx(macs, "0806 0001 0800 06 04 0001", "020000000002 c6336407", "000000000000 c000020a"),
		Packet{Tuple: bare4(0), L3: 14, L4: 42, Payload: 42, End: 42, Kind: KindARP, Window: ARPRequest}},
	{"arp reply vlan padded", hx(macs, tag, "0806 0001 0800 06 04 0002", "020000000002 c6336407", "020000000001 c000020a", "00000000"),
		Packet{Tuple: bare4(0), L3: 18, L4: 46, Payload: 46, End: 46, Kind: KindARP, Window: ARPReply}},
	{"arp probe", hx(macs, "0806 0001 0800 06 04 0001", "020000000002 00000000", "000000000000 c000020a"),
		Packet{Tuple: Tuple{Src: addr("0.0.0.0"), Dst: vip4}, L3: 14, L4: 42, Payload: 42, End: 42, Kind: KindARP, Window: ARPRequest}},
}, icmpCases, refusedCases)

func TestParse(t *testing.T) {
	for _, c := range parseCases {
		t.Run(c.name, func(t *testing.T) {
			// Twice: over zeros and over what an earlier packet may have left.
			for _, before := range []Packet{{}, poison} {
				frame, got := slices.Clone(c.frame), before
				if e := Parse(frame, &got); e != c.want.Err {
					t.Errorf("Parse = %v, want %v", e, c.want.Err)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Errorf("over %v (-want +got):\n%s", before.Kind, d)
				}
				if !slices.Equal(frame, c.frame) {
					t.Error("frame changed")
				}
			}
			var p Packet
			if n := testing.AllocsPerRun(100, func() { Parse(c.frame, &p) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// poison has every field set, so that one left unwritten shows.
var poison = Packet{
	Tuple: Tuple{Src: Addr{1, 2}, Dst: Addr{3, 4}, SrcPort: 5, DstPort: 6, Proto: 7},
	Seq:   8, Ack: 9, L3: 10, L4: 11, Payload: 12, End: 13, Kind: 14, TCPFlags: 15, V6: true, Err: 17, Inner4: 18, Window: 19,
}

// TestParseCutAndBent parses every case cut at each length and with each byte
// bent, and checks what Parse promises for any bytes.
func TestParseCutAndBent(t *testing.T) {
	for _, c := range parseCases {
		if len(c.frame) > 2000 {
			continue
		}
		for n := range c.frame {
			p := checkInvariants(t, slices.Clip(c.frame[:n]))
			if c.want.Err == ErrNone && n < int(c.want.End) && p.Err != ErrTruncated {
				t.Errorf("%s cut to %d: %v, want %v", c.name, n, p.Err, ErrTruncated)
			}
		}
		frame := slices.Clone(c.frame)
		for i := range frame {
			for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff, frame[i] + 1, frame[i] - 1} {
				old := frame[i]
				frame[i] = v
				checkInvariants(t, frame)
				frame[i] = old
			}
		}
	}
}

func TestParseTooLong(t *testing.T) {
	frame := make([]byte, maxFrame+1)
	copy(frame, caseFrame(t, "tcp4"))
	var p Packet
	if e := Parse(frame, &p); e != ErrFrameTooLong {
		t.Errorf("65,536 bytes: %v", e)
	}
	if e := Parse(frame[:maxFrame], &p); e != ErrNone {
		t.Errorf("65,535 bytes: %v", e)
	}
	// A total length near 64 KiB must not wrap the offsets.
	if e := Parse(with(frame[:maxFrame], 16, "ffff"), &p); e != ErrTruncated {
		t.Errorf("total length 65,535: %v", e)
	}
	if e := Parse(with(frame[:maxFrame], 16, "fff1"), &p); e != ErrNone || p.End != maxFrame {
		t.Errorf("total length 65,521: %v, end %d", e, p.End)
	}
	long6 := make([]byte, maxFrame)
	copy(long6, caseFrame(t, "tcp6"))
	if e := Parse(with(long6, 18, "ffff"), &p); e != ErrTruncated {
		t.Errorf("payload length 65,535: %v", e)
	}
}

// TestShortAndLongWayAgree compares the short ways through Parse with the long one,
// over frames that are right and over all that differ from them in a byte, a
// length or their family: whatever the frame, the long way alone gives the same.
func TestShortAndLongWayAgree(t *testing.T) {
	agree := func(name string, frame []byte) {
		short, long := poison, poison
		if e := Parse(frame, &short); e != parseAny(frame, &long) || short != long {
			t.Errorf("%s: % x\nshort %+v\nlong  %+v", name, frame, short, long)
		}
	}
	for _, c := range parseCases {
		agree(c.name, c.frame)
		if len(c.frame) > 2000 {
			continue
		}
		for n := range c.frame {
			agree(c.name+", cut", slices.Clip(c.frame[:n]))
		}
		frame := slices.Clone(c.frame)
		for i := range frame {
			for v := range 256 {
				frame[i] = byte(v)
				agree(c.name+", bent", frame)
			}
			frame[i] = c.frame[i]
		}
	}
}

// TestShortAndLongWayAgreeOnAddresses does the same with addresses of every range
// that has a meaning of its own, and with UDP lengths and checksums.
func TestShortAndLongWayAgreeOnAddresses(t *testing.T) {
	bytes6 := rapid.OneOf(rapid.SampledFrom([]string{
		"00000000000000000000000000000000", "00000000000000000000000000000001", "00000000000000000000000000000002",
		"00000000000000000000ffffc0000201", "0000000000000001000000000000ffff", "fe800000000000000000000000000001",
		"ff020000000000000000000000000001", "20010db8000000000000000000000001",
	}), rapid.StringMatching("[0-9a-f]{32}"))
	bytes4 := rapid.OneOf(rapid.SampledFrom([]string{
		"00000000", "00000001", "7f000001", "dfffffff", "e0000001", "efffffff", "f0000001", "fffffffe", "ffffffff", "c6336401",
	}), rapid.StringMatching("[0-9a-f]{8}"))
	word := rapid.OneOf(rapid.SampledFrom([]string{"0000", "0007", "0008", "0009", "ffff"}), rapid.StringMatching("[0-9a-f]{4}"))
	rapid.Check(t, func(t *rapid.T) {
		frame := slices.Clone(rapid.SampledFrom(parseCases).Draw(t, "case").frame)
		put := func(at int, b []byte) {
			if at+len(b) <= len(frame) {
				copy(frame[at:], b)
			}
		}
		v6 := len(frame) > EthLen && frame[EthLen]>>4 == 6
		srcAt, dstAt, l4, gen := EthLen+IPv4Src, EthLen+IPv4Dst, EthLen+IPv4MinLen, bytes4
		if v6 {
			srcAt, dstAt, l4, gen = EthLen+IPv6Src, EthLen+IPv6Dst, EthLen+IPv6Len, bytes6
		}
		src := gen.Draw(t, "source")
		put(srcAt, hx(src))
		put(dstAt, hx(rapid.OneOf(gen, rapid.Just(src)).Draw(t, "destination")))
		if rapid.Bool().Draw(t, "bend the transport header") {
			put(l4+UDPLength, hx(word.Draw(t, "length")))
			put(l4+UDPChecksum, hx(word.Draw(t, "checksum")))
			put(l4+TCPOffset, hx(word.Draw(t, "offset")))
		}
		short, long := poison, poison
		if e := Parse(frame, &short); e != parseAny(frame, &long) || short != long {
			t.Fatalf("% x\nshort %+v\nlong  %+v", frame, short, long)
		}
	})
}

// TestTagOnlyShifts puts a VLAN tag into every case without one: all offsets
// move by four and nothing else changes.
func TestTagOnlyShifts(t *testing.T) {
	for _, c := range parseCases {
		if len(c.frame) < EthLen || c.want.L3 == VLANEthLen || c.want.Err == ErrTruncated && c.want.End == 0 {
			continue
		}
		if isVLAN(uint16(c.frame[EthType])<<8 | uint16(c.frame[EthType+1])) {
			continue
		}
		want := c.want
		for _, off := range []*uint16{&want.L3, &want.L4, &want.Payload, &want.End, &want.Inner4} {
			if *off != 0 {
				*off += VLANEthLen - EthLen
			}
		}
		var got Packet
		Parse(slices.Concat(c.frame[:EthType], hx(tag), c.frame[EthType:]), &got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestErrs(t *testing.T) {
	seen := map[string]bool{}
	for i, e := range Errs() {
		if int(e) != i || e.String() == "" || e.String() == "unknown" || seen[e.String()] {
			t.Errorf("%d: %q", e, e)
		}
		if strings.Trim(e.String(), "abcdefghijklmnopqrstuvwxyz46_") != "" {
			t.Errorf("%q is no metric label", e)
		}
		seen[e.String()] = true
	}
	if NumErrs.String() != "unknown" || len(Errs()) != int(NumErrs) {
		t.Error("past the last")
	}
	// Every reason can happen.
	for _, c := range parseCases {
		delete(seen, c.want.Err.String())
	}
	delete(seen, ErrFrameTooLong.String()) // TestParseTooLong
	if len(seen) > 0 {
		t.Errorf("no case for %v", seen)
	}
}

package packet

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// sumTwin is the sum as RFC 1071 section 4.1 says it: word by word.
func sumTwin(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		if s > 0xffff {
			s = s&0xffff + 1
		}
	}
	return uint16(s)
}

// awkward draws bytes in which runs of 0x00 and 0xff are frequent: the two
// forms of zero and every carry come from them.
func awkward(t *rapid.T, label string, lo, hi int) []byte {
	if rapid.Bool().Draw(t, label+" extreme") {
		return bytes.Repeat([]byte{rapid.SampledFrom([]byte{0, 0xff}).Draw(t, label)}, rapid.IntRange(lo, hi).Draw(t, label+" n"))
	}
	b := rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte{0, 0, 0xff, 0xff}))
	return rapid.SliceOfN(b, lo, hi).Draw(t, label)
}

func TestSumTable(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want uint16
	}{
		{"nothing", nil, 0},
		{"rfc 1071 section 3", hx("0001 f203 f4f5 f6f7"), 0xddf2},
		{"odd", hx("0001 f2"), 0xf201},
		{"zeros", make([]byte, 40), 0},
		{"ones", bytes.Repeat([]byte{0xff}, 40), 0xffff},
		{"ones, odd", bytes.Repeat([]byte{0xff}, 41), 0xff00},
		{"ones, 64 KiB", bytes.Repeat([]byte{0xff}, 65534), 0xffff},
	} {
		if got := Fold(Sum(c.b, 0)); got != c.want || got != sumTwin(c.b) {
			t.Errorf("%s: %#04x, twin %#04x, want %#04x", c.name, got, sumTwin(c.b), c.want)
		}
		if got := Checksum(c.b, 0); got != ^c.want {
			t.Errorf("%s: checksum %#04x", c.name, got)
		}
	}
	for _, s := range []uint64{0, 1, 0xffff, 0x10000, 0x1ffff, 0xffffffff, 1<<63 - 1, 1<<64 - 1} {
		if got, want := Fold(s), s%0xffff; uint64(got)%0xffff != want || (got == 0) != (s == 0) {
			t.Errorf("Fold(%#x) = %#x", s, got)
		}
	}
}

func TestSumIsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := awkward(t, "b", 0, 200)
		if got, want := Fold(Sum(b, 0)), sumTwin(b); got != want {
			t.Fatalf("Sum(%x) = %#04x, want %#04x", b, got, want)
		}
		// In two pieces, the first of even length.
		cut := rapid.IntRange(0, len(b)/2).Draw(t, "cut") * 2
		if got, want := Fold(Sum(b[cut:], Sum(b[:cut], 0))), sumTwin(b); got != want {
			t.Fatalf("in two pieces: %#04x, want %#04x", got, want)
		}
	})
}

// TestApplyIsRecompute changes bytes anywhere and compares every way to bring
// that into the field with the full sum over the new bytes. The first word is
// never zero, as in any real header.
func TestApplyIsRecompute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := append([]byte{0x45, 0}, awkward(t, "data", 32, 32)...)
		field := ^sumTwin(data)
		at := rapid.IntRange(2, 25).Draw(t, "at")
		n := rapid.IntRange(0, 8).Draw(t, "n")
		repl := awkward(t, "repl", n, n)
		after := bytes.Clone(data)
		copy(after[at:], repl)
		want := ^sumTwin(after)

		diff := DiffAt(DiffBytes(data[at:at+n], repl), at)
		if got := Apply(field, diff); got != want {
			t.Fatalf("Apply(%#04x, %#04x) = %#04x, want %#04x", field, diff, got, want)
		}
		if got := Apply(want, Negate(diff)); got != field {
			t.Fatalf("undone: %#04x, want %#04x", got, field)
		}
		// The same byte by byte.
		sum := uint16(0)
		for i := range n {
			sum = AddDiff(sum, DiffAt(DiffBytes(data[at+i:at+i+1], repl[i:i+1]), at+i))
		}
		if got := Apply(field, sum); got != want {
			t.Fatalf("byte by byte: %#04x, want %#04x", got, want)
		}
	})
}

func TestDiffsAgree(t *testing.T) {
	num := func(t *rapid.T, label string) uint32 { return binary.BigEndian.Uint32(awkward(t, label, 4, 4)) }
	rapid.Check(t, func(t *rapid.T) {
		a, b := num(t, "a"), num(t, "b")
		bytesOf := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
		field := ^sumTwin(append([]byte{0x12, 0x34}, bytesOf(a)...))
		want := ^sumTwin(append([]byte{0x12, 0x34}, bytesOf(b)...))
		for name, d := range map[string]uint16{
			"Diff32":    Diff32(a, b),
			"Diff16 x2": AddDiff(Diff16(uint16(a>>16), uint16(b>>16)), Diff16(uint16(a), uint16(b))),
			"DiffBytes": DiffBytes(bytesOf(a), bytesOf(b)),
			"DiffAddr":  DiffAddr(Addr4(bytesOf(a)), Addr4(bytesOf(b))),
			"by way of": AddDiff(Diff32(a, 0xffffffff), Diff32(0xffffffff, b)),
			"grown":     DiffBytes(bytesOf(a), append(bytesOf(b), 0, 0)),
		} {
			if got := Apply(field, d); got != want {
				t.Fatalf("%s: %#04x, want %#04x", name, got, want)
			}
		}
	})
}

// drawAddr draws an address of a family; of IPv6 none is IPv4-mapped.
func drawAddr(t *rapid.T, label string, v6 bool) Addr {
	if !v6 {
		return Addr4(awkward(t, label, 4, 4))
	}
	b := awkward(t, label, 16, 16)
	b[0] = 0x20
	return Addr16(b)
}

func TestDiffAddrAcrossFamilies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawAddr(t, "a", rapid.Bool().Draw(t, "a6"))
		b := drawAddr(t, "b", rapid.Bool().Draw(t, "b6"))
		wire := func(x Addr) []byte {
			out := make([]byte, 16)
			if x.Is4() {
				x.Put4(out)
				return append(out[:4], 0, 6)
			}
			x.Put16(out)
			return append(out, 0, 6)
		}
		field, want := ^sumTwin(wire(a)), ^sumTwin(wire(b))
		if got := Apply(field, DiffAddr(a, b)); got != want {
			t.Fatalf("%v to %v: %#04x, want %#04x", a, b, got, want)
		}
		if got := ^Fold(PseudoSum(a, Addr{}, 6, 0)); got != field {
			t.Fatalf("PseudoSum: %#04x, want %#04x", got, field)
		}
	})
}

// TestApplyUDP walks the forms of zero that RFC 768 tells apart.
func TestApplyUDP(t *testing.T) {
	for _, c := range []struct {
		name       string
		csum, diff uint16
		want       uint16
	}{
		{"none stays none", 0, 0x1234, 0},
		{"nothing changed", 0x1234, 0, 0x1234},
		{"nothing changed, other zero", 0x1234, 0xffff, 0x1234},
		{"computes to zero", 0x1234, 0x1234, 0xffff},
		{"was zero, unchanged", 0xffff, 0, 0xffff},
		{"was zero, unchanged, other zero", 0xffff, 0xffff, 0xffff},
		{"was zero, changed", 0xffff, 1, 0xfffe},
	} {
		if got := ApplyUDP(c.csum, c.diff); got != c.want {
			t.Errorf("%s: %#04x, want %#04x", c.name, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		// Any field and diff agree with the recomputed sum of some data that
		// has this field.
		csum, diff := rapid.Uint16Range(1, 0xffff).Draw(t, "csum"), rapid.Uint16().Draw(t, "diff")
		want := ^sumTwin(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, ^csum), diff))
		if want == 0 {
			want = 0xffff
		}
		if got := ApplyUDP(csum, diff); got != want {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}

// built is a packet put together, lengths and checksums included, by gopacket.
type built struct {
	frame []byte
	kind  Kind
}

func buildWithGopacket(t *rapid.T) built {
	v6, vlan := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "vlan")
	src, dst := drawAddr(t, "src", v6), drawAddr(t, "dst", v6)
	eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	proto := rapid.SampledFrom([]layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolICMPv4}).Draw(t, "proto")
	if v6 && proto == layers.IPProtocolICMPv4 {
		proto = layers.IPProtocolICMPv6
	}
	if v6 {
		h := &layers.IPv6{Version: 6, NextHeader: proto, HopLimit: 9, SrcIP: src.Netip().AsSlice(), DstIP: dst.Netip().AsSlice()}
		ip, network, eth.EthernetType = h, h, layers.EthernetTypeIPv6
	} else {
		src = Addr4([]byte{198, byte(src.Lo), byte(src.Lo >> 8), byte(src.Lo >> 16)})
		dst = Addr4([]byte{10, byte(dst.Lo), byte(dst.Lo >> 8), byte(dst.Lo >> 16)})
		h := &layers.IPv4{Version: 4, Protocol: proto, TTL: 9, Id: rapid.Uint16().Draw(t, "id"), SrcIP: src.Netip().AsSlice(), DstIP: dst.Netip().AsSlice()}
		ip, network = h, h
	}
	stack := []gopacket.SerializableLayer{eth}
	if vlan {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: 5, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	stack = append(stack, ip)
	port := func(label string) uint16 { return rapid.Uint16().Draw(t, label) }
	out := built{}
	switch proto {
	case layers.IPProtocolTCP:
		h := &layers.TCP{SrcPort: layers.TCPPort(port("sport")), DstPort: layers.TCPPort(port("dport")), Seq: rapid.Uint32().Draw(t, "seq"),
			Ack: rapid.Uint32().Draw(t, "ack"), Window: port("window"), ACK: true, PSH: rapid.Bool().Draw(t, "psh")}
		if n := rapid.IntRange(0, 3).Draw(t, "sack"); n > 0 {
			h.Options = append(h.Options, layers.TCPOption{OptionType: layers.TCPOptionKindSACK, OptionLength: uint8(2 + 8*n), OptionData: make([]byte, 8*n)})
		}
		noErr(t, h.SetNetworkLayerForChecksum(network))
		stack, out.kind = append(stack, h), KindTCP
	case layers.IPProtocolUDP:
		h := &layers.UDP{SrcPort: layers.UDPPort(port("sport")), DstPort: layers.UDPPort(port("dport"))}
		noErr(t, h.SetNetworkLayerForChecksum(network))
		stack, out.kind = append(stack, h), KindUDP
	case layers.IPProtocolICMPv6:
		h := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
		noErr(t, h.SetNetworkLayerForChecksum(network))
		stack, out.kind = append(stack, h, &layers.ICMPv6Echo{Identifier: port("id")}), KindEcho
	default:
		h := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: port("id")}
		stack, out.kind = append(stack, h), KindEcho
	}
	stack = append(stack, gopacket.Payload(awkward(t, "payload", 0, 70)))
	buf := gopacket.NewSerializeBuffer()
	noErr(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	out.frame = buf.Bytes()
	return out
}

func noErr(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestVerifyAgainstGopacket: what gopacket computes is right, and with any one
// bit of the datagram changed it is not, unless the bit lies outside what a
// checksum covers.
func TestVerifyAgainstGopacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := buildWithGopacket(t)
		var p Packet
		if e := Parse(b.frame, &p); e == ErrLand || e == ErrUDPZeroChecksum {
			return // a coincidence of ports, or gopacket's 0 where 0xffff is due
		} else if e != ErrNone || p.Kind != b.kind {
			t.Fatalf("%v, kind %d, want %d\n%x", e, p.Kind, b.kind, b.frame)
		}
		if !VerifyIPv4(b.frame, &p) || !VerifyL4(b.frame, &p) {
			t.Fatalf("wrong: %v %v\n%x", VerifyIPv4(b.frame, &p), VerifyL4(b.frame, &p), b.frame)
		}
		bit := rapid.IntRange(int(p.L4)*8, int(p.End)*8-1).Draw(t, "bit")
		b.frame[bit/8] ^= 1 << (bit % 8)
		q := Packet{}
		// The bit may have made the packet another one; its checksum is then
		// off, or the packet is refused, or UDP is now without checksum.
		if Parse(b.frame, &q); q.Kind != p.Kind {
			return
		}
		zero := q.Kind == KindUDP && !q.V6 && binary.BigEndian.Uint16(b.frame[q.L4+UDPChecksum:]) == 0
		surplus := q.Kind == KindUDP && bit/8 >= int(q.L4)+UDPLength && bit/8 < int(q.L4)+UDPLength+2
		if VerifyL4(b.frame, &q) && !zero && !surplus {
			t.Fatalf("bit %d changed and still right\n%x", bit, b.frame)
		}
	})
}

func TestVerifyOthers(t *testing.T) {
	for _, c := range []struct {
		name     string
		ipv4, l4 bool
	}{
		{name: "tcp4"},
		{name: "udp4 zero checksum", l4: true},
		{name: "udp4 7 bytes"},
		{name: "gre4", l4: true},
		{name: "icmpv6 in ipv4", l4: true},
		{name: "icmp4 echo reply"},
		{name: "icmp4 unreachable udp"},
		{name: "fragment4 later", l4: true},
		{name: "fragment6 first", ipv4: true, l4: true},
		{name: "icmp6 too big tcp", ipv4: true},
		{name: "ns multicast", ipv4: true},
		{name: "no next header 6", ipv4: true, l4: true},
		{name: "arp request", ipv4: true, l4: true},
		{name: "ipv6 behind the ipv4 ethertype"},
	} {
		frame := caseFrame(t, c.name)
		var p Packet
		Parse(frame, &p)
		if got := VerifyIPv4(frame, &p); got != c.ipv4 {
			t.Errorf("%s: VerifyIPv4 = %v", c.name, got)
		}
		if got := VerifyL4(frame, &p); got != c.l4 {
			t.Errorf("%s: VerifyL4 = %v", c.name, got)
		}
		if n := testing.AllocsPerRun(20, func() { VerifyL4(frame, &p); VerifyIPv4(frame, &p) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	// A frame shorter than p says must not panic.
	frame := caseFrame(t, "tcp4")
	var p Packet
	Parse(frame, &p)
	if VerifyL4(frame[:20], &p) || VerifyIPv4(frame[:20], &p) {
		t.Error("half a frame is right")
	}
}

func TestChecksumsDoNotAllocate(t *testing.T) {
	frame := caseFrame(t, "tcp4")
	a, b := frame[26:30], frame[30:34]
	if n := testing.AllocsPerRun(100, func() {
		d := AddDiff(DiffAddr(client4, vip6), AddDiff(Diff32(1, 2), Negate(Diff16(3, 4))))
		d = AddDiff(d, DiffAt(DiffBytes(a, b), 3))
		sink += uint64(ApplyUDP(Apply(0x1234, d), d)) + uint64(Checksum(frame, PseudoSum(client4, vip4, 6, 20)))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// slowError is the error about a datagram, built from scratch.
func slowError(src, dst packet.Addr, vlan bool, kind, code uint8, rest uint32, about []byte) []byte {
	m := icmpError{src: src, dst: dst, ttl: 64, vlan: vlan, kind: kind, code: code, rest: rest}
	head, limit, proto := 28, 576, byte(packet.ProtoICMP)
	if !src.Is4() {
		head, limit, proto = 48, 1280, packet.ProtoICMPv6
	}
	m.inner = about[:min(len(about), limit-head)]
	frame := m.frame()
	if src.Is4() {
		d := frame[len(frame)-28-len(m.inner):]
		copy(d[4:], []byte{0, 0, 0x40, 0}) // no ID, DF
		recompute(d, 20, proto, false)
	}
	return frame
}

// judgeError has gopacket take the error apart.
func judgeError(t rapid.TB, frame []byte, kind, code uint8) {
	t.Helper()
	pkt := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	switch {
	case pkt.Layer(layers.LayerTypeICMPv4) != nil:
		ip, m := pkt.NetworkLayer().(*layers.IPv4), pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if slowSum(ip.Contents) != 0xffff || slowSum(ip.Payload) != 0xffff {
			t.Fatalf("checksums\n% x", frame)
		}
		if m.TypeCode != layers.CreateICMPv4TypeCode(kind, code) || ip.TTL != 64 || ip.Id != 0 || len(frame) > 576+18 {
			t.Fatalf("%+v %+v", ip, m)
		}
	case pkt.Layer(layers.LayerTypeICMPv6) != nil:
		ip, m := pkt.NetworkLayer().(*layers.IPv6), pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		pseudo := slices.Concat([]byte(ip.SrcIP), []byte(ip.DstIP))
		pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(ip.Payload))), 0, 0, 0, 58)
		if slowSum(append(pseudo, ip.Payload...)) != 0xffff {
			t.Fatalf("checksum\n% x", frame)
		}
		if m.TypeCode != layers.CreateICMPv6TypeCode(kind, code) || ip.HopLimit != 64 || len(frame) > 1280+18 {
			t.Fatalf("%+v %+v", ip, m)
		}
	default:
		t.Fatalf("gopacket: %v\n% x", pkt.ErrorLayer(), frame)
	}
}

// asked is one kind of error to ask for, and what it must become.
type asked struct {
	name         string
	v4, v6       [2]uint8
	rest4, rest6 uint32
	build        func(chunk []byte, off, n int, p *packet.Packet, src packet.Addr) (int, int, bool)
}

func errorsToAsk() []asked {
	unreach := func(why Unreach) func([]byte, int, int, *packet.Packet, packet.Addr) (int, int, bool) {
		return func(c []byte, off, n int, p *packet.Packet, src packet.Addr) (int, int, bool) {
			return Unreachable(c, off, n, p, src, why)
		}
	}
	tooBig := func(mtu int) func([]byte, int, int, *packet.Packet, packet.Addr) (int, int, bool) {
		return func(c []byte, off, n int, p *packet.Packet, src packet.Addr) (int, int, bool) {
			return TooBig(c, off, n, p, src, mtu)
		}
	}
	return []asked{
		{"time exceeded", [2]uint8{11, 0}, [2]uint8{3, 0}, 0, 0, TimeExceeded},
		{"too big", [2]uint8{3, 4}, [2]uint8{2, 0}, 1492, 1492, tooBig(1492)},
		{"too big, tiny", [2]uint8{3, 4}, [2]uint8{2, 0}, 68, 1280, tooBig(-5)},
		{"too big, huge", [2]uint8{3, 4}, [2]uint8{2, 0}, 65535, 65535, tooBig(1 << 20)},
		{"no route", [2]uint8{3, 0}, [2]uint8{1, 0}, 0, 0, unreach(UnreachNet)},
		{"no host", [2]uint8{3, 1}, [2]uint8{1, 3}, 0, 0, unreach(UnreachHost)},
		{"no port", [2]uint8{3, 3}, [2]uint8{1, 4}, 0, 0, unreach(UnreachPort)},
		{"forbidden", [2]uint8{3, 13}, [2]uint8{1, 1}, 0, 0, unreach(UnreachAdmin)},
	}
}

// TestErrorsTwin compares every error about any packet with one built from
// scratch, and looks that nothing outside changed.
func TestErrorsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := f.fromClient(drawShape(t, v6, udp))
		s.payload = bytesOf(0xa5, rapid.OneOf(rapid.IntRange(0, 60), rapid.IntRange(460, 560), rapid.IntRange(1150, 1400)).Draw(t, "size"))
		s.ttl = 1
		frame := s.frame()
		room := rapid.SampledFrom([]int{headroom, 66, 49, 48, 32, 31, 30, 14, 0}).Draw(t, "room")
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p
		vip := f.dir.Services[0].Addr
		ask := rapid.SampledFrom(errorsToAsk()).Draw(t, "error")
		kind, rest, grow := ask.v4, ask.rest4, 28
		if v6 {
			kind, rest, grow = ask.v6, ask.rest6, 48
		}
		off, n, ok := ask.build(chunk, room, len(frame), &p, vip)
		if int(was.L3)+room-grow < 18 {
			if ok || off != room || n != len(frame) || p != was || !slices.Equal(before, chunk) {
				t.Fatal("no headroom, yet built or changed")
			}
			return
		}
		if !ok || off != room-grow {
			t.Fatalf("%v at %d", ok, off)
		}
		got := chunk[off : off+n]
		want := slowError(vip, f.e.Client, s.vlan, kind[0], kind[1], rest, s.datagram())
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		judgeError(t, got, kind[0], kind[1])
		again := parse(t, got)
		if again.Kind != packet.KindICMPError || again.Dst != p.Dst || !packet.VerifyL4(got, &again) || !packet.VerifyIPv4(got, &again) {
			t.Fatalf("%+v", again)
		}
		again.Src, again.Dst = again.OuterAddrs(got)
		again.Proto, again.SrcPort, again.DstPort, again.Kind, again.Seq, again.Inner4 = again.ICMPProto(), 0, 0, packet.KindOther, 0, 0
		if again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
		end := room + int(was.End)
		if !slices.Equal(chunk[:off], before[:off]) || !slices.Equal(chunk[room+int(was.L3):end], before[room+int(was.L3):end]) ||
			!slices.Equal(chunk[end:], before[end:]) {
			t.Fatal("wrote outside the headers")
		}
	})
}

// TestErrorsRefused is the table of packets about which there is no error.
func TestErrorsRefused(t *testing.T) {
	udp4 := flow4(conntrack.FullNAT).fromClient(shape{udp: true, ttl: 1, payload: bytesOf(1, 16)})
	udp6 := flow6(conntrack.FullNAT).fromClient(shape{udp: true, ttl: 1, payload: bytesOf(1, 16)})
	to := func(s shape, dst string) []byte { s.dst = addr(dst); return s.frame() }
	from := func(s shape, src string) []byte { s.src = addr(src); return s.frame() }
	icmp := func(s shape, kind, code uint8) []byte {
		return slowError(s.src, s.dst, false, kind, code, 0, s.datagram())
	}
	fragment := func(offset uint16) []byte {
		f := udp4.frame()
		binary.BigEndian.PutUint16(f[14+6:], 0x2000|offset/8)
		return f
	}
	fragment6 := func(offset uint16) []byte {
		f := udp6.frame()
		h := append([]byte{17, 0}, binary.BigEndian.AppendUint16(nil, offset|1)...)
		h = append(h, 0, 0, 0, 7)
		f = slices.Insert(f, 14+40, h...)
		f[14+6] = 44
		binary.BigEndian.PutUint16(f[14+4:], uint16(len(f)-54))
		return f
	}
	for _, c := range []struct {
		name  string
		frame []byte
		edit  func(frame []byte, p *packet.Packet)
		want  bool
	}{
		{name: "UDP", frame: udp4.frame(), want: true},
		{name: "UDP6", frame: udp6.frame(), want: true},
		{name: "echo", frame: icmp(udp4, 8, 0), want: true},
		{name: "echo reply", frame: icmp(udp4, 0, 0), want: true},
		{name: "ICMP error", frame: icmp(udp4, 3, 3)},
		{name: "source quench", frame: icmp(udp4, 4, 0)},
		{name: "redirect", frame: icmp(udp4, 5, 0)},
		{name: "ICMP timestamp", frame: icmp(udp4, 13, 0)},
		{name: "echo6", frame: icmp(udp6, 128, 0), want: true},
		{name: "ICMPv6 error", frame: icmp(udp6, 1, 4)},
		{name: "ICMPv6 unknown error", frame: icmp(udp6, 100, 0)},
		{name: "ICMPv6 redirect", frame: icmp(udp6, 137, 0)},
		{name: "first fragment", frame: fragment(0), want: true},
		{name: "later fragment", frame: fragment(64)},
		{name: "first fragment 6", frame: fragment6(0), want: true},
		{name: "later fragment 6", frame: fragment6(64)},
		{name: "to multicast", frame: to(udp4, "224.0.0.1")},
		{name: "to broadcast", frame: to(udp4, "255.255.255.255")},
		{name: "to multicast 6", frame: to(udp6, "ff02::1")},
		{name: "from class E", frame: from(udp4, "240.0.0.1")},
		{name: "unspecified source", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.Src = addr("0.0.0.0") }},
		{name: "unspecified source 6", frame: udp6.frame(), edit: func(_ []byte, p *packet.Packet) { p.Src = packet.Addr{} }},
		{name: "loopback source", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.Src = addr("127.0.0.1") }},
		{name: "loopback source 6", frame: udp6.frame(), edit: func(_ []byte, p *packet.Packet) { p.Src = addr("::1") }},
		{name: "to a group MAC", frame: udp4.frame(), edit: func(b []byte, _ *packet.Packet) { b[0] = 0xff }},
		{name: "from a group MAC", frame: udp4.frame(), edit: func(b []byte, _ *packet.Packet) { b[6] |= 1 }},
		{name: "other family", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.V6 = true }},
		{name: "ARP", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.Kind = packet.KindARP }},
		{name: "solicitation", frame: udp6.frame(), edit: func(_ []byte, p *packet.Packet) { p.Kind = packet.KindNS }},
		{name: "refused by Parse", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.Err = packet.ErrLand }},
		{name: "ends beyond the frame", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.End += 9 }},
		{name: "no link header", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.L3 = 3 }},
		{name: "nothing but IP", frame: icmp(udp4, 8, 0), edit: func(_ []byte, p *packet.Packet) { p.End, p.Payload = p.L4, p.L4 }},
		{name: "from our own address", frame: udp4.frame(), edit: func(_ []byte, p *packet.Packet) { p.Src = addr("192.0.2.10") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse(t, c.frame)
			src := addr("192.0.2.10")
			if p.V6 {
				src = addr("2001:db8::10")
			}
			if c.edit != nil {
				c.edit(c.frame, &p)
			}
			for _, ask := range errorsToAsk() {
				chunk := inChunk(c.frame, headroom)
				before, q := slices.Clone(chunk), p
				want := c.want
				if ask.v4[0] == 3 && ask.v4[1] == 4 && !p.V6 && !p.DontFragment(c.frame) {
					want = false
				}
				off, n, ok := ask.build(chunk, headroom, len(c.frame), &q, src)
				if ok != want {
					t.Errorf("%s: %v", ask.name, ok)
				}
				if !ok && (off != headroom || n != len(c.frame) || q != p || !slices.Equal(before, chunk)) {
					t.Errorf("%s: refused, yet changed", ask.name)
				}
			}
		})
	}
}

// TestErrorSource: ours, and of the packet's family.
func TestErrorSource(t *testing.T) {
	s := flow4(conntrack.FullNAT).fromClient(shape{udp: true, ttl: 1})
	for _, c := range []struct {
		name string
		src  packet.Addr
		why  Unreach
		want bool
	}{
		{"right", addr("192.0.2.10"), UnreachPort, true},
		{"IPv6", addr("2001:db8::10"), UnreachPort, false},
		{"none", packet.Addr{}, UnreachPort, false},
		{"unknown reason", addr("192.0.2.10"), numUnreach, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := s.frame()
			p := parse(t, frame)
			if _, _, ok := Unreachable(inChunk(frame, headroom), headroom, len(frame), &p, c.src, c.why); ok != c.want {
				t.Error(ok)
			}
		})
	}
}

func TestErrorsAllocateNothing(t *testing.T) {
	for _, f := range []*flow{flow4(conntrack.FullNAT), flow6(conntrack.FullNAT)} {
		s := f.fromClient(shape{ttl: 1, flags: packet.ACK, payload: bytesOf(1, 1400)})
		frame := s.frame()
		chunk := inChunk(frame, headroom)
		p := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			copy(chunk[headroom:], frame)
			q := p
			if _, _, ok := TooBig(chunk, headroom, len(frame), &q, f.dir.Services[1].Addr, 1400); !ok {
				panic("refused")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

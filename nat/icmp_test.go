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

// icmpError is an ICMP error to be built byte by byte.
type icmpError struct {
	src, dst packet.Addr
	ttl      uint8
	vlan     bool
	kind     uint8
	code     uint8
	rest     uint32 // second word of the ICMP header
	inner    []byte // embedded datagram, as much as there is
}

func (m *icmpError) frame() []byte {
	msg := binary.BigEndian.AppendUint32([]byte{m.kind, m.code, 0, 0}, m.rest)
	msg = append(msg, m.inner...)
	var ip []byte
	proto := byte(packet.ProtoICMP)
	if m.src.Is4() {
		ip = binary.BigEndian.AppendUint16([]byte{0x45, 0xc0}, uint16(20+len(msg)))
		ip = append(ip, 0, 1, 0, 0, m.ttl, proto, 0, 0)
	} else {
		proto = packet.ProtoICMPv6
		ip = binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(msg)))
		ip = append(ip, proto, m.ttl)
	}
	ip = append(ip, addrBytes(m.src)...)
	ip = append(ip, addrBytes(m.dst)...)
	d := append(ip, msg...)
	recompute(d, len(ip), proto, false)
	return append(ether(m.src.Is4(), m.vlan), d...)
}

// TestTranslateErrorTwin compares errors in both directions, embedding any
// length of a packet, with errors built from scratch about the packet that the
// receiver once sent.
func TestTranslateErrorTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		if rapid.Bool().Draw(t, "acked") {
			f.e.Flags |= conntrack.HasServerISN | conntrack.ServerAcked
		}
		s := drawShape(t, v6, udp)
		vip, rs, local := f.dir.Services[0].Addr, f.dir.Backends[0].Addr, f.dir.Locals[0]
		router := packet.Addr{Lo: 0xffff_0a090807}
		if v6 {
			router = packet.Addr{Hi: 0x20010db8_00000077, Lo: 1}
		}
		from := rapid.Bool().Draw(t, "from a router")
		towards := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))

		var orig, sent shape
		in := icmpError{ttl: s.ttl, vlan: s.vlan}
		want := in
		if towards == conntrack.Reply {
			orig = f.fromClient(s)
			sent = f.toServer(s)
			in.src, in.dst = rs, sent.src
			want.src, want.dst = vip, f.e.Client
		} else {
			orig = f.fromServer(s)
			sent = f.toClient(s)
			in.src, in.dst = f.e.Client, vip
			want.src, want.dst = f.e.Client, rs
		}
		if from {
			in.src = router
			if towards == conntrack.Forward {
				want.src = router
			}
		}
		if towards == conntrack.Forward && f.e.Mode == conntrack.FullNAT {
			want.src = local
		}
		want.ttl--
		// TTL is not given back: the error shows how far the packet came.
		orig.ttl--
		whole := sent.datagram()
		head := len(whole) - len(s.payload)
		least := head - len(s.opts) - 12
		if udp {
			least = head
		}
		cut := rapid.IntRange(least, len(whole)).Draw(t, "embedded bytes")
		if !udp && cut == head-len(s.opts)-3 {
			cut++ // half a checksum is not looked at
		}
		if cut < head { // its SACK blocks cannot be put right, so have none
			orig.opts, sent.opts = bytesOf(1, len(s.opts)), bytesOf(1, len(s.opts))
		}
		if !udp && cut < head-len(s.opts)-6 { // without flags no ACK field is known to be one
			orig.ack = sent.ack
		}
		in.inner, want.inner = sent.datagram()[:cut], orig.datagram()[:cut]
		drawError(t, &in, v6)
		want.kind, want.code, want.rest = in.kind, in.code, slowMTU(f, &in, towards)

		frame := in.frame()
		p := parse(t, frame)
		if p.Kind != packet.KindICMPError {
			t.Fatalf("%+v", p)
		}
		if !TranslateError(frame, &p, &f.e, towards, &f.dir, TOARoom(&f.e)) {
			t.Fatal("refused")
		}
		if d := cmp.Diff(want.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

func drawError(t *rapid.T, m *icmpError, v6 bool) {
	type kind struct{ kind, code uint8 }
	kinds := []kind{{3, 1}, {3, 3}, {3, 4}, {11, 0}, {12, 0}}
	if v6 {
		kinds = []kind{{1, 4}, {2, 0}, {3, 0}, {4, 0}}
	}
	k := rapid.SampledFrom(kinds).Draw(t, "type")
	m.kind, m.code = k.kind, k.code
	m.rest = rapid.SampledFrom([]uint32{0, 60, 68, 70, 576, 1280, 1281, 1300, 1500, 65535}).Draw(t, "mtu")
}

func slowMTU(f *flow, m *icmpError, d conntrack.Dir) uint32 {
	by, least := 8, 68
	if !f.e.Client.Is4() {
		by, least = 20, 1280
		if m.kind != 2 {
			return m.rest
		}
	} else if m.kind != 3 || m.code != 4 {
		return m.rest
	}
	if d == conntrack.Forward || f.e.Proto != packet.ProtoTCP || f.e.Mode != conntrack.FullNAT ||
		f.e.Flags&conntrack.ServerAcked != 0 || int(m.rest) <= least {
		return m.rest
	}
	return uint32(max(int(m.rest)-by, least))
}

// TestErrorMTU is the table of what an error may do to its MTU.
func TestErrorMTU(t *testing.T) {
	for _, c := range []struct {
		name       string
		v6         bool
		kind, code uint8
		rest, want uint32
	}{
		{"v4 fragmentation needed", false, 3, 4, 1500, 1492},
		{"v4, upper half is not the MTU's", false, 3, 4, 7<<16 | 1500, 7<<16 | 1492},
		{"v4 not below the least", false, 3, 4, 70, 68},
		{"v4 the least", false, 3, 4, 68, 68},
		{"v4 from an old router", false, 3, 4, 0, 0},
		{"v4 another code", false, 3, 3, 1500, 1500},
		{"v4 another type", false, 11, 4, 1500, 1500},
		{"v6 too big", true, 2, 0, 1500, 1480},
		{"v6 not below the least", true, 2, 0, 1290, 1280},
		{"v6 the least", true, 2, 0, 1280, 1280},
		{"v6 another type", true, 1, 4, 1500, 1500},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, src := flow4(conntrack.FullNAT), addr("10.0.1.20")
			if c.v6 {
				f, src = flow6(conntrack.FullNAT), addr("2001:db8:1::20")
			}
			s := f.toServer(f.fromClient(shape{ttl: 9, flags: packet.SYN}))
			m := icmpError{src: src, dst: s.src, ttl: 64, kind: c.kind, code: c.code, rest: c.rest, inner: s.datagram()}
			frame := m.frame()
			p := parse(t, frame)
			if !TranslateError(frame, &p, &f.e, conntrack.Reply, &f.dir, TOARoom(&f.e)) {
				t.Fatal("refused")
			}
			if got := binary.BigEndian.Uint32(frame[p.L4+4:]); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
			if !packet.VerifyL4(frame, &p) {
				t.Error("checksum")
			}
		})
	}
}

// TestTranslateErrorRefuses: what is no error about the flow is not touched.
func TestTranslateErrorRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *flow, p *packet.Packet, frame *[]byte)
	}{
		{"not an error", func(_ *flow, p *packet.Packet, _ *[]byte) { p.Kind = packet.KindEcho }},
		{"service unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Service = 9 }},
		{"backend unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Backend = 9 }},
		{"local unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Local = 9 }},
		{"other family", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Flags |= conntrack.V6Client | conntrack.V6Server }},
		{"frame cut", func(_ *flow, _ *packet.Packet, b *[]byte) { *b = (*b)[:60] }},
		{"embedded header misplaced", func(_ *flow, p *packet.Packet, _ *[]byte) { p.Inner4 = p.Payload }},
		{"IPv6 by mistake", func(f *flow, p *packet.Packet, _ *[]byte) {
			p.V6 = true
			f.e.Flags |= conntrack.V6Client | conntrack.V6Server
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			s := f.toServer(shape{ttl: 9, flags: packet.ACK})
			m := icmpError{src: f.dir.Backends[2].Addr, dst: f.dir.Locals[1], ttl: 64, kind: 3, code: 1, inner: s.datagram()}
			frame := m.frame()
			before := slices.Clone(frame)
			p := parse(t, frame)
			short := frame
			c.edit(f, &p, &short)
			if TranslateError(short, &p, &f.e, conntrack.Reply, &f.dir, TOARoom(&f.e)) {
				t.Error("accepted")
			}
			if !slices.Equal(before, frame) {
				t.Error("changed")
			}
		})
	}
}

func TestTranslateErrorAllocatesNothing(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	f.e.SeqDelta = 5
	s := f.toClient(shape{ttl: 9, flags: packet.ACK, opts: append(bytesOf(1, 2), 5, 10, 0, 0, 0, 1, 0, 0, 0, 2)})
	m := icmpError{src: f.e.Client, dst: f.dir.Services[1].Addr, ttl: 200, kind: 3, code: 4, rest: 1400, inner: s.datagram()}
	frame := m.frame()
	p := parse(t, frame)
	if n := testing.AllocsPerRun(100, func() {
		if !TranslateError(frame, &p, &f.e, conntrack.Forward, &f.dir, TOARoom(&f.e)) {
			panic("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

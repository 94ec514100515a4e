package nat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// slowRST is a RST built from scratch. shape has a window, an urgent pointer, an
// id: none of them here.
func slowRST(src, dst packet.Addr, ports uint32, seq, ack uint32, flags uint8) []byte {
	s := shape{src: src, dst: dst, ports: ports, ttl: 64, seq: seq, ack: ack, flags: flags}
	d := s.datagram()
	l4 := len(d) - 20
	copy(d[l4+14:], []byte{0, 0, 0, 0, 0, 0})
	if src.Is4() {
		copy(d[4:], []byte{0, 0, 0x40, 0})
	} else {
		copy(d, []byte{0x60, 0, 0, 0})
	}
	recompute(d, l4, 6, false)
	return d
}

// TestResetForTwin compares with RFC 9293 section 3.10.7.1, written out.
func TestResetForTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		s := drawFlow(t, v6, false).fromClient(drawShape(t, v6, false))
		frame := s.frame()
		chunk := inChunk(frame, headroom)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was := p
		off, n, ok := ResetFor(chunk, headroom, len(frame), &p)
		if s.flags&4 != 0 {
			if ok || off != headroom || n != len(frame) || p != was || !slices.Equal(before, chunk) {
				t.Fatal("a RST answered")
			}
			return
		}
		length := uint32(len(s.payload))
		for _, bit := range []uint8{1, 2} { // FIN, SYN
			if s.flags&bit != 0 {
				length++
			}
		}
		seq, ack, flags := uint32(0), s.seq+length, uint8(0x14)
		if s.flags&0x10 != 0 {
			seq, ack, flags = s.ack, 0, 4
		}
		link := before[headroom : headroom+int(was.L3)]
		want := slices.Concat(link, slowRST(s.dst, s.src, s.ports<<16|s.ports>>16, seq, ack, flags))
		got := chunk[off : off+n]
		if d := cmp.Diff(want, got); !ok || d != "" {
			t.Fatalf("%v (-want +got):\n%s", ok, d)
		}
		judge(t, got)
		if again := parse(t, got); again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
		end := off + n
		if off != headroom || !slices.Equal(chunk[:off], before[:off]) || !slices.Equal(chunk[end:], before[end:]) {
			t.Fatal("wrote elsewhere")
		}
	})
}

func TestResetForRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(frame []byte, p *packet.Packet)
	}{
		{"UDP", func(_ []byte, p *packet.Packet) { p.Kind = packet.KindUDP }},
		{"a RST", func(_ []byte, p *packet.Packet) { p.TCPFlags |= packet.RST }},
		{"to a group MAC", func(b []byte, _ *packet.Packet) { b[0] |= 1 }},
		{"to a group address", func(_ []byte, p *packet.Packet) { p.Dst = addr("224.0.0.1") }},
		{"from broadcast", func(_ []byte, p *packet.Packet) { p.Src = addr("255.255.255.255") }},
		{"header cut", func(_ []byte, p *packet.Packet) { p.Payload = p.L4 + 8 }},
		{"refused by Parse", func(_ []byte, p *packet.Packet) { p.Err = packet.ErrLand }},
		{"damaged data", func(b []byte, p *packet.Packet) { b[p.End-1] ^= 1 }},
		{"damaged acknowledgement", func(b []byte, p *packet.Packet) { b[p.L4+packet.TCPAck] ^= 1; p.Ack ^= 1 << 24 }},
		{"damaged IPv4 header", func(b []byte, p *packet.Packet) { b[p.L3+packet.IPv4ID] ^= 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := flow4(conntrack.FullNAT).fromClient(shape{ttl: 9, flags: packet.ACK, ack: 5, payload: []byte("data")})
			frame := s.frame()
			p := parse(t, frame)
			c.edit(frame, &p)
			chunk := inChunk(frame, headroom)
			before := slices.Clone(chunk)
			if _, _, ok := ResetFor(chunk, headroom, len(frame), &p); ok || !slices.Equal(before, chunk) {
				t.Error("answered")
			}
		})
	}
}

func TestBuildReset(t *testing.T) {
	nat64 := newFlow("[2001:db8:9::7]:49153", "[2001:db8::10]:80", "10.0.1.10:20001", "10.0.1.20:8080", conntrack.FullNAT)
	const clientEnd, serverEnd, delta = 1000, 7000, 0xffffff00
	type end struct{ src, dst string }
	for _, c := range []struct {
		name               string
		f                  *flow
		mode               conntrack.Mode
		flags              conntrack.Flags
		toClient, toServer end
		seq                uint32 // towards the server
		header             int
		oneWay             bool
	}{
		{name: "Full-NAT", f: flow4(conntrack.FullNAT), toClient: end{"192.0.2.10", "198.51.100.7"}, toServer: end{"10.0.1.10", "10.0.1.20"}, seq: 744},
		{name: "PROXY header not acknowledged", f: flow4(conntrack.FullNAT), toClient: end{"192.0.2.10", "198.51.100.7"}, toServer: end{"10.0.1.10", "10.0.1.20"}, header: 50, seq: 794},
		{name: "Full-NAT 6", f: flow6(conntrack.FullNAT), toClient: end{"2001:db8::10", "2001:db8:9::7"}, toServer: end{"2001:db8:1::10", "2001:db8:1::20"}, seq: 744},
		{name: "NAT64", f: nat64, toClient: end{"2001:db8::10", "2001:db8:9::7"}, toServer: end{"10.0.1.10", "10.0.1.20"}, seq: 744},
		{name: "DNAT", f: flow4(conntrack.DNAT), mode: conntrack.DNAT, toClient: end{"192.0.2.10", "198.51.100.7"}, toServer: end{"198.51.100.7", "10.0.1.20"}, seq: 744},
		{name: "DNAT, one way", f: flow4(conntrack.DNAT), mode: conntrack.DNATOneWay, toServer: end{"198.51.100.7", "10.0.1.20"}, seq: 744, oneWay: true},
		{name: "direct return", f: flow4(conntrack.DNAT), mode: conntrack.DirectReturn, toServer: end{"198.51.100.7", "192.0.2.10"}, seq: 744, oneWay: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &c.f.e
			e.Mode = c.mode
			e.State, e.SeqDelta = conntrack.Established, delta
			e.Win[0].End, e.Win[1].End = clientEnd, serverEnd
			for d, want := range []end{c.toServer, c.toClient} {
				chunk := bytesOf(0xee, 2048)
				off, n, ok := BuildReset(chunk, e, conntrack.Dir(d), &c.f.dir, c.header)
				if ok != (want.src != "") {
					t.Fatalf("direction %d: %v", d, ok)
				}
				if !ok {
					continue
				}
				src, dst := addr(want.src), addr(want.dst)
				sport, dport := c.f.e.LocalPort, uint16(8080)
				seq, ack, flags := c.seq, uint32(serverEnd), uint8(0x14)
				if c.mode != conntrack.FullNAT {
					sport = e.ClientPort
				}
				if d == 1 {
					sport, dport, seq, ack = 80, e.ClientPort, serverEnd, clientEnd
				} else if c.oneWay {
					ack, flags = 0, 4
				}
				if c.mode == conntrack.DirectReturn {
					dport = 80 // the server has the VIP
				}
				link := ether(src.Is4(), false)
				clear(link[:12])
				wantFrame := slices.Concat(link, slowRST(src, dst, uint32(sport)<<16|uint32(dport), seq, ack, flags))
				if d := cmp.Diff(wantFrame, chunk[off:off+n]); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
				judge(t, chunk[off:off+n])
				if off < 18 || slices.ContainsFunc(slices.Concat(chunk[:off], chunk[off+n:]), func(b byte) bool { return b != 0xee }) {
					t.Error("wrote elsewhere")
				}
			}
		})
	}
}

func TestBuildResetRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *flow, chunk *[]byte)
	}{
		{"UDP", func(f *flow, _ *[]byte) { f.e.Proto = packet.ProtoUDP }},
		{"no handshake", func(f *flow, _ *[]byte) { f.e.State = conntrack.SynRecv }},
		{"over", func(f *flow, _ *[]byte) { f.e.State = conntrack.TimeWait }},
		{"service unknown", func(f *flow, _ *[]byte) { f.e.Service = 9 }},
		{"backend unknown", func(f *flow, _ *[]byte) { f.e.Backend = 9 }},
		{"local unknown", func(f *flow, _ *[]byte) { f.e.Local = 9 }},
		{"chunk too short", func(_ *flow, c *[]byte) { *c = (*c)[:123] }},
		{"families mixed", func(f *flow, _ *[]byte) { f.e.Client = addr("2001:db8::1"); f.dir.Locals[1] = f.e.Client }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, chunk := flow4(conntrack.FullNAT), bytesOf(0xee, 156)
			f.e.State = conntrack.LastAck
			if _, _, ok := BuildReset(chunk, &f.e, conntrack.Forward, &f.dir, 0); !ok {
				t.Fatal("the flow itself is refused")
			}
			clear(chunk)
			c.edit(f, &chunk)
			for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
				if _, _, ok := BuildReset(chunk, &f.e, d, &f.dir, 0); ok || slices.Max(chunk) != 0 {
					t.Error("built")
				}
			}
		})
	}
}

func TestResetsAllocateNothing(t *testing.T) {
	f := flow6(conntrack.FullNAT)
	f.e.State = conntrack.Established
	s := f.fromClient(shape{ttl: 9, flags: packet.ACK, ack: 5})
	frame := s.frame()
	chunk := inChunk(frame, headroom)
	p := parse(t, frame)
	if n := testing.AllocsPerRun(100, func() {
		copy(chunk[headroom:], frame)
		q := p
		if _, _, ok := ResetFor(chunk, headroom, len(frame), &q); !ok {
			panic("refused")
		}
		if _, _, ok := BuildReset(chunk, &f.e, conntrack.Reply, &f.dir, 0); !ok {
			panic("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

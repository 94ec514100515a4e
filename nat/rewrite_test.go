package nat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestRewriteTwin compares Forward and Reply, byte by byte, with packets built
// from scratch the way they should leave.
func TestRewriteTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := drawShape(t, v6, udp)

		in, want := f.fromClient(s), f.toServer(s)
		check(t, "Forward", Forward, f, in.frame(), want.frame())
		in, want = f.fromServer(s), f.toClient(s)
		check(t, "Reply", Reply, f, in.frame(), want.frame())
	})
}

type rewriter func([]byte, *packet.Packet, *conntrack.Entry, *conntrack.Directory) bool

func check(t rapid.TB, name string, fn rewriter, f *flow, in, want []byte) {
	t.Helper()
	got := slices.Clone(in)
	p := parse(t, got)
	was := p
	if !fn(got, &p, &f.e, &f.dir) {
		t.Fatalf("%s refused % x", name, in)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", name, d)
	}
	if p != was {
		t.Fatalf("%s changed its Packet", name)
	}
}

// TestRoundTrip: what Forward did to the addresses and ports of a packet, Reply
// undoes for the packet that answers it.
func TestRoundTrip(t *testing.T) {
	for name, f := range map[string]*flow{
		"v4 full-nat": flow4(conntrack.FullNAT), "v4 dnat": flow4(conntrack.DNAT),
		"v6 full-nat": flow6(conntrack.FullNAT), "v6 dnat": flow6(conntrack.DNAT),
	} {
		t.Run(name, func(t *testing.T) {
			f.e.SeqDelta = 0x89abcdef
			s := f.fromClient(shape{ttl: 64, seq: 1000, flags: packet.PSH | packet.ACK, ack: 5, payload: []byte("odd")})
			frame := s.frame()
			client := parse(t, frame)
			if !Forward(frame, &client, &f.e, &f.dir) {
				t.Fatal("Forward")
			}
			judge(t, frame)
			server := parse(t, frame)
			back := shape{src: server.Dst, dst: server.Src, ports: uint32(server.DstPort)<<16 | uint32(server.SrcPort),
				ttl: 64, seq: 5, ack: server.Seq + 3, flags: packet.ACK}
			frame = back.frame()
			p := parse(t, frame)
			if !Reply(frame, &p, &f.e, &f.dir) {
				t.Fatal("Reply")
			}
			judge(t, frame)
			p = parse(t, frame)
			want := packet.Tuple{Src: client.Dst, Dst: client.Src, SrcPort: client.DstPort, DstPort: client.SrcPort, Proto: 6}
			if p.Tuple != want || p.Ack != 1003 {
				t.Errorf("%+v ack %d, want %+v ack 1003", p.Tuple, p.Ack, want)
			}
		})
	}
}

// TestDamageSurvives: a packet with a wrong checksum is rewritten, not repaired.
func TestDamageSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := f.fromClient(drawShape(t, v6, udp))
		s.noCsum = false
		s.payload = append(s.payload, 'x')
		frame := s.frame()
		p := parse(t, frame)
		frame[p.End-1] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		StripOptions(frame, &p, packet.OptTOA, packet.OptTimestamps, 0)
		LowerMSS(frame, &p, 8)
		Forward(frame, &p, &f.e, &f.dir)
		p = parse(t, frame)
		if packet.VerifyL4(frame, &p) {
			t.Fatal("a damaged packet has become a good one")
		}
	})
}

func TestRewriteRefuses(t *testing.T) {
	tcp := shape{ttl: 9, flags: packet.ACK}
	for _, c := range []struct {
		name string
		edit func(f *flow, p *packet.Packet, frame *[]byte)
	}{
		{"backend unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Backend = 3; f.e.Service = 9 }},
		{"local unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Local = 2; f.e.Service = 9 }},
		{"other family", func(_ *flow, p *packet.Packet, _ *[]byte) { p.V6 = true }},
		{"fragment", func(_ *flow, p *packet.Packet, _ *[]byte) { p.Kind = packet.KindFragment }},
		{"IP header cut", func(_ *flow, _ *packet.Packet, b *[]byte) { *b = (*b)[:33] }},
		{"TCP header cut", func(_ *flow, _ *packet.Packet, b *[]byte) { *b = (*b)[:50] }},
		{"UDP header cut", func(_ *flow, p *packet.Packet, b *[]byte) { p.Kind = packet.KindUDP; *b = (*b)[:41] }},
		{"IPv6 header cut", func(f *flow, p *packet.Packet, b *[]byte) {
			p.V6 = true
			f.e.Flags |= conntrack.V6Client | conntrack.V6Server
			*b = (*b)[:53]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			s := f.fromClient(tcp)
			frame := s.frame()
			p := parse(t, frame)
			c.edit(f, &p, &frame)
			if Forward(frame, &p, &f.e, &f.dir) {
				t.Error("Forward accepted it")
			}
			if Reply(frame, &p, &f.e, &f.dir) {
				t.Error("Reply accepted it")
			}
		})
	}
	for name, edit := range map[string]func(*conntrack.Entry){
		"service": func(e *conntrack.Entry) { e.Service = 2 },
		"backend": func(e *conntrack.Entry) { e.Backend = 3 },
		"local":   func(e *conntrack.Entry) { e.Local = 2 },
	} {
		f := flow4(conntrack.FullNAT)
		edit(&f.e)
		if Prepare(&f.e, &f.dir) {
			t.Errorf("Prepare accepted an unknown %s", name)
		}
	}
}

// TestPrepareDirectReturn: nothing changes, least of all the family.
func TestPrepareDirectReturn(t *testing.T) {
	const both = conntrack.V6Client | conntrack.V6Server
	for name, f := range map[string]*flow{
		"v4": flow4(conntrack.DNAT), "v6": flow6(conntrack.DNAT),
		"v6, server found by IPv4": newFlow("[2001:db8:9::7]:49153", "[2001:db8::10]:80", "10.0.1.10:1", "10.0.1.20:80", conntrack.FullNAT),
	} {
		f.e.Mode = conntrack.DirectReturn
		want := conntrack.Flags(0)
		if !f.e.Client.Is4() {
			want = both
		}
		if !Prepare(&f.e, &f.dir) || f.e.Flags&both != want || packet.Apply(1, f.e.AddrSum) != 1 {
			t.Errorf("%s: %+v", name, f.e)
		}
		f.dir.Services = nil
		if Prepare(&f.e, &f.dir) {
			t.Errorf("%s: prepared without a VIP", name)
		}
	}
}

func TestRewriteAllocatesNothing(t *testing.T) {
	for name, f := range map[string]*flow{"v4": flow4(conntrack.FullNAT), "v6": flow6(conntrack.FullNAT)} {
		f.e.SeqDelta = 77
		s := f.fromServer(shape{ttl: 200, flags: packet.ACK, opts: append(bytesOf(1, 2), 5, 10, 0, 0, 0, 1, 0, 0, 0, 2)})
		frame := s.frame()
		p := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			Prepare(&f.e, &f.dir)
			Forward(frame, &p, &f.e, &f.dir)
			Reply(frame, &p, &f.e, &f.dir)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func benchRewrite(b *testing.B, fn rewriter, f *flow, s shape) {
	f.e.SeqDelta = 0x12345678
	frame := s.frame()
	p := parse(b, frame)
	// A burst of frames: one alone would wait for its own stores.
	var burst [64][]byte
	for i := range burst {
		burst[i] = append(make([]byte, 0, 256), frame...)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		fn(burst[i%len(burst)], &p, &f.e, &f.dir)
	}
}

func BenchmarkForwardTCP4(b *testing.B) {
	f := flow4(conntrack.FullNAT)
	benchRewrite(b, Forward, f, f.fromClient(shape{flags: packet.ACK}))
}

func BenchmarkReplyTCP4(b *testing.B) {
	f := flow4(conntrack.FullNAT)
	benchRewrite(b, Reply, f, f.fromServer(shape{flags: packet.ACK}))
}

func BenchmarkReplyTCP4Timestamps(b *testing.B) {
	f := flow4(conntrack.FullNAT)
	benchRewrite(b, Reply, f, f.fromServer(shape{flags: packet.ACK, opts: []byte{1, 1, 8, 10, 1, 1, 1, 1, 2, 2, 2, 2}}))
}

func BenchmarkForwardTCP6(b *testing.B) {
	f := flow6(conntrack.FullNAT)
	benchRewrite(b, Forward, f, f.fromClient(shape{flags: packet.ACK}))
}

func BenchmarkForwardUDP4(b *testing.B) {
	f := flow4(conntrack.DNAT)
	benchRewrite(b, Forward, f, f.fromClient(shape{udp: true}))
}

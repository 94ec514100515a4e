package nat

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestInsertProxyUDPTwin compares what becomes of a client's datagram with packets
// built from scratch.
func TestInsertProxyUDPTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, true)
		f.e.Mode = conntrack.FullNAT
		Prepare(&f.e, &f.dir)
		s := f.fromClient(drawShape(t, v6, true))
		mtu := rapid.SampledFrom([]int{1500, 1500, 1500, 90, 0}).Draw(t, "mtu")
		room := rapid.SampledFrom([]int{headroom, headroom, 52, 28, 27}).Draw(t, "room")
		header := make([]byte, ProxyLen(&f.e, &f.dir, ProxyV2))
		putProxy(header, &f.e, &f.dir, ProxyV2)

		frame := s.frame()
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was, e := p, f.e
		off, n, res := InsertProxyUDP(chunk, room, len(frame), &p, &f.e, &f.dir, mtu)
		want, wantRes := s, ProxyInserted
		switch {
		case was.IPLen()+len(header) > mtu:
			wantRes = ProxyTooBig
		case room < len(header):
			wantRes = ProxyNoHeadroom
		default:
			want.payload, want.pad = slices.Concat(header, s.payload), nil
			if short := min(60, len(frame)+len(header)) - len(want.frame()); short > 0 {
				want.pad = make([]byte, short)
			}
		}
		if res != wantRes || e != f.e {
			t.Fatalf("%v, want %v", res, wantRes)
		}
		if res.Drop() {
			if off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatal("changed")
			}
			return
		}
		got := chunk[off : off+n]
		judge(t, got)
		if d := cmp.Diff(want.frame(), got); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		if again := parse(t, got); again != p {
			t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
		}
		if !slices.Equal(chunk[:off], before[:off]) || !slices.Equal(chunk[room+len(frame):], before[room+len(frame):]) {
			t.Fatal("wrote outside the frame")
		}
	})
}

// TestInsertProxyUDPDamaged: a datagram damaged on its way stays so, also where its
// checksum becomes zero, which would be none.
func TestInsertProxyUDPDamaged(t *testing.T) {
	for flip := 0; flip < 1<<16; flip += 1 + flip/500 { // all small ones, and some
		f := udpFlow(flow4(conntrack.FullNAT))
		s := f.fromClient(shape{udp: true, ttl: 9, payload: []byte{1, 2, 3, 4}})
		frame := s.frame()
		frame[len(frame)-2] ^= byte(flip >> 8)
		frame[len(frame)-1] ^= byte(flip)
		chunk := inChunk(frame, headroom)
		p := parse(t, frame)
		off, n, res := InsertProxyUDP(chunk, headroom, len(frame), &p, &f.e, &f.dir, 1500)
		if got := chunk[off : off+n]; res != ProxyInserted || packet.VerifyL4(got, &p) != (flip == 0) {
			t.Fatalf("%v: damage %#x, checksum right: %v", res, flip, packet.VerifyL4(got, &p))
		}
	}
}

func TestInsertProxyUDPRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *flow, p *packet.Packet)
		want ProxyResult
	}{
		{"as it should be", func(*flow, *packet.Packet) {}, ProxyInserted},
		{"TCP", func(_ *flow, p *packet.Packet) { p.Kind = packet.KindTCP }, ProxyRefused},
		{"DNAT", func(f *flow, _ *packet.Packet) { f.e.Mode = conntrack.DNAT }, ProxyRefused},
		{"no header", func(f *flow, _ *packet.Packet) { f.e.Service = 9 }, ProxyRefused},
		{"offsets that are not a frame's", func(_ *flow, p *packet.Packet) { p.End = 9999 }, ProxyRefused},
		{"more than a header", func(_ *flow, p *packet.Packet) { p.Payload++ }, ProxyRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := udpFlow(flow4(conntrack.FullNAT))
			s := f.fromClient(shape{udp: true, ttl: 9, payload: []byte("hello")})
			frame := s.frame()
			chunk := inChunk(frame, headroom)
			p := parse(t, frame)
			c.edit(f, &p)
			if _, _, res := InsertProxyUDP(chunk, headroom, len(frame), &p, &f.e, &f.dir, 1500); res != c.want {
				t.Errorf("%v, want %v", res, c.want)
			}
		})
	}
}

// FuzzInsertProxyUDP: whatever the offsets, no panic.
func FuzzInsertProxyUDP(f *testing.F) {
	f.Add(256, 60, uint16(14), uint16(34), uint16(42), uint16(50), 1500)
	f.Add(0, 60, uint16(14), uint16(54), uint16(62), uint16(62), 40)
	f.Fuzz(func(_ *testing.T, off, n int, l3, l4, payload, end uint16, mtu int) {
		fl := udpFlow(flow6(conntrack.FullNAT))
		p := packet.Packet{Kind: packet.KindUDP, L3: l3, L4: l4, Payload: payload, End: end}
		InsertProxyUDP(bytesOf(0xee, 2048), off, n, &p, &fl.e, &fl.dir, mtu)
	})
}

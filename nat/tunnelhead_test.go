package nat

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// TestTunnelHeadTwin: a head does to a packet what DecTTL and Encapsulate do, which
// gopacket judges, packet after packet.
func TestTunnelHeadTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner6, outer6 := rapid.Bool().Draw(t, "inner v6"), rapid.Bool().Draw(t, "outer v6")
		tn := Tunnel{
			Kind: Encapsulation(rapid.IntRange(1, int(NumEncapsulations)-1).Draw(t, "kind")),
			Port: port(t, "port"), VNI: edgy(t, "vni") & 0xffffff, MAC: tunnelMAC,
		}
		o := drawOuter(t, outer6)
		if rapid.Bool().Draw(t, "own source") {
			tn.Source, tn.Spread = addr("172.16.0.0"), uint8(rapid.IntRange(0, 16).Draw(t, "spread"))
			if outer6 {
				tn.Source, tn.Spread = addr("2001:db8:7::"), uint8(rapid.IntRange(0, 32).Draw(t, "spread"))
			}
			o.Src = tn.Source
		}
		h, ok := tn.Head(o, inner6)
		if !ok || h.Len() != tn.Overhead(!outer6) || h.V4() == outer6 {
			t.Fatalf("%+v, %v", h, ok)
		}
		for range 3 {
			udp := rapid.Bool().Draw(t, "udp")
			s := drawFlow(t, inner6, udp).fromClient(drawShape(t, inner6, udp))
			frame := s.frame()
			p := parse(t, frame)
			if !inner6 && p.L4-p.L3 != packet.IPv4MinLen {
				continue
			}
			ip := frame[p.L3:]
			if tos := rapid.Byte().Draw(t, "tos"); inner6 {
				ip[0], ip[1] = 0x60|tos>>4, tos<<4|ip[1]&15
			} else {
				ip[1], ip[6] = tos, byte(rapid.SampledFrom([]int{0, 0x40}).Draw(t, "df"))
			}
			o.Hash, o.ID = edgy(t, "hash"), port(t, "id")
			if tn.Spread > 0 {
				o.Src = tn.SourceFor(o.Hash)
			}
			put, want := inChunk(frame, headroom), inChunk(frame, headroom)
			DecTTL(want[headroom:], &p)
			at, end := headroom+int(p.L3), headroom+int(p.End)
			start, ok := tn.Encapsulate(want, at, end, &p, o)
			n := h.Put(put[at-TunnelHeadLen:end], &p, o.Hash, o.ID)
			if !ok || int(n) != end-start || !bytes.Equal(put[start:], want[start:]) || !bytes.Equal(put[:at-TunnelHeadLen], want[:at-TunnelHeadLen]) {
				t.Fatalf("%d bytes\n%x, want\n%x", n, put[start:end], want[start:end])
			}
		}
	})
}

// TestTunnelHeadUDPZero: a UDP checksum that adds up to zero is all ones, for zero is
// none.
func TestTunnelHeadUDPZero(t *testing.T) {
	tn := Tunnel{Kind: FOU, Port: 5555}
	s := flow4(0).fromClient(shape{ttl: 9, payload: bytesOf(7, 33)})
	frame := s.frame()
	p := parse(t, frame)
	ones := 0
	for _, src := range []string{"2001:db8::1", "2001:db8::4001", "2001:db8::8001", "2001:db8::c001"} {
		h, _ := tn.Head(&Outer{Src: addr(src), Dst: addr("2001:db8::2")}, false)
		for hash := range uint32(tunnelPorts) { // so that every sum occurs
			chunk := inChunk(frame, headroom)
			at := headroom + int(p.L3)
			h.Put(chunk[at-TunnelHeadLen:headroom+int(p.End)], &p, hash, 0)
			switch udp := at - packet.UDPLen; binary.BigEndian.Uint16(chunk[udp+packet.UDPChecksum:]) {
			case 0:
				t.Fatalf("%s, hash %d: no checksum", src, hash)
			case 0xffff:
				ones++
			}
		}
	}
	if ones == 0 {
		t.Error("no sum is zero")
	}
}

// TestTunnelHeadRefuses what Encapsulate does, and a source that is none.
func TestTunnelHeadRefuses(t *testing.T) {
	four, six := addr("10.0.0.1"), addr("2001:db8::1")
	for name, c := range map[string]struct {
		tn Tunnel
		o  Outer
	}{
		"no tunnel":      {Tunnel{}, Outer{Src: four, Dst: four}},
		"unknown tunnel": {Tunnel{Kind: NumEncapsulations}, Outer{Src: four, Dst: four}},
		"no source":      {Tunnel{Kind: IPIP}, Outer{Dst: six}},
		"two families":   {Tunnel{Kind: IPIP}, Outer{Src: four, Dst: six}},
	} {
		if h, ok := c.tn.Head(&c.o, false); ok {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func BenchmarkTunnelHead(b *testing.B) {
	s := flow4(0).fromClient(shape{ttl: 9, payload: bytesOf(7, 6)})
	frame := s.frame()
	var p packet.Packet
	packet.Parse(frame, &p)
	chunk := inChunk(frame, headroom)
	was := slices.Clone(chunk)
	at, end := headroom+int(p.L3), headroom+int(p.End)
	for _, o := range []Outer{{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2")}, {Src: addr("2001:db8::1"), Dst: addr("2001:db8::2")}} {
		for name, tn := range map[string]Tunnel{"ipip": {Kind: IPIP}, "gue": {Kind: GUE}, "vxlan": {Kind: VXLAN}} {
			h, _ := tn.Head(&o, false)
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					copy(chunk[at:end], was[at:end])
					h.Put(chunk[at-TunnelHeadLen:end], &p, 77, 0)
				}
			})
		}
	}
}

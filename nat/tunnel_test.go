package nat

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

var (
	tunnelMAC = [6]byte{2, 0x6c, 0x34, 0x66, 0x77, 0x64}
	outerMAC  = [6]byte{2, 0, 0, 0, 7, 7}
)

// outerLayers is what gopacket makes of a tunnel's packet, the inner one excluded.
func outerLayers(tn *Tunnel, o *Outer, inner []byte) []gopacket.SerializableLayer {
	six := inner[0]>>4 == 6
	tos, ttl, df, proto, ether := inner[1], min(inner[8], 64), inner[6]&0x40 != 0, layers.IPProtocolIPv4, layers.EthernetTypeIPv4
	if six {
		tos, ttl, df, proto, ether = inner[0]<<4|inner[1]>>4, min(inner[7], 64), true, layers.IPProtocolIPv6, layers.EthernetTypeIPv6
	}
	var between []gopacket.SerializableLayer
	udp := &layers.UDP{SrcPort: layers.UDPPort(49152 + o.Hash%16384), DstPort: layers.UDPPort(tn.Port)}
	switch tn.Kind {
	case GRE:
		proto = layers.IPProtocolGRE
		between = append(between, &layers.GRE{Protocol: ether})
	case GUE:
		between = append(between, udp, gopacket.Payload([]byte{0, byte(proto), 0, 0}))
	case FOU:
		between = append(between, udp)
	case VXLAN:
		between = append(between, udp, &layers.VXLAN{ValidIDFlag: true, VNI: tn.VNI},
			// gopacket's Ethernet would fill up to 60 bytes, as only a wire needs it.
			gopacket.Payload(binary.BigEndian.AppendUint16(slices.Concat(tn.MAC[:], outerMAC[:]), uint16(ether))))
	}
	if tn.Kind >= GUE {
		proto = layers.IPProtocolUDP
	}
	if !o.Src.Is4() {
		ip := &layers.IPv6{Version: 6, TrafficClass: tos, FlowLabel: max(o.Hash>>12, 1), HopLimit: ttl, NextHeader: proto,
			SrcIP: o.Src.Netip().AsSlice(), DstIP: o.Dst.Netip().AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		return append([]gopacket.SerializableLayer{ip}, between...)
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TOS: tos, TTL: ttl, Protocol: proto, Flags: layers.IPv4DontFragment,
		SrcIP: o.Src.Netip().AsSlice(), DstIP: o.Dst.Netip().AsSlice()}
	_ = udp.SetNetworkLayerForChecksum(ip)
	if !df {
		ip.Flags, ip.Id = 0, o.ID
	}
	return append([]gopacket.SerializableLayer{ip}, between...)
}

// wantTunnel is the whole packet. gopacket would compute a UDP checksum in IPv4 too.
func wantTunnel(t rapid.TB, tn *Tunnel, o *Outer, inner []byte) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	all := append(outerLayers(tn, o, inner), gopacket.Payload(inner))
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	out := buf.Bytes()
	if o.Src.Is4() && tn.Kind >= GUE {
		out[packet.IPv4MinLen+packet.UDPChecksum], out[packet.IPv4MinLen+packet.UDPChecksum+1] = 0, 0
	}
	return out
}

func drawOuter(t *rapid.T, v6 bool) *Outer {
	o := &Outer{Src: addr("10.0.1.1"), Dst: addr("10.0.9.20"), Hash: edgy(t, "hash"), ID: port(t, "id"), MAC: outerMAC}
	if v6 {
		o.Src, o.Dst = addr("2001:db8:1::1"), addr("2001:db8:9::20")
	}
	return o
}

// TestEncapsulateTwin compares with gopacket, whatever the packet within: both
// families in both, fragments, damaged checksums and those that are not there.
func TestEncapsulateTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "inner v6"), rapid.Bool().Draw(t, "udp")
		s := drawFlow(t, v6, udp).fromClient(drawShape(t, v6, udp))
		frame := s.frame()
		ip := frame[len(ether(true, s.vlan)):]
		tos := rapid.Byte().Draw(t, "tos")
		if v6 {
			ip[0], ip[1] = 0x60|tos>>4, tos<<4|ip[1]&15
		} else {
			ip[1], ip[6] = tos, byte(rapid.SampledFrom([]int{0, 0x40}).Draw(t, "df"))
		}
		tn := Tunnel{
			Kind: Encapsulation(rapid.IntRange(1, int(NumEncapsulations)-1).Draw(t, "kind")),
			Port: port(t, "port"), VNI: edgy(t, "vni") & 0xffffff, MAC: tunnelMAC,
		}
		o := drawOuter(t, rapid.Bool().Draw(t, "outer v6"))
		p := parse(t, frame)
		chunk := inChunk(frame, headroom)
		before := slices.Clone(chunk)
		at, end := headroom+int(p.L3), headroom+int(p.End)
		start, ok := tn.Encapsulate(chunk, at, end, &p, o)
		if !ok || at-start != tn.Overhead(o.Src.Is4()) || at-start > MaxOverhead {
			t.Fatalf("%d to %d, %v", start, at, ok)
		}
		if d := cmp.Diff(wantTunnel(t, &tn, o, chunk[at:end]), chunk[start:end]); d != "" {
			t.Fatalf("(-want +got)\n%s", d)
		}
		if !bytes.Equal(before[:start], chunk[:start]) || !bytes.Equal(before[at:], chunk[at:]) {
			t.Fatal("wrote elsewhere")
		}
		again := slices.Clone(before)
		if _, ok := tn.Encapsulate(again, at, end, nil, o); !ok || !bytes.Equal(again, chunk) {
			t.Fatal("another packet if all bytes are summed up")
		}
	})
}

// TestEncapsulateDamaged: what is damaged within does not get a right outer checksum,
// so that nobody takes the tunnel's word for it.
func TestEncapsulateDamaged(t *testing.T) {
	s := flow4(0).fromClient(shape{ttl: 9, payload: bytesOf(7, 33)})
	frame := s.frame()
	frame[len(frame)-1] ^= 0x10
	p := parse(t, frame)
	tn := Tunnel{Kind: FOU, Port: 5555}
	o := &Outer{Src: addr("2001:db8::1"), Dst: addr("2001:db8::2")}
	chunk := inChunk(frame, headroom)
	start, ok := tn.Encapsulate(chunk, headroom+int(p.L3), headroom+int(p.End), &p, o)
	if !ok {
		t.Fatal("refused")
	}
	outer := slices.Concat(ether(false, false), chunk[start:headroom+int(p.End)])
	q := parse(t, outer)
	if packet.VerifyL4(outer, &q) {
		t.Error("the outer checksum is right")
	}
}

// TestEncapsulateSums: packets whose own checksum does not tell what they sum up to.
func TestEncapsulateSums(t *testing.T) {
	udp := func(change func(*shape)) []byte {
		s := shape{src: addr("198.51.100.7"), dst: addr("192.0.2.10"), ports: 0x1234_5678, udp: true, ttl: 9, payload: bytesOf(0x35, 21)}
		change(&s)
		return s.frame()
	}
	longer := udp(func(s *shape) { s.payload = bytesOf(0x35, 31) })
	longer[14+20+packet.UDPLength+1] -= 10 // what is behind is nobody's
	extended := udp(func(s *shape) { s.src, s.dst = addr("2001:db8::7"), addr("2001:db8::10") })
	extended = slices.Concat(extended[:54], []byte{17, 0, 1, 4, 0, 0, 0, 0}, extended[54:])
	extended[14+packet.IPv6NextHeader], extended[14+packet.IPv6PayloadLen+1] = 60, extended[14+packet.IPv6PayloadLen+1]+8
	extended[len(extended)-1] ^= 1 // as if the checksum were for another destination
	for name, frame := range map[string][]byte{
		"no checksum": udp(func(s *shape) { s.noCsum = true }), "longer than UDP says": longer, "extension header": extended,
	} {
		p := parse(t, frame)
		if p.Kind != packet.KindUDP {
			t.Fatalf("%s: %+v", name, p)
		}
		tn, o := Tunnel{Kind: FOU, Port: 5555}, &Outer{Src: addr("2001:db8::1"), Dst: addr("2001:db8::2")}
		with, without := inChunk(frame, headroom), inChunk(frame, headroom)
		_, ok := tn.Encapsulate(with, headroom+int(p.L3), headroom+int(p.End), &p, o)
		tn.Encapsulate(without, headroom+int(p.L3), headroom+int(p.End), nil, o)
		if !ok || !bytes.Equal(with, without) {
			t.Errorf("%s: another checksum if all bytes are summed up", name)
		}
	}
}

// TestEncapsulateRefuses what it cannot write.
func TestEncapsulateRefuses(t *testing.T) {
	s := flow4(0).fromClient(shape{ttl: 9, payload: bytesOf(7, 33)})
	d := s.datagram()
	good := Tunnel{Kind: VXLAN}
	o4 := &Outer{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2")}
	for name, c := range map[string]struct {
		tn      Tunnel
		ip, end int
		o       *Outer
	}{
		"no tunnel":       {Tunnel{}, 100, 100 + len(d), o4},
		"unknown tunnel":  {Tunnel{Kind: NumEncapsulations}, 100, 100 + len(d), o4},
		"no room":         {good, 49, 49 + len(d), o4},
		"mixed addresses": {good, 100, 100 + len(d), &Outer{Src: addr("::1"), Dst: addr("10.0.0.2")}},
		"beyond the end":  {good, 100, 2049, o4},
		"no packet":       {good, 100, 119, o4},
	} {
		chunk := make([]byte, 2048)
		copy(chunk[min(c.ip, 1000):], d)
		before := slices.Clone(chunk)
		if _, ok := c.tn.Encapsulate(chunk, c.ip, c.end, nil, c.o); ok || !bytes.Equal(before, chunk) {
			t.Errorf("%s: not refused", name)
		}
	}
}

// TestSourceFor: the flow chooses the last bits, and never the first or last address
// of a network.
func TestSourceFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tn := Tunnel{Source: addr("172.16.0.0"), Spread: uint8(rapid.IntRange(0, 16).Draw(t, "bits"))}
		if rapid.Bool().Draw(t, "v6") {
			tn.Source = addr("2001:db8:99::")
			tn.Spread = uint8(rapid.IntRange(0, 64).Draw(t, "bits 6"))
		}
		hash := edgy(t, "hash")
		got := tn.SourceFor(hash)
		bits := min(tn.Spread, 31)
		host := got.Lo - tn.Source.Lo
		if got.Hi != tn.Source.Hi || host >= 1<<bits || got.Is4() != tn.Source.Is4() {
			t.Fatalf("%v", got)
		}
		if mask := uint64(1)<<bits - 1; mask > 1 && (host == 0 || host == mask || uint64(hash)&mask-host+1 > 2) {
			t.Fatalf("%v of %#x", got, hash)
		}
	})
	seen := map[packet.Addr]bool{}
	tn := Tunnel{Source: addr("10.9.0.0"), Spread: 8}
	for h := range uint32(1 << 10) {
		seen[tn.SourceFor(h*0x9e3779b1)] = true
	}
	if len(seen) < 240 {
		t.Errorf("%d addresses", len(seen))
	}
	if a := (&Tunnel{}).SourceFor(5); !a.IsZero() {
		t.Errorf("%v without a source", a)
	}
}

// TestEncapsulateAllocatesNothing.
func TestEncapsulateAllocatesNothing(t *testing.T) {
	s := flow6(0).fromClient(shape{ttl: 9, payload: bytesOf(7, 33)})
	frame := s.frame()
	p := parse(t, frame)
	chunk := inChunk(frame, headroom)
	tn := Tunnel{Kind: VXLAN, Port: 4789}
	o := Outer{Src: addr("2001:db8::1"), Dst: addr("2001:db8::2")}
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := tn.Encapsulate(chunk, headroom+int(p.L3), headroom+int(p.End), &p, &o); !ok {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzEncapsulate: any bytes for a packet: no panic, nothing written outside.
func FuzzEncapsulate(f *testing.F) {
	f.Add([]byte{0x45}, uint8(1), true)
	s := flow6(0).fromClient(shape{ttl: 9})
	f.Add(s.datagram(), uint8(5), false)
	f.Fuzz(func(t *testing.T, inner []byte, kind uint8, v6 bool) {
		chunk := append(bytesOf(0xee, 128), inner...)
		tn := Tunnel{Kind: Encapsulation(kind), Port: 4789}
		o := &Outer{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Hash: binary.BigEndian.Uint32(append(inner, 0, 0, 0, 0))}
		if v6 {
			o.Src, o.Dst = addr("2001:db8::1"), addr("2001:db8::2")
		}
		start, ok := tn.Encapsulate(chunk, 128, len(chunk), nil, o)
		if !ok {
			start = 128
		}
		if !bytes.Equal(chunk[128:], inner) || slices.ContainsFunc(chunk[:start], func(b byte) bool { return b != 0xee }) {
			t.Fatal("wrote elsewhere")
		}
	})
}

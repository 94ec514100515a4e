package nat

import (
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// judgeRaw is judge for packets whose TCP options gopacket does not read: it gets
// the transport header and data as bytes, and still computes the checksums over all
// of them. ICMP errors too. There must be no IPv6 extension headers.
func judgeRaw(t rapid.TB, frame []byte) {
	t.Helper()
	network := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Lazy).NetworkLayer()
	if network == nil {
		t.Fatalf("gopacket finds no IP header\n% x", frame)
	}
	proto := layers.IPProtocol(0)
	switch ip := network.(type) {
	case *layers.IPv4:
		proto = ip.Protocol
		h := serialize(t, false, &layers.IPv4{
			Version: ip.Version, IHL: ip.IHL, TOS: ip.TOS, Length: ip.Length, Id: ip.Id, Flags: ip.Flags, FragOffset: ip.FragOffset,
			TTL: ip.TTL, Protocol: ip.Protocol, SrcIP: ip.SrcIP, DstIP: ip.DstIP, Options: ip.Options,
		})
		if want := binary.BigEndian.Uint16(h[10:]); ip.Checksum != want {
			t.Fatalf("IPv4 checksum %#x, gopacket says %#x\n% x", ip.Checksum, want, frame)
		}
	case *layers.IPv6:
		proto = ip.NextHeader
	}
	if got, want, ok := transportSums(t, network, proto, network.LayerPayload()); ok && got != want {
		t.Fatalf("%v checksum %#x, gopacket says %#x\n% x", proto, got, want, frame)
	}
}

// transportSums are the checksum that stands in a transport header, which b begins
// with, and the one that gopacket computes; ok is false if there is none to compare.
func transportSums(t rapid.TB, ip gopacket.NetworkLayer, proto layers.IPProtocol, b []byte) (got, want uint16, ok bool) {
	t.Helper()
	switch proto {
	case layers.IPProtocolTCP:
		l := &layers.TCP{BaseLayer: layers.BaseLayer{Contents: append([]byte{}, b...)}}
		clear(l.Contents[16:18])
		mustSet(t, l.SetNetworkLayerForChecksum(ip))
		want, err := l.ComputeChecksum()
		mustSet(t, err)
		return binary.BigEndian.Uint16(b[16:]), want, true
	case layers.IPProtocolUDP:
		n := binary.BigEndian.Uint16(b[4:])
		l := &layers.UDP{SrcPort: layers.UDPPort(binary.BigEndian.Uint16(b)), DstPort: layers.UDPPort(binary.BigEndian.Uint16(b[2:])), Length: n}
		mustSet(t, l.SetNetworkLayerForChecksum(ip))
		got, want = binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(serialize(t, false, l, gopacket.Payload(b[8:n]))[6:])
		return got, want, got != 0 && (got != 0xffff || want != 0)
	case layers.IPProtocolICMPv4:
		l := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(b[0], b[1]), Id: binary.BigEndian.Uint16(b[4:]), Seq: binary.BigEndian.Uint16(b[6:])}
		return binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(serialize(t, false, l, gopacket.Payload(b[8:]))[2:]), true
	case layers.IPProtocolICMPv6:
		l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(b[0], b[1])}
		mustSet(t, l.SetNetworkLayerForChecksum(ip))
		return binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(serialize(t, false, l, gopacket.Payload(b[4:]))[2:]), true
	}
	t.Fatalf("protocol %v", proto)
	return 0, 0, false
}

func mustSet(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestJudgeRaw shows that it finds any damage: in the data, in an option, in either
// header.
func TestJudgeRaw(t *testing.T) {
	for name, f := range map[string]*flow{"v4": flow4(conntrack.FullNAT), "v6": flow6(conntrack.FullNAT)} {
		udp := f.fromClient(shape{ttl: 9, udp: true, payload: []byte("odd")})
		tcp := f.fromClient(shape{ttl: 9, opts: []byte{77, 99, 1, 1}, payload: []byte("odd")})
		icmp := icmpError{src: udp.src, dst: udp.dst, ttl: 9, kind: 3, code: 1, inner: tcp.datagram()}
		for kind, frame := range map[string][]byte{"udp": udp.frame(), "tcp": tcp.frame(), "icmp": icmp.frame()} {
			judgeRaw(t, frame)
			p := parse(t, frame)
			l4 := int(p.L4)
			at := []int{len(frame) - 1, l4 + 1}
			switch {
			case kind == "tcp":
				at = append(at, l4+21, l4+16)
			case name == "v4":
				at = append(at, int(p.L3)+packet.IPv4ID, int(p.L3)+packet.IPv4Checksum)
			}
			for _, i := range at {
				frame[i] ^= 0x40
				if !complains(func(tb rapid.TB) { judgeRaw(tb, frame) }) {
					t.Errorf("%s %s: byte %d damaged, and no word of it", name, kind, i)
				}
				frame[i] ^= 0x40
			}
		}
	}
}

// complains reports whether a check fails.
func complains(check func(rapid.TB)) (failed bool) {
	defer func() { failed = recover() != nil }()
	check(judged{})
	return false
}

// judged is a test that panics where it fails.
type judged struct{ rapid.TB }

func (judged) Helper()               {}
func (judged) Fatalf(string, ...any) { panic("failed") }
func (judged) Fatal(...any)          { panic("failed") }

package nat

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// shape64 is a shape with the fields that NAT64 translates as well. gopacket makes
// the packet of it, so that lengths and checksums are somebody else's.
type shape64 struct {
	shape
	class   uint8
	label   uint32
	id      uint16
	frag    uint16 // flags and offset, IPv4 only
	first   uint8  // IPv6 next header if there are extension headers
	ext     []byte // those
	surplus []byte // behind the UDP datagram, within the IP datagram
}

func serialize(t rapid.TB, fix bool, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: fix, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out.Bytes())
}

func (s *shape64) proto() layers.IPProtocol {
	if s.udp {
		return layers.IPProtocolUDP
	}
	return layers.IPProtocolTCP
}

// network is the IP header for proto, options and extension headers apart.
func (s *shape64) network(proto layers.IPProtocol) interface {
	gopacket.NetworkLayer
	gopacket.SerializableLayer
} {
	if s.src.Is4() {
		ip := &layers.IPv4{
			Version: 4, TOS: s.class, Id: s.id, Flags: layers.IPv4Flag(s.frag >> 13), FragOffset: s.frag & 0x1fff,
			TTL: s.ttl, Protocol: proto, SrcIP: net.IP(addrBytes(s.src)), DstIP: net.IP(addrBytes(s.dst)),
		}
		for range s.ipOpts {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1})
		}
		return ip
	}
	return &layers.IPv6{
		Version: 6, TrafficClass: s.class, FlowLabel: s.label, HopLimit: s.ttl, NextHeader: proto,
		SrcIP: net.IP(addrBytes(s.src)), DstIP: net.IP(addrBytes(s.dst)),
	}
}

// transport is the TCP or UDP packet. The options go through as data, malformed
// ones too.
func (s *shape64) transport(t rapid.TB) []byte {
	t.Helper()
	ip := s.network(s.proto())
	if s.udp {
		u := &layers.UDP{SrcPort: layers.UDPPort(s.ports >> 16), DstPort: layers.UDPPort(s.ports)}
		if err := u.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		b := serialize(t, true, u, gopacket.Payload(s.payload))
		switch {
		case s.noCsum:
			b[6], b[7] = 0, 0
		case b[6]|b[7] == 0:
			b[6], b[7] = 0xff, 0xff
		}
		return append(b, s.surplus...)
	}
	l := &layers.TCP{
		SrcPort: layers.TCPPort(s.ports >> 16), DstPort: layers.TCPPort(s.ports), Seq: s.seq, Ack: s.ack,
		DataOffset: uint8(5 + len(s.opts)/4), Window: 0x2000, Urgent: 0x1234,
		FIN: s.flags&1 != 0, SYN: s.flags&2 != 0, RST: s.flags&4 != 0, PSH: s.flags&8 != 0,
		ACK: s.flags&16 != 0, URG: s.flags&32 != 0, ECE: s.flags&64 != 0, CWR: s.flags&128 != 0,
	}
	if err := l.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, false, l, gopacket.Payload(slices.Concat(s.opts, s.payload)))
}

// whole is the IP datagram.
func (s *shape64) whole(t rapid.TB) []byte {
	t.Helper()
	if len(s.ext) == 0 {
		return serialize(t, true, s.network(s.proto()), gopacket.Payload(s.transport(t)))
	}
	return serialize(t, true, s.network(layers.IPProtocol(s.first)), gopacket.Payload(slices.Concat(s.ext, s.transport(t))))
}

// frame64 is the Ethernet frame.
func (s *shape64) frame64(t rapid.TB) []byte {
	t.Helper()
	return slices.Concat(ether(s.src.Is4(), s.vlan), s.whole(t), s.pad)
}

// error64 is an ICMP error, whatever the family of its addresses; inner is what it
// has of the embedded packet, and extensions if there are.
type error64 struct {
	shape64
	kind, code uint8
	rest       uint32
	inner      []byte
}

func (m *error64) frame64(t rapid.TB) []byte {
	t.Helper()
	var d []byte
	if m.src.Is4() {
		c := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(m.kind, m.code), Id: uint16(m.rest >> 16), Seq: uint16(m.rest)}
		d = serialize(t, true, m.network(layers.IPProtocolICMPv4), c, gopacket.Payload(m.inner))
	} else {
		ip := m.network(layers.IPProtocolICMPv6)
		c := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(m.kind, m.code)}
		if err := c.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		d = serialize(t, true, ip, c, gopacket.Payload(append(binary.BigEndian.AppendUint32(nil, m.rest), m.inner...)))
	}
	return slices.Concat(ether(m.src.Is4(), m.vlan), d, m.pad)
}

func flow64() *flow {
	return newFlow("[2001:db8:9::7]:49153", "[2001:db8::10]:80", "10.0.1.10:20001", "10.0.1.20:8080", conntrack.FullNAT)
}

// drawFlow64 is the client's side of one flow and the server's of another.
func drawFlow64(t *rapid.T, udp bool) *flow {
	f, g := drawFlow(t, true, udp), drawFlow(t, false, udp)
	f.dir.Backends, f.dir.Locals = g.dir.Backends, g.dir.Locals
	f.e.Mode = conntrack.FullNAT
	if rapid.Bool().Draw(t, "acked") {
		f.e.Flags |= conntrack.HasServerISN | conntrack.ServerAcked
	}
	if !Prepare(&f.e, &f.dir) {
		t.Fatal("Prepare")
	}
	return f
}

// drawShape64 adds to a shape what the family has, and now and then a length near
// the one where DF is set.
func drawShape64(t *rapid.T, v6, udp bool) shape64 {
	s := shape64{shape: drawShape(t, v6, udp), class: rapid.Byte().Draw(t, "class")}
	if rapid.IntRange(0, 3).Draw(t, "long") == 0 {
		n := rapid.IntRange(1180, 1260).Draw(t, "payload bytes")
		s.payload = append(s.payload, bytesOf(0xa5, n)...)
	}
	if udp {
		s.surplus = bytesOf(0x5a, rapid.SampledFrom([]int{0, 0, 0, 1, 6}).Draw(t, "surplus"))
	}
	if !v6 {
		s.id = rapid.Uint16().Draw(t, "id")
		s.frag = rapid.SampledFrom([]uint16{0, packet.IPv4DontFragment, 0x8000}).Draw(t, "flags")
		s.ipOpts = bytesOf(1, 4*rapid.SampledFrom([]int{0, 0, 1, 5, 10}).Draw(t, "IP options"))
		return s
	}
	s.label = rapid.Uint32Range(0, 1<<20-1).Draw(t, "label")
	for _, kind := range []uint8{0, 60, 43, 44, 60} {
		if rapid.IntRange(0, 5).Draw(t, "extension") == 0 {
			s.extend(kind)
		}
	}
	return s
}

// extend appends an extension header of a kind: no segments left, not fragmented.
func (s *shape64) extend(kind uint8) {
	h := []byte{byte(s.proto()), 0, 1, 4, 0, 0, 0, 0}
	switch kind {
	case 0, 60:
		h = []byte{byte(s.proto()), 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	case 43:
		h = append([]byte{byte(s.proto()), 2, 2, 0, 0, 0, 0, 0}, addrBytes(addr("2001:db8::99"))...)
	case 44:
		h = []byte{byte(s.proto()), 0, 0, 0, 0x12, 0x34, 0x56, 0x78}
	}
	if len(s.ext) == 0 {
		s.first = kind
	} else {
		at := 0
		for at+lenExt(s.ext[at:]) < len(s.ext) {
			at += lenExt(s.ext[at:])
		}
		s.ext[at] = kind
	}
	s.ext = append(s.ext, h...)
}

func lenExt(b []byte) int { return 8 + 8*int(b[1]) }

// atomic reports whether there is a fragment header among them.
func (s *shape64) atomic() bool {
	kind := s.first
	for b := s.ext; len(b) > 0; b = b[lenExt(b):] {
		if kind == 44 {
			return true
		}
		kind = b[0]
	}
	return false
}

// toServer64 and toClient64 are what the translation must make of a packet.
func (f *flow) toServer64(s shape64, id uint16) shape64 {
	size := 20 + len(s.opts) + len(s.payload) + 20
	if s.udp {
		size = 20 + 8 + len(s.payload) + len(s.surplus)
	}
	r := shape64{shape: f.toServer(s.shape), class: s.class, id: id, surplus: s.surplus}
	if size > 1260 && !s.atomic() {
		r.frag = packet.IPv4DontFragment
	}
	return r
}

func (f *flow) toClient64(s shape64) shape64 {
	r := shape64{shape: f.toClient(s.shape), class: s.class, surplus: s.surplus}
	r.ipOpts, r.noCsum = nil, false
	return r
}

// TestShapes64 shows that the two builders of packets agree where both can build
// one.
func TestShapes64(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := shape64{shape: f.fromClient(drawShape(t, v6, udp))}
		s.id, s.frag, s.label = 0xabcd, packet.IPv4DontFragment, 0x1234
		want, got := s.frame(), s.frame64(t)
		if !slices.Equal(want, got) {
			t.Fatalf("\n% x\n% x", want, got)
		}
	})
}

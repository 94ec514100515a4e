package packet

import (
	"bytes"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// FuzzParse: any bytes keep Parse's promises, and where gopacket accepts them
// too the two agree.
func FuzzParse(f *testing.F) {
	for _, c := range parseCases {
		f.Add(c.frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p := checkInvariants(t, bytes.Clone(frame))
		checkOracle(t, frame, &p)
	})
}

func TestParseAgainstGopacket(t *testing.T) {
	for _, c := range parseCases {
		checkOracle(t, c.frame, &c.want)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := buildWithGopacket(t)
		var p Packet
		Parse(b.frame, &p)
		checkOracle(t, b.frame, &p)
	})
}

// fataler is what *testing.T and *rapid.T share.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// structural are the refusals that say "this is no such packet", on which
// gopacket must agree; the rest is policy, of which it has none.
var structural = [NumErrs]bool{
	ErrTruncated: true, ErrHeaderLength: true, ErrTCPOffset: true, ErrEtherType: true,
	ErrBadFragment: true, ErrTinyFragment: true, ErrARP: true,
}

// checkOracle compares p, parsed from frame, with gopacket's reading.
func checkOracle(t fataler, frame []byte, p *Packet) {
	t.Helper()
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	if g.ErrorLayer() != nil || g.Metadata().Truncated || g.Layer(layers.LayerTypeIPSecAH) != nil {
		return // behind AH nothing can be rewritten, so Parse does not look there
	}
	if g.Layer(layers.LayerTypeIPv6HopByHop) != nil {
		return // gopacket 1.1.19 then reads past the payload length, into padding
	}
	if p.Err != ErrNone {
		if structural[p.Err] && g.TransportLayer() != nil {
			t.Fatalf("%v, but gopacket reads\n%v\n%x", p.Err, g, frame)
		}
		return
	}
	src, dst := p.Src, p.Dst
	if p.Kind != KindARP {
		src, dst = p.OuterAddrs(frame)
	}
	same := func(what string, ours, theirs []byte) {
		t.Helper()
		if !bytes.Equal(ours, theirs) {
			t.Fatalf("%s: %x, gopacket %x\n%+v\n%v\n%x", what, ours, theirs, *p, g, frame)
		}
	}
	sameIP := func(what string, ours Addr, theirs net.IP) {
		t.Helper()
		same(what, ours.Netip().AsSlice(), theirs)
	}
	switch ip := g.NetworkLayer().(type) {
	case *layers.IPv4:
		sameIP("source", src, ip.SrcIP)
		sameIP("destination", dst, ip.DstIP)
		same("ip header", frame[p.L3:p.L4], ip.Contents)
		same("ip payload", frame[p.L4:p.End], ip.Payload)
	case *layers.IPv6:
		sameIP("source", src, ip.SrcIP)
		sameIP("destination", dst, ip.DstIP)
	}
	switch l := g.TransportLayer().(type) {
	case *layers.TCP:
		if p.Kind != KindTCP {
			t.Fatalf("kind %d, gopacket TCP\n%v\n%x", p.Kind, g, frame)
		}
		checkTCP(t, frame, p, l)
		same("tcp header", frame[p.L4:p.Payload], l.Contents)
		same("tcp data", frame[p.Payload:p.End], l.Payload)
	case *layers.UDP:
		if p.Kind != KindUDP || p.SrcPort != uint16(l.SrcPort) || p.DstPort != uint16(l.DstPort) {
			t.Fatalf("%+v, gopacket %v\n%x", *p, g, frame)
		}
		same("udp header", frame[p.L4:p.Payload], l.Contents)
		same("udp data", frame[p.Payload:p.L4+l.Length], l.Payload)
	}
	if l, ok := g.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		sameIP("arp sender", p.Src, l.SourceProtAddress)
		sameIP("arp target", p.Dst, l.DstProtAddress)
		if p.Window != l.Operation {
			t.Fatalf("arp operation %d, gopacket %d", p.Window, l.Operation)
		}
	}
	if l, ok := g.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation); ok && p.Kind == KindNS {
		sameIP("target", p.Dst, l.TargetAddress)
	}
	if p.Kind == KindICMPError {
		checkInner(t, frame, p, sameIP)
	}
}

func checkTCP(t fataler, frame []byte, p *Packet, l *layers.TCP) {
	t.Helper()
	var flags uint8
	for i, on := range []bool{l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR} {
		if on {
			flags |= 1 << i
		}
	}
	if p.SrcPort != uint16(l.SrcPort) || p.DstPort != uint16(l.DstPort) || p.Seq != l.Seq || p.Ack != l.Ack ||
		p.Window != l.Window || p.TCPFlags != flags {
		t.Fatalf("%+v\ngopacket %+v\n%x", *p, l, frame)
	}
	it := Options(frame, p)
	for _, o := range l.Options {
		if o.OptionType == layers.TCPOptionKindNop || o.OptionType == layers.TCPOptionKindEndList {
			continue
		}
		if !it.Next() || it.Kind != uint8(o.OptionType) || it.Len != int(o.OptionLength) || !bytes.Equal(it.Data(), o.OptionData) {
			t.Fatalf("option %+v, gopacket %+v\n%x", it, o, frame)
		}
	}
	if it.Next() || it.Malformed {
		t.Fatalf("option %+v more than gopacket's\n%x", it, frame)
	}
}

// checkInner compares the embedded packet of an ICMP error. gopacket reads its
// addresses; eight bytes of TCP are too few for it.
func checkInner(t fataler, frame []byte, p *Packet, sameIP func(string, Addr, net.IP)) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if p.V6 {
		first = layers.LayerTypeIPv6
	}
	g := gopacket.NewPacket(frame[p.Payload:p.End], first, gopacket.NoCopy)
	switch ip := g.NetworkLayer().(type) {
	case *layers.IPv4:
		sameIP("embedded source", p.Dst, ip.SrcIP)
		sameIP("embedded destination", p.Src, ip.DstIP)
		proto, head := uint8(ip.Protocol), int(ip.IHL)*4
		if proto == ProtoUOA { // to gopacket data of any kind
			b := frame[int(p.Payload)+head:] // gopacket's may be cut to a length that is wrong
			proto, head = b[1], head+int(b[2])<<8+int(b[3])
		}
		if proto != p.Proto || int(p.Inner4-p.Payload) != head {
			t.Fatalf("%+v, gopacket %+v\n%x", *p, ip, frame)
		}
	case *layers.IPv6:
		sameIP("embedded source", p.Dst, ip.SrcIP)
		sameIP("embedded destination", p.Src, ip.DstIP)
	}
	if g.ErrorLayer() != nil {
		return
	}
	switch l := g.TransportLayer().(type) {
	case *layers.TCP:
		if p.SrcPort != uint16(l.DstPort) || p.DstPort != uint16(l.SrcPort) || p.Seq != l.Seq {
			t.Fatalf("%+v, gopacket %+v\n%x", *p, l, frame)
		}
	case *layers.UDP:
		if p.SrcPort != uint16(l.DstPort) || p.DstPort != uint16(l.SrcPort) {
			t.Fatalf("%+v, gopacket %+v\n%x", *p, l, frame)
		}
	}
}

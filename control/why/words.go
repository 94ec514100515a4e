package why

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/l4fwd/l4fwd/packet"
)

// Change is a field that two packets have not alike. Before or After is "" where one of
// them has no such field.
type Change struct {
	Field  string `json:"field"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// field is a part of a packet in words.
type field struct{ name, value string }

// Describe says in one line what a frame is.
func Describe(frame []byte) string {
	var p packet.Packet
	if err := packet.Parse(frame, &p); err != packet.ErrNone {
		return fmt.Sprintf("%d bytes that are no packet: %v", len(frame), err)
	}
	ends := func() string {
		return fmt.Sprintf("%v > %v", end(p.Src, p.SrcPort), end(p.Dst, p.DstPort))
	}
	switch p.Kind {
	case packet.KindTCP:
		return fmt.Sprintf("tcp %s [%s], %d bytes", ends(), flags(p.TCPFlags), p.IPLen())
	case packet.KindUDP:
		return fmt.Sprintf("udp %s, %d bytes", ends(), p.IPLen())
	case packet.KindARP:
		what := "ARP request of"
		if p.Window != packet.ARPRequest {
			what = "ARP answer of"
		}
		return fmt.Sprintf("%s %v for %v", what, p.Src.Netip(), p.Dst.Netip())
	case packet.KindNS:
		return fmt.Sprintf("neighbour solicitation of %v for %v", p.Src.Netip(), p.Dst.Netip())
	}
	src, dst := p.OuterAddrs(frame)
	hosts := fmt.Sprintf("%v > %v", src.Netip(), dst.Netip())
	switch p.Kind {
	case packet.KindEcho:
		return "ping " + hosts
	case packet.KindICMPError:
		return fmt.Sprintf("ICMP %s %s about %s %v > %v", icmpName(frame, &p), hosts, protocolName(p.Proto), end(p.Dst, p.DstPort), end(p.Src, p.SrcPort))
	case packet.KindFragment:
		f := p.Fragment(frame)
		return fmt.Sprintf("fragment of %s %s at %d, %d bytes", protocolName(p.Proto), hosts, f.Offset, p.IPLen())
	}
	return fmt.Sprintf("%s %s, %d bytes", protocolName(p.Proto), hosts, p.IPLen())
}

// Compare is the fields that change from one frame to another, in the order of the
// headers. A packet within a tunnel is compared as if it were without, and the tunnel is
// a field.
func Compare(before, after []byte) []Change {
	var p, q packet.Packet
	if packet.Parse(before, &p) != packet.ErrNone || packet.Parse(after, &q) != packet.ErrNone {
		return nil
	}
	var out []Change
	if inner, how := unwrap(before, &p, after, &q); inner != nil {
		out = append(out, Change{Field: "tunnel", After: how})
		if after = inner; packet.Parse(after, &q) != packet.ErrNone {
			return out
		}
	}
	a, b := fields(before, &p), fields(after, &q)
	names := make([]string, 0, len(a)+len(b))
	for _, f := range slices.Concat(a, b) {
		if !slices.Contains(names, f.name) {
			names = append(names, f.name)
		}
	}
	of := func(list []field, name string) string {
		if i := slices.IndexFunc(list, func(f field) bool { return f.name == name }); i >= 0 {
			return list[i].value
		}
		return ""
	}
	for _, name := range names {
		if x, y := of(a, name), of(b, name); x != y {
			out = append(out, Change{name, x, y})
		}
	}
	return out
}

// unwrap finds in after, a tunnel's packet, the one that before has become: that with the
// same destination. It stands behind an Ethernet header then.
func unwrap(before []byte, p *packet.Packet, after []byte, q *packet.Packet) (inner []byte, how string) {
	src, dst := p.OuterAddrs(before)
	from, to := q.OuterAddrs(after)
	if dst == to || p.Kind == packet.KindARP || q.Kind == packet.KindARP {
		return nil, ""
	}
	head := before[p.L3:min(int(p.L3)+packet.IPv4MinLen, len(before))]
	version := head[0] >> 4
	for at := int(q.L3) + packet.IPv4MinLen; at+packet.IPv4MinLen <= int(q.End); at += 2 {
		h := after[at:q.End]
		if h[0]>>4 != version {
			continue
		}
		etherType := uint16(packet.EtherTypeIPv4)
		if version == 6 {
			etherType = packet.EtherTypeIPv6
		}
		frame := binary.BigEndian.AppendUint16(make([]byte, packet.EthLen-2, packet.EthLen+len(h)), etherType)
		frame = append(frame, h...)
		var in packet.Packet
		if packet.Parse(frame, &in) != packet.ErrNone || in.Kind == packet.KindARP {
			continue
		}
		if s, d := in.OuterAddrs(frame); s == src && d == dst {
			return frame, fmt.Sprintf("%s, %v > %v, %d bytes more", protocolName(outerProto(after, q)), from.Netip(), to.Netip(), q.IPLen()-in.IPLen())
		}
	}
	return nil, ""
}

func outerProto(frame []byte, p *packet.Packet) uint8 {
	if p.V6 {
		return frame[int(p.L3)+packet.IPv6NextHeader]
	}
	return frame[int(p.L3)+packet.IPv4Proto]
}

// fields are what people look at in a packet.
func fields(frame []byte, p *packet.Packet) (out []field) {
	add := func(name, format string, args ...any) { out = append(out, field{name, fmt.Sprintf(format, args...)}) }
	if tci, tagged := p.VLAN(frame); tagged {
		add("VLAN", "%d", tci&0xfff)
	}
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP:
		add("source", "%v", end(p.Src, p.SrcPort))
		add("destination", "%v", end(p.Dst, p.DstPort))
	case packet.KindARP:
		return out
	default:
		src, dst := p.OuterAddrs(frame)
		add("source", "%v", src.Netip())
		add("destination", "%v", dst.Netip())
		if p.Kind == packet.KindICMPError {
			add("quoted packet", "%v > %v", end(p.Dst, p.DstPort), end(p.Src, p.SrcPort))
		}
	}
	add("TTL", "%d", p.TTL(frame))
	if p.Kind == packet.KindTCP {
		add("sequence", "%d", p.Seq)
		if p.TCPFlags&packet.ACK != 0 {
			add("acknowledged", "%d", p.Ack)
		}
		for it := packet.Options(frame, p); it.Next(); {
			name, value := option(it.Kind, frame[it.Off+2:it.Off+it.Len])
			add(name, "%s", value)
		}
	}
	if p.Kind == packet.KindTCP || p.Kind == packet.KindUDP {
		add("payload", "%d bytes", int(p.End)-int(p.Payload))
	}
	add("length", "%d bytes", p.IPLen())
	return out
}

// option is the name of a TCP option and what it says.
func option(kind uint8, b []byte) (name, value string) {
	switch {
	case kind == packet.OptMSS && len(b) == 2:
		return "MSS", fmt.Sprint(binary.BigEndian.Uint16(b))
	case kind == packet.OptWindowScale && len(b) == 1:
		return "window scale", fmt.Sprint(b[0])
	case kind == packet.OptSACKPermitted:
		return "SACK permitted", "yes"
	case kind == packet.OptTimestamps && len(b) == 8:
		return "timestamps", fmt.Sprintf("%d, %d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
	case len(b) == 6 || len(b) == 18: // TOA, of whatever kind it is
		a, _ := netip.AddrFromSlice(b[2:])
		return fmt.Sprintf("option %d", kind), netip.AddrPortFrom(a, binary.BigEndian.Uint16(b)).String()
	}
	return fmt.Sprintf("option %d", kind), fmt.Sprintf("%x", b)
}

func end(a packet.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Netip(), port) }

// flags are TCP's in words, as ParseFlags reads them.
func flags(f uint8) string {
	var out []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if out == nil {
		return "none"
	}
	return strings.Join(out, ",")
}

var protocolNames = map[uint8]string{
	packet.ProtoICMP: "ICMP", 4: "ipip", packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp", 41: "ipip", 47: "gre", packet.ProtoICMPv6: "ICMPv6",
}

func protocolName(p uint8) string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return fmt.Sprintf("protocol %d", p)
}

// icmpName is what an ICMP error says, by its type.
func icmpName(frame []byte, p *packet.Packet) string {
	names := map[uint8]string{3: "destination unreachable", 4: "source quench", 11: "time exceeded", 12: "parameter problem"}
	kind, code := frame[p.L4], frame[p.L4+packet.ICMPCode]
	if p.V6 {
		names = map[uint8]string{1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem"}
	} else if kind == packet.ICMPUnreachable && code == packet.ICMPFragNeeded {
		return fmt.Sprintf("fragmentation needed (MTU %d)", binary.BigEndian.Uint16(frame[int(p.L4)+packet.ICMPMTU:]))
	}
	if p.V6 && kind == packet.ICMPv6PacketTooBig {
		return fmt.Sprintf("packet too big (MTU %d)", binary.BigEndian.Uint32(frame[int(p.L4)+packet.ICMPv6MTU:]))
	}
	if name, ok := names[kind]; ok {
		return name
	}
	return fmt.Sprintf("type %d", kind)
}

// MACs are the addresses of a frame's Ethernet header.
func MACs(frame []byte) (dst, src net.HardwareAddr) {
	return net.HardwareAddr(frame[:6]), net.HardwareAddr(frame[6:12])
}

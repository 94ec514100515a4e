package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/l4fwd/l4fwd/packet"
)

// field of a packet in words.
type field struct{ name, value string }

// fieldDiff is a field that is not the same in two packets; "" is absent.
type fieldDiff struct{ name, a, b string }

// diffFields names what differs between two frames that are not the same.
func diffFields(a, b []byte) (out []fieldDiff) {
	fa, pa := fieldsOf(a)
	fb, pb := fieldsOf(b)
	for _, x := range fa {
		if v := valueOf(fb, x.name); v != x.value {
			out = append(out, fieldDiff{x.name, x.value, v})
		}
	}
	for _, x := range fb {
		if valueOf(fa, x.name) == "" && x.value != "" {
			out = append(out, fieldDiff{x.name, "", x.value})
		}
	}
	if !bytes.Equal(pa, pb) {
		out = append(out, bytesDiff("payload", pa, pb))
	}
	if len(out) == 0 { // padding, NOPs between options, reserved bits
		out = append(out, bytesDiff("frame", a, b))
	}
	return out
}

func valueOf(fs []field, name string) string {
	for _, f := range fs {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

// bytesDiff tells where two lists of bytes part.
func bytesDiff(name string, a, b []byte) fieldDiff {
	at := 0
	for at < min(len(a), len(b)) && a[at] == b[at] {
		at++
	}
	say := func(p []byte) string {
		if at == len(p) {
			return "ends there"
		}
		return fmt.Sprintf("%x", p[at:min(at+8, len(p))])
	}
	return fieldDiff{fmt.Sprintf("%s from byte %d", name, at), say(a), say(b)}
}

// fieldsOf takes a frame apart; of one that packet.Parse refuses, all behind the
// addresses is payload.
func fieldsOf(f []byte) (out []field, payload []byte) {
	add := func(name, format string, args ...any) {
		out = append(out, field{name, fmt.Sprintf(format, args...)})
	}
	var p packet.Packet
	err := packet.Parse(f, &p)
	if len(f) < packet.EthLen {
		return nil, f
	}
	add("destination MAC", "%v", net.HardwareAddr(f[:packet.EthSrc]))
	add("source MAC", "%v", net.HardwareAddr(f[packet.EthSrc:packet.EthType]))
	if err != packet.ErrNone {
		add("refused", "%v", err)
		return out, f[packet.EthType:]
	}
	if p.L3 > packet.EthLen {
		add("VLAN tag", "%#04x", binary.BigEndian.Uint16(f[packet.EthLen:]))
	}
	if p.Kind == packet.KindARP {
		return out, f[p.L3:]
	}
	out = append(out, ipFields(f[p.L3:p.End])...)
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP:
		out = append(out, transportFields(f, &p)...)
		return out, f[p.Payload:p.End]
	}
	return out, f[min(p.L4, p.End):p.End]
}

func ipFields(h []byte) (out []field) {
	add := func(name, format string, args ...any) {
		out = append(out, field{name, fmt.Sprintf(format, args...)})
	}
	u16 := func(at int) uint16 { return binary.BigEndian.Uint16(h[at:]) }
	if h[0]>>4 == 6 {
		add("IP version", "6")
		add("source address", "%v", netip.AddrFrom16([16]byte(h[packet.IPv6Src:])))
		add("destination address", "%v", netip.AddrFrom16([16]byte(h[packet.IPv6Dst:])))
		add("traffic class", "%#02x", u16(0)>>4&0xff)
		add("flow label", "%#05x", binary.BigEndian.Uint32(h)&0xfffff)
		add("IP length", "%d", packet.IPv6Len+int(u16(packet.IPv6PayloadLen)))
		add("next header", "%d", h[packet.IPv6NextHeader])
		add("TTL", "%d", h[packet.IPv6HopLimit])
		return out
	}
	add("IP version", "4")
	add("source address", "%v", netip.AddrFrom4([4]byte(h[packet.IPv4Src:])))
	add("destination address", "%v", netip.AddrFrom4([4]byte(h[packet.IPv4Dst:])))
	add("traffic class", "%#02x", h[1])
	add("IP length", "%d", u16(packet.IPv4TotalLen))
	add("IP identification", "%#04x", u16(4))
	add("fragment field", "%#04x", u16(packet.IPv4Frag))
	add("next header", "%d", h[packet.IPv4Proto])
	add("TTL", "%d", h[packet.IPv4TTL])
	n := int(h[0]&15) * 4
	if n > packet.IPv4MinLen {
		add("IP options", "%x", h[packet.IPv4MinLen:n])
	}
	add("IP checksum", "%#04x (%s)", u16(packet.IPv4Checksum), rightIf(packet.Checksum(h[:n], 0) == 0))
	return out
}

func rightIf(ok bool) string {
	if ok {
		return "right"
	}
	return "wrong"
}

var flagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

func transportFields(f []byte, p *packet.Packet) (out []field) {
	add := func(name, format string, args ...any) {
		out = append(out, field{name, fmt.Sprintf(format, args...)})
	}
	h := f[p.L4:p.End]
	src, dst := p.Src, p.Dst
	sum := rightIf(packet.Checksum(h, packet.PseudoSum(src, dst, p.Proto, len(h))) == 0)
	add("source port", "%d", p.SrcPort)
	add("destination port", "%d", p.DstPort)
	if p.Kind == packet.KindUDP {
		c := binary.BigEndian.Uint16(h[packet.UDPChecksum:])
		if c == 0 {
			sum = "not used"
		}
		add("UDP length", "%d", binary.BigEndian.Uint16(h[packet.UDPLength:]))
		add("UDP checksum", "%#04x (%s)", c, sum)
		return out
	}
	var flags []string
	for i, name := range flagNames {
		if p.TCPFlags>>i&1 != 0 {
			flags = append(flags, name)
		}
	}
	add("flags", "%s", strings.Join(flags, " "))
	add("seq", "%d", p.Seq)
	add("ack", "%d", p.Ack)
	add("window", "%d", p.Window)
	add("urgent pointer", "%d", binary.BigEndian.Uint16(h[18:]))
	out = append(out, optionFields(f, p)...)
	add("TCP checksum", "%#04x (%s)", binary.BigEndian.Uint16(h[packet.TCPChecksum:]), sum)
	return out
}

var optionNames = map[uint8]string{
	packet.OptMSS: "MSS", packet.OptWindowScale: "window scale", packet.OptSACKPermitted: "SACK permitted",
	packet.OptSACK: "SACK", packet.OptTimestamps: "timestamps", packet.OptTOA: "TOA",
}

// optionFields has a field for each kind of option; the values of one that stands
// there several times are joined.
func optionFields(f []byte, p *packet.Packet) (out []field) {
	it := packet.Options(f, p)
	for it.Next() {
		name, known := optionNames[it.Kind]
		if !known {
			name = fmt.Sprintf("%d", it.Kind)
		}
		x := field{"option " + name, optionValue(it.Kind, f[it.Off+2:it.Off+it.Len])}
		if last := len(out) - 1; last >= 0 && out[last].name == x.name {
			out[last].value += " and " + x.value
			continue
		}
		out = append(out, x)
	}
	if it.Malformed {
		out = append(out, field{"options", "malformed"})
	}
	return out
}

// optionValue is an option in words, as bytes where it has not the usual length.
func optionValue(kind uint8, v []byte) string {
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(v[at:]) }
	switch {
	case kind == packet.OptMSS && len(v) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(v))
	case kind == packet.OptWindowScale && len(v) == 1:
		return fmt.Sprint(v[0])
	case kind == packet.OptSACKPermitted && len(v) == 0:
		return "there"
	case kind == packet.OptTimestamps && len(v) == 8:
		return fmt.Sprintf("%d echo %d", u32(0), u32(4))
	case kind == packet.OptTOA && (len(v) == 6 || len(v) == 18):
		a, _ := netip.AddrFromSlice(v[2:])
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(v)).String()
	case kind == packet.OptSACK && len(v) > 0 && len(v)%packet.SACKBlockLen == 0:
		var blocks []string
		for at := 0; at < len(v); at += packet.SACKBlockLen {
			blocks = append(blocks, fmt.Sprintf("%d-%d", u32(at), u32(at+4)))
		}
		return strings.Join(blocks, " ")
	}
	return fmt.Sprintf("bytes %x", v)
}

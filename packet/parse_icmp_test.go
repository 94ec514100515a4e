package packet

import "strings"

const (
	unreach4 = "0303 0000 00000000 "
	tooBig6  = "0200 0000 00000500 "
	linkAddr = "0101 020000000002 "
	noAddr   = "00000000000000000000000000000000 "
	solNode  = "ff0200000000000000000001ff000099 "
)

// An error about a packet VIP > client travels from the client's side to the
// VIP, so its tuple is client > VIP.
func icmpErr4(t Tuple, inner4, end uint16, seq uint32) Packet {
	return Packet{Tuple: t, Seq: seq, L3: 14, L4: 34, Payload: 42, End: end, Kind: KindICMPError, Inner4: inner4}
}

func icmpErr6(t Tuple, inner4, end uint16, seq uint32) Packet {
	return Packet{Tuple: t, Seq: seq, L3: 14, L4: 54, Payload: 62, End: end, Kind: KindICMPError, Inner4: inner4, V6: true}
}

// The embedded packets go VIP > client: ports 80 > 49153.
const (
	innerTCP = "0050 c001 0a0b0c0d "
	innerUDP = "0035 c001 0008 0000 "
	uoa4     = "1011 000c 1f080001c6336407 " // a header of ProtoUOA, for a client of IPv4
	router4  = "0a000001 c000020a "
	router6  = "20010db8000000000000000000000001 20010db8000000000000000000000010 "
)

// icmpAbout248 is what remains of an error about a packet of ProtoUOA that is none.
func icmpAbout248(end uint16) Packet {
	return Packet{Tuple: from("10.0.0.1", bare4(1)), L3: 14, L4: 34, Payload: 42, End: end}
}

func icmp4Refused(e Err, end uint16) Packet {
	return Packet{Tuple: from("10.0.0.1", bare4(1)), L3: 14, L4: 34, Payload: 42, End: end, Err: e}
}

func icmp6Refused(e Err, end uint16) Packet {
	return Packet{Tuple: from("2001:db8::1", bare6(58)), L3: 14, L4: 54, Payload: 62, End: end, Err: e, V6: true}
}

func ns(l3, end uint16, src string) Packet {
	return Packet{Tuple: Tuple{Src: addr(src), Dst: addr("2001:db8::99"), Proto: 58},
		L3: l3, L4: l3 + 40, Payload: l3 + 64, End: end, Kind: KindNS, V6: true}
}

func badNS(dst string, end uint16) Packet {
	return Packet{Tuple: Tuple{Src: addr("2001:db8::7"), Dst: addr(dst), Proto: 58},
		L3: 14, L4: 54, Payload: 62, End: end, V6: true, Err: ErrND}
}

var icmpCases = []parseCase{
	{"icmp4 echo", eth4(ip4(fwd4, 1, 0, "", "0800 0000 0001 0002 61")),
		Packet{Tuple: bare4(1), L3: 14, L4: 34, Payload: 42, End: 43, Kind: KindEcho}},
	{"icmp4 echo code 1", eth4(ip4(fwd4, 1, 0, "", "0801 0000 0001 0002")),
		Packet{Tuple: bare4(1), L3: 14, L4: 34, Payload: 42, End: 42}},
	{"icmp4 echo reply", eth4(ip4(fwd4, 1, 0, "", "0000 0000 0001 0002")),
		Packet{Tuple: bare4(1), L3: 14, L4: 34, Payload: 42, End: 42}},
	{"icmp4 source quench", eth4(ip4(router4, 1, 0, "", "0400 0000 00000000"+ip4(rev4, 6, 0, "", innerTCP))),
		Packet{Tuple: from("10.0.0.1", bare4(1)), L3: 14, L4: 34, Payload: 42, End: 70}},
	{"icmp4 7 bytes", eth4(ip4(router4, 1, 0, "", "0800 0000 000000")),
		Packet{Tuple: from("10.0.0.1", bare4(1)), L3: 14, L4: 34, Payload: 34, End: 41, Err: ErrTruncated}},
	{"icmp4 unreachable tcp", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0, "", innerTCP))), icmpErr4(tuple4, 62, 70, 0x0a0b0c0d)},
	{"icmp4 unreachable udp", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 17, 0, "", innerUDP))), icmpErr4(dns4, 62, 70, 0)},
	{"icmp4 time exceeded, inner options", eth4(ip4(router4, 1, 0, "", "0b00 0000 00000000"+ip4(rev4, 6, 0, "01010101", innerTCP))),
		icmpErr4(tuple4, 66, 74, 0x0a0b0c0d)},
	{"icmp4 parameter problem, whole inner packet", eth4(ip4(router4, 1, 0, "", "0c00 0000 00000000"+ip4(rev4, 6, 0, "", strings.Replace(ack, "c001 0050", "0050 c001", 1)))),
		icmpErr4(tuple4, 62, 82, 0x01020304)},
	{"icmp4 about a first fragment, length wrong", with(eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0x2000, "", innerTCP))), 44, "05dc"),
		icmpErr4(tuple4, 62, 70, 0x0a0b0c0d)},
	{"icmp4 about icmp", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 1, 0, "", "0000 0000 0001 0001"))),
		Packet{Tuple: from("10.0.0.1", bare4(1)), L3: 14, L4: 34, Payload: 42, End: 70}},
	{"icmp4 about uoa", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", uoa4+innerUDP))), icmpErr4(dns4, 74, 82, 0)},
	{"icmp4 about uoa, of TCP", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1006 000c 1f080001c6336407"+innerUDP))), icmpAbout248(82)},
	{"icmp4 about uoa, cut in its first word", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1011 00"))), icmpAbout248(65)},
	{"icmp4 about uoa, shorter than that word", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1011 0000 1f080001c6336407"+innerUDP))), icmpAbout248(82)},
	{"icmp4 about uoa, not of whole words", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1011 000d 1f080001c6336407"+innerUDP))), icmpAbout248(82)},
	{"icmp4 about uoa, longer than any", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1011 0044 "+strings.Repeat("00", 64)+""+innerUDP))), icmpAbout248(138)},
	{"icmp4 about uoa, without all of UDP", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 248, 0, "", "1011 000c 1f080001c6336407 0035c00100080"+"0"))), icmpAbout248(81)},
	{"icmp4 about 248, inner options cut", eth4(ip4(router4, 1, 0, "", unreach4+strings.TrimSuffix(ip4(rev4, 248, 0, "01010101", ""), "01"))), icmpAbout248(65)},
	{"icmp4 about a later fragment", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0x0003, "", innerTCP))), icmp4Refused(ErrICMPInnerFragment, 70)},
	{"icmp4 inner 7 bytes", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0, "", innerTCP[:16]))), icmp4Refused(ErrICMPInner, 69)},
	{"icmp4 inner header cut", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0, "", "")[:38])), icmp4Refused(ErrICMPInner, 61)},
	{"icmp4 inner options cut", eth4(ip4(router4, 1, 0, "", unreach4+ip4(rev4, 6, 0, "01010101", ""))), icmp4Refused(ErrICMPInner, 66)},
	{"icmp4 inner version 6", eth4(ip4(router4, 1, 0, "", unreach4+"6"+ip4(rev4, 6, 0, "", innerTCP)[1:])), icmp4Refused(ErrICMPInner, 70)},
	{"icmp4 inner header length 4", eth4(ip4(router4, 1, 0, "", unreach4+"44"+ip4(rev4, 6, 0, "", innerTCP)[2:])), icmp4Refused(ErrICMPInner, 70)},

	{"icmp6 echo", eth6(ip6(fwd6, 58, "8000 0000 0001 0002 61")),
		Packet{Tuple: bare6(58), L3: 14, L4: 54, Payload: 62, End: 63, Kind: KindEcho, V6: true}},
	{"icmp6 echo code 1", eth6(ip6(fwd6, 58, "8001 0000 0001 0002")),
		Packet{Tuple: bare6(58), L3: 14, L4: 54, Payload: 62, End: 62, V6: true}},
	{"icmp6 7 bytes", eth6(ip6(router6, 58, "8000 0000 000000")),
		Packet{Tuple: from("2001:db8::1", bare6(58)), L3: 14, L4: 54, Payload: 54, End: 61, Err: ErrTruncated, V6: true}},
	{"icmp6 too big tcp", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 6, innerTCP))), icmpErr6(tuple6, 102, 110, 0x0a0b0c0d)},
	{"icmp6 unreachable udp", eth6(ip6(router6, 58, "0104 0000 00000000"+ip6(rev6, 17, innerUDP))), icmpErr6(dns6, 102, 110, 0)},
	{"icmp6 time exceeded, inner first fragment", eth6(ip6(router6, 58, "0300 0000 00000000"+ip6(rev6, 44, "0600 0001 00000001"+innerTCP))),
		icmpErr6(tuple6, 110, 118, 0x0a0b0c0d)},
	{"icmp6 parameter problem, inner options", eth6(ip6(router6, 58, "0400 0000 00000000"+ip6(rev6, 60, "0600 010400000000"+innerTCP))),
		icmpErr6(tuple6, 110, 118, 0x0a0b0c0d)},
	{"icmp6 about icmp6", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 58, "8100 0000 0001 0001"))),
		Packet{Tuple: from("2001:db8::1", bare6(58)), L3: 14, L4: 54, Payload: 62, End: 110, V6: true}},
	{"icmp6 about uoa", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 248, uoa4+innerUDP))), icmpErr6(dns6, 114, 122, 0)},
	{"icmp6 about uoa behind options", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 60, "f800 010400000000"+uoa4+innerUDP))),
		Packet{Tuple: from("2001:db8::1", bare6(58)), L3: 14, L4: 54, Payload: 62, End: 130, V6: true}},
	{"icmp6 about a later fragment", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 44, "0600 0010 00000001"+innerTCP))), icmp6Refused(ErrICMPInnerFragment, 118)},
	{"icmp6 inner header cut", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 6, "")[:78])), icmp6Refused(ErrICMPInner, 101)},
	{"icmp6 inner 7 bytes", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 6, innerTCP[:16]))), icmp6Refused(ErrICMPInner, 109)},
	{"icmp6 inner version 4", eth6(ip6(router6, 58, tooBig6+"4"+ip6(rev6, 6, innerTCP)[1:])), icmp6Refused(ErrICMPInner, 110)},
	{"icmp6 inner options cut", eth6(ip6(router6, 58, tooBig6+ip6(rev6, 60, "0600 0104"))), icmp6Refused(ErrICMPInner, 106)},
	{"icmp6 inner mapped", eth6(ip6(router6, 58, tooBig6+ip6(rev6[:33]+mappedWire, 6, innerTCP))), icmp6Refused(ErrMapped, 110)},
	{"icmp6 unknown error", eth6(ip6(router6, 58, "6400 0000 00000000"+ip6(rev6, 6, innerTCP))),
		Packet{Tuple: from("2001:db8::1", bare6(58)), L3: 14, L4: 54, Payload: 62, End: 110, V6: true}},

	{"ns multicast", eth6(hl255(ip6(fwd6[:33]+solNode, 58, nsFor+linkAddr))), ns(14, 86, "2001:db8::7")},
	{"ns unicast vlan", hx(macs, tag, "86dd", hl255(ip6(fwd6, 58, nsFor))), ns(18, 82, "2001:db8::7")},
	{"ns of dad", eth6(hl255(ip6(noAddr+solNode, 58, nsFor+"0e01 a1a2a3a4a5a6"))), ns(14, 86, "::")},
	{"ns of dad with link address", eth6(hl255(ip6(noAddr+solNode, 58, nsFor+linkAddr))), func() Packet {
		p := badNS("ff02::1:ff00:99", 86)
		p.Src = addr("::")
		return p
	}()},
	{"ns of dad to all nodes", eth6(hl255(ip6(noAddr+"ff020000000000000000000000000001", 58, nsFor))), func() Packet {
		p := badNS("ff02::1", 78)
		p.Src = addr("::")
		return p
	}()},
	{"ns hop limit 64", eth6(ip6(fwd6, 58, nsFor)), badNS("2001:db8::10", 78)},
	{"ns code 1", eth6(hl255(ip6(fwd6, 58, strings.Replace(nsFor, "8700", "8701", 1)))), badNS("2001:db8::10", 78)},
	{"ns 23 bytes", eth6(hl255(ip6(fwd6, 58, nsFor[:len(nsFor)-3]))), badNS("2001:db8::10", 77)},
	{"ns for multicast", eth6(hl255(ip6(fwd6, 58, "8700 0000 00000000"+solNode))), badNS("2001:db8::10", 78)},
	{"ns for nothing", eth6(hl255(ip6(fwd6, 58, "8700 0000 00000000"+noAddr))), badNS("2001:db8::10", 78)},
	{"ns for mapped", eth6(hl255(ip6(fwd6, 58, "8700 0000 00000000"+mappedWire))), func() Packet {
		p := badNS("2001:db8::10", 78)
		p.Err = ErrMapped
		return p
	}()},
	{"ns option of length 0", eth6(hl255(ip6(fwd6, 58, nsFor+"0100 020000000002"))), badNS("2001:db8::10", 86)},
	{"ns option beyond datagram", eth6(hl255(ip6(fwd6, 58, nsFor+"0102 020000000002"))), badNS("2001:db8::10", 86)},
	{"ns option cut", eth6(hl255(ip6(fwd6, 58, nsFor+"0101 0200"))), badNS("2001:db8::10", 82)},
	{"ns in atomic fragment", eth6(hl255(ip6(fwd6, 44, "3a00 0000 00000001"+nsFor))), func() Packet {
		p := badNS("2001:db8::10", 86)
		p.L4, p.Payload = 62, 70
		return p
	}()},
}

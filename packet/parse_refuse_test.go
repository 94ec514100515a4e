package packet

import "strings"

// refused4 is what is known of a TCP or other IPv4 packet refused after its IP
// header was read.
func refused4(e Err, t Tuple, l4, end uint16) Packet {
	return Packet{Tuple: t, L3: 14, L4: l4, Payload: l4, End: end, Err: e}
}

func refused6(e Err, t Tuple, l4, end uint16) Packet {
	return Packet{Tuple: t, L3: 14, L4: l4, Payload: l4, End: end, Err: e, V6: true}
}

func from(s string, t Tuple) Tuple { t.Src = addr(s); return t }
func to(s string, t Tuple) Tuple   { t.Dst = addr(s); return t }

// wireAddr keeps the mapped form apart, which netip would not.
const mappedWire = "00000000000000000000ffffc6336407 "

var refusedCases = []parseCase{
	{"empty", nil, Packet{Err: ErrTruncated}},
	{"half an ethernet header", hx("020000000001 0200"), Packet{Err: ErrTruncated}},
	{"ethernet header alone", hx(macs, "0800"), Packet{L3: 14, Tuple: Tuple{}, Err: ErrTruncated}},
	{"cut in the tag", hx(macs, "8100 00"), Packet{L3: 14, Err: ErrTruncated}},
	{"second tag", hx(macs, stag, tag, "0800", ip4(fwd4, 6, 0, "", ack)), Packet{L3: 18, Err: ErrStackedVLAN}},
	{"llc length instead of ethertype", hx(macs, "0026 424203"), Packet{L3: 14, Err: ErrEtherType}},
	{"lldp", hx(macs, "88cc 0207"), Packet{L3: 14, Err: ErrEtherType}},

	{"ipv6 behind the ipv4 ethertype", eth4(ip6(fwd6, 6, ack)), Packet{L3: 14, Err: ErrIPVersion}},
	{"ipv4 behind the ipv6 ethertype", eth6(ip4(fwd4, 6, 0, "", ack)), Packet{L3: 14, Err: ErrIPVersion}},
	{"ipv4 header length 4 words", with(eth4(ip4(fwd4, 6, 0, "", ack)), 14, "44"),
		Packet{Tuple: bare4(6), L3: 14, Err: ErrHeaderLength}},
	{"ipv4 header beyond total length", with(eth4(ip4(fwd4, 6, 0, "", ack)), 14, "4f 00 0028"),
		Packet{Tuple: bare4(6), L3: 14, Err: ErrHeaderLength}},
	{"ipv4 total length 19", with(eth4(ip4(fwd4, 6, 0, "", ack)), 16, "0013"),
		Packet{Tuple: bare4(6), L3: 14, Err: ErrTotalLength}},
	{"ipv4 total length 0", with(eth4(ip4(fwd4, 6, 0, "", ack)), 16, "0000"),
		Packet{Tuple: bare4(6), L3: 14, Err: ErrTotalLength}},
	{"ipv4 total length one too many", with(eth4(ip4(fwd4, 6, 0, "", ack)), 16, "0029"),
		Packet{Tuple: bare4(6), L3: 14, Err: ErrTruncated}},
	{"ipv4 option of length 1", eth4(ip4(fwd4, 6, 0, "9401 0000", ack)), refused4(ErrIPOptions, bare4(6), 38, 58)},
	{"ipv4 option beyond header", eth4(ip4(fwd4, 6, 0, "9405 0000", ack)), refused4(ErrIPOptions, bare4(6), 38, 58)},
	{"ipv4 option without length", eth4(ip4(fwd4, 6, 0, "010101 94", ack)), refused4(ErrIPOptions, bare4(6), 38, 58)},
	{"loose source route", eth4(ip4(fwd4, 6, 0, "01 8307 04 0a000001", ack)), refused4(ErrSourceRoute, bare4(6), 42, 62)},
	{"strict source route", eth4(ip4(fwd4, 6, 0, "01 8907 04 0a000001", ack)), refused4(ErrSourceRoute, bare4(6), 42, 62)},

	{"source 0.0.0.0", eth4(ip4("00000000 c000020a", 6, 0, "", ack)), refused4(ErrMartianSource, from("0.0.0.0", bare4(6)), 34, 54)},
	{"source 127.1.2.3", eth4(ip4("7f010203 c000020a", 6, 0, "", ack)), refused4(ErrMartianSource, from("127.1.2.3", bare4(6)), 34, 54)},
	{"source 224.0.0.1", eth4(ip4("e0000001 c000020a", 17, 0, "", dns)), refused4(ErrMartianSource, from("224.0.0.1", bare4(17)), 34, 45)},
	{"source 239.255.255.255", eth4(ip4("efffffff c000020a", 6, 0, "", ack)), refused4(ErrMartianSource, from("239.255.255.255", bare4(6)), 34, 54)},
	{"source broadcast", eth4(ip4("ffffffff c000020a", 6, 0, "", ack)), refused4(ErrMartianSource, from("255.255.255.255", bare4(6)), 34, 54)},
	{"destination 0.0.0.0", eth4(ip4("c6336407 00000000", 6, 0, "", ack)), refused4(ErrMartianDest, to("0.0.0.0", bare4(6)), 34, 54)},
	{"land tcp4", eth4(ip4("c000020a c000020a", 6, 0, "", strings.Replace(ack, "c001", "0050", 1))),
		func() Packet {
			p := tcp4Packet(14, 34, 54, 54)
			p.Kind, p.Err, p.Src, p.SrcPort = KindOther, ErrLand, p.Dst, 80
			return p
		}()},
	{"land udp4", eth4(ip4("c000020a c000020a", 17, 0, "", strings.Replace(dns, "c001", "0035", 1))),
		Packet{Tuple: Tuple{Src: vip4, Dst: vip4, SrcPort: 53, DstPort: 53, Proto: 17}, L3: 14, L4: 34, Payload: 42, End: 45, Err: ErrLand}},

	{"tcp4 19 bytes", eth4(ip4(fwd4, 6, 0, "", ack[:len(ack)-3])), refused4(ErrTruncated, bare4(6), 34, 53)},
	{"tcp4 19 bytes and padding", append(eth4(ip4(fwd4, 6, 0, "", ack[:len(ack)-3])), 0, 0, 0), refused4(ErrTruncated, bare4(6), 34, 53)},
	{"tcp4 no bytes", eth4(ip4(fwd4, 6, 0, "", "")), refused4(ErrTruncated, bare4(6), 34, 34)},
	{"tcp4 offset 4", eth4(ip4(fwd4, 6, 0, "", strings.Replace(ack, "5010", "4010", 1))), refused4(ErrTCPOffset, bare4(6), 34, 54)},
	{"tcp4 offset beyond datagram", append(eth4(ip4(fwd4, 6, 0, "", strings.Replace(ack, "5010", "6010", 1))), 0, 0, 0, 0),
		refused4(ErrTCPOffset, bare4(6), 34, 54)},
	{"udp4 7 bytes", eth4(ip4(fwd4, 17, 0, "", "c001 0035 0008 12")), refused4(ErrTruncated, bare4(17), 34, 41)},
	{"udp4 length 7", eth4(ip4(fwd4, 17, 0, "", "c001 0035 0007 1234")), refused4(ErrUDPLength, bare4(17), 34, 42)},
	{"udp4 length 0", eth4(ip4(fwd4, 17, 0, "", "c001 0035 0000 1234")), refused4(ErrUDPLength, bare4(17), 34, 42)},
	{"udp4 length beyond datagram", append(eth4(ip4(fwd4, 17, 0, "", "c001 0035 0009 1234")), 0), refused4(ErrUDPLength, bare4(17), 34, 42)},

	{"udp4 length into ethernet padding", append(eth4(ip4(fwd4, 17, 0, "", "c001 0035 0009 1234")), make([]byte, 18)...), refused4(ErrUDPLength, bare4(17), 34, 42)},
	{"udp4 length 7, padded", append(eth4(ip4(fwd4, 17, 0, "", "c001 0035 0007 1234")), make([]byte, 18)...), refused4(ErrUDPLength, bare4(17), 34, 42)},
	{"udp4 7 bytes, padded", append(eth4(ip4(fwd4, 17, 0, "", "c001 0035 0008 12")), make([]byte, 19)...), refused4(ErrTruncated, bare4(17), 34, 41)},

	{"fragment4 not a multiple of 8", eth4(ip4(fwd4, 17, 0x2000, "", "c001 0035 0010 1234 61")), refused4(ErrBadFragment, bare4(17), 34, 43)},
	{"fragment4 empty", eth4(ip4(fwd4, 17, 0x0004, "", "")), refused4(ErrBadFragment, bare4(17), 34, 34)},
	{"fragment4 past 64 KiB", eth4(ip4(fwd4, 17, 0x1fff, "", "6162636465666768")), refused4(ErrBadFragment, bare4(17), 34, 42)},
	{"fragment4 tiny", eth4(ip4(fwd4, 6, 0x2000, "", "c001 0050 01020304")), refused4(ErrTinyFragment, bare4(6), 34, 42)},
	{"fragment4 over the tcp flags", eth4(ip4(fwd4, 6, 0x0001, "", "0000 0000 5002 0000")), refused4(ErrTinyFragment, bare4(6), 34, 42)},
	{"fragment4 over the tcp checksum", eth4(ip4(fwd4, 6, 0x0002, "", "0000 0000")), refused4(ErrTinyFragment, bare4(6), 34, 38)},

	{"ipv6 cut in the header", eth6(ip6(fwd6, 6, ack))[:53], Packet{L3: 14, Err: ErrTruncated}},
	{"ipv6 payload length one too many", with(eth6(ip6(fwd6, 6, ack)), 18, "0015"),
		Packet{Tuple: bare6(6), L3: 14, V6: true, Err: ErrTruncated}},
	{"ipv6 payload length 0", with(eth6(ip6(fwd6, 6, ack)), 18, "0000"), refused6(ErrTruncated, bare6(6), 54, 54)},
	{"mapped source", eth6(ip6(mappedWire+fwd6[33:], 6, ack)), refused6(ErrMapped, from("198.51.100.7", bare6(6)), 54, 74)},
	{"mapped destination", eth6(ip6(fwd6[:33]+mappedWire, 6, ack)), refused6(ErrMapped, to("198.51.100.7", bare6(6)), 54, 74)},
	{"source ::1", eth6(ip6("00000000000000000000000000000001"+fwd6[33:], 6, ack)), refused6(ErrMartianSource, from("::1", bare6(6)), 54, 74)},
	{"source ::", eth6(ip6("00000000000000000000000000000000"+fwd6[33:], 6, ack)), refused6(ErrMartianSource, from("::", bare6(6)), 54, 74)},
	{"source :: of a fragment", eth6(ip6("00000000000000000000000000000000"+fwd6[33:], 44, "3a00 0001 00000001 8700 0000 00000000")),
		refused6(ErrMartianSource, from("::", bare6(58)), 62, 70)},
	{"source :: of an echo", eth6(ip6("00000000000000000000000000000000"+fwd6[33:], 58, "8000 0000 0001 0001")),
		Packet{Tuple: from("::", bare6(58)), L3: 14, L4: 54, Payload: 62, End: 62, V6: true, Err: ErrMartianSource}},
	{"source ff02::1", eth6(ip6("ff020000000000000000000000000001"+fwd6[33:], 6, ack)), refused6(ErrMartianSource, from("ff02::1", bare6(6)), 54, 74)},
	{"destination ::", eth6(ip6(fwd6[:33]+"00000000000000000000000000000000", 6, ack)), refused6(ErrMartianDest, to("::", bare6(6)), 54, 74)},
	{"land tcp6", eth6(ip6(rev6[:33]+rev6[:33], 6, strings.Replace(ack, "c001", "0050", 1))),
		func() Packet {
			p := tcp6Packet(14, 54, 74, 74)
			p.Kind, p.Err, p.Src, p.SrcPort = KindOther, ErrLand, p.Dst, 80
			return p
		}()},
	{"udp6 zero checksum", eth6(ip6(fwd6, 17, "c001 0035 0008 0000")),
		Packet{Tuple: dns6, L3: 14, L4: 54, Payload: 62, End: 62, V6: true, Err: ErrUDPZeroChecksum}},
	{"nine extension headers", eth6(ip6(fwd6, 60, strings.Repeat("3c00 010400000000", 8)+"0600 010400000000"+ack)),
		refused6(ErrExtHeaders, bare6(60), 54, 146)},
	{"hop-by-hop not first", eth6(ip6(fwd6, 60, "0000 010400000000 0600 010400000000"+ack)), refused6(ErrExtHeaders, bare6(60), 54, 90)},
	{"extension header cut", eth6(ip6(fwd6, 60, "0600 0104")), refused6(ErrExtHeaders, bare6(60), 54, 58)},
	{"extension header beyond datagram", eth6(ip6(fwd6, 60, "0601 010400000000 0000")), refused6(ErrExtHeaders, bare6(60), 54, 64)},
	{"routing header with segments left", eth6(ip6(fwd6, 43, "0602 0001 00000000"+rev6[:33]+ack)), refused6(ErrSourceRoute, bare6(43), 54, 98)},
	{"fragment6 not a multiple of 8", eth6(ip6(fwd6, 44, "1100 0001 00c0ffee"+"c001 0035 0010 1234 61")), refused6(ErrBadFragment, bare6(17), 62, 71)},
	{"fragment6 tiny", eth6(ip6(fwd6, 44, "0600 0001 00c0ffee"+"c001 0050 01020304")), refused6(ErrTinyFragment, bare6(6), 62, 70)},

	{"arp cut", hx(macs, "0806 0001 0800 06 04 0001", "020000000002 c6336407", "000000000000 c00002"), Packet{L3: 14, Err: ErrTruncated}},
	{"arp operation 3", hx(macs, "0806 0001 0800 06 04 0003", "020000000002 c6336407", "000000000000 c000020a"), Packet{L3: 14, Err: ErrARP}},
	{"arp operation 0", hx(macs, "0806 0001 0800 06 04 0000", "020000000002 c6336407", "000000000000 c000020a"), Packet{L3: 14, Err: ErrARP}},
	{"arp for ieee 802", hx(macs, "0806 0006 0800 06 04 0001", "020000000002 c6336407", "000000000000 c000020a"), Packet{L3: 14, Err: ErrARP}},
	{"arp sender broadcast", hx(macs, "0806 0001 0800 06 04 0001", "020000000002 ffffffff", "000000000000 c000020a"),
		Packet{Tuple: from("255.255.255.255", bare4(0)), L3: 14, L4: 42, Payload: 42, End: 42, Window: 1, Err: ErrMartianSource}},
}

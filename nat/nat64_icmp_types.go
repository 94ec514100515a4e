package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// Codes of ICMPv6 "destination unreachable" (RFC 4443 section 3.1) and "parameter
// problem" (section 3.4).
const (
	noRoute6            = 0
	prohibited6         = 1
	beyondScope6        = 2
	addressUnreachable6 = 3
	portUnreachable6    = 4

	headerField6 = 0
	nextHeader6  = 1
)

// Codes of ICMP "destination unreachable" (RFC 792, RFC 1122, RFC 1812) and
// "parameter problem".
const (
	hostUnreachable4     = 1
	protocolUnreachable4 = 2
	portUnreachable4     = 3
	hostProhibited4      = 10

	pointer4   = 0
	badLength4 = 2
)

// noField stands in the pointer tables for a field the other family does not have.
const noField = 0xff

// pointers6 and pointers4 turn the pointer of a "parameter problem", an offset into
// the IP header, into that of the field that corresponds (RFC 7915 figures 3 and
// 6).
var (
	pointers6 = [packet.IPv4MinLen]uint8{
		0, 1, // version; type of service
		4, 4, // total length: payload length
		noField, noField, noField, noField, // identification, fragment
		7, 6, // TTL: hop limit; protocol: next header
		noField, noField, // checksum
		8, 8, 8, 8,
		24, 24, 24, 24,
	}
	pointers4 = [packet.IPv6Len]uint8{
		0, 1, noField, noField, // version, traffic class; flow label
		2, 2, // payload length: total length
		9, 8, // next header: protocol; hop limit: TTL
		12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12,
		16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
	}
)

// head6 translates the header of an ICMP error (RFC 7915 section 4.2). It returns
// false if there is nothing in ICMPv6 that says the same. For room and path see
// tooBig6.
func (t *translation64) head6(room, path int) bool {
	h := t.frame[t.p.L4:]
	code := h[packet.ICMPCode]
	switch h[packet.ICMPType] {
	case packet.ICMPUnreachable:
		return t.unreachable6(h, room, path)
	case packet.ICMPTimeExceeded:
		t.kind, t.code = packet.ICMPv6TimeExceeded, code
		return true
	case packet.ICMPParameterProblem:
		at := int(h[packet.ICMPLen-4])
		if code != pointer4 && code != badLength4 || at >= len(pointers6) || pointers6[at] == noField {
			return false
		}
		t.kind, t.code, t.rest = packet.ICMPv6ParameterProblem, headerField6, uint32(pointers6[at])
		return true
	}
	return false
}

func (t *translation64) unreachable6(h []byte, room, path int) bool {
	t.kind = packet.ICMPv6Unreachable
	switch h[packet.ICMPCode] {
	case 0, 1, 5, 6, 7, 8, 11, 12: // net or host unreachable, unknown, isolated, source route failed
		t.code = noRoute6
	case 9, 10, 13, 15: // administratively prohibited, precedence cutoff
		t.code = prohibited6
	case portUnreachable4:
		t.code = portUnreachable6
	case protocolUnreachable4:
		t.kind, t.code, t.rest = packet.ICMPv6ParameterProblem, nextHeader6, packet.IPv6NextHeader
	case packet.ICMPFragNeeded:
		mtu := int(binary.BigEndian.Uint16(h[packet.ICMPMTU:]))
		total := int(binary.BigEndian.Uint16(t.frame[int(t.p.Payload)+packet.IPv4TotalLen:]))
		t.kind, t.code, t.rest = packet.ICMPv6PacketTooBig, 0, uint32(tooBig6(mtu, total, room, path))
	default:
		return false
	}
	return true
}

// head4 is head6 for the header of an ICMPv6 error (RFC 7915 section 5.2).
func (t *translation64) head4(path int) bool {
	h := t.frame[t.p.L4:]
	code := h[packet.ICMPCode]
	word := binary.BigEndian.Uint32(h[packet.ICMPv6MTU:])
	switch h[packet.ICMPType] {
	case packet.ICMPv6Unreachable:
		t.kind = packet.ICMPUnreachable
		switch code {
		case noRoute6, beyondScope6, addressUnreachable6:
			t.code = hostUnreachable4
		case prohibited6:
			t.code = hostProhibited4
		case portUnreachable6:
			t.code = portUnreachable4
		default:
			return false
		}
	case packet.ICMPv6PacketTooBig:
		headers := Shrink64
		if _, ok := fragmentHeader(t.frame[:t.p.Inner4], int(t.p.Payload)); ok {
			headers += 8
		}
		t.kind, t.code, t.rest = packet.ICMPUnreachable, packet.ICMPFragNeeded, uint32(tooBig4(word, headers, path))
	case packet.ICMPv6TimeExceeded:
		t.kind, t.code = packet.ICMPTimeExceeded, code
	case packet.ICMPv6ParameterProblem:
		switch {
		case code == nextHeader6:
			t.kind, t.code = packet.ICMPUnreachable, protocolUnreachable4
		case code == headerField6 && word < uint32(len(pointers4)) && pointers4[word] != noField:
			t.kind, t.code, t.rest = packet.ICMPParameterProblem, pointer4, uint32(pointers4[word])<<24
		default:
			return false
		}
	default:
		return false
	}
	return true
}

package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the complement of the one's complement
// sum of the data's 16-bit big-endian words. Two kinds of values occur here:
//
//   - a sum, uint64: words added up, the carries not yet folded in. Sums of
//     pieces are added with +, and Fold makes 16 bits of it. Only the last
//     piece may have an odd length.
//   - a diff, uint16: what a change adds to the folded sum, ~old + new. Diffs
//     of several changes are added by AddDiff, a change is taken back by
//     Negate, and Apply brings a diff into a checksum field.
//
// Derivation (RFC 1624 section 3): the field HC is ~C, C the sum of all data.
// Changing a word m to m' changes C to C' = C + (-m) + m', and one's
// complement negation is inversion, so C' = C + ~m + m' and
//
//	HC' = ~C' = ~(~HC + ~m + m')        (equation 3)
//
// Zero has two forms in one's complement, 0x0000 and 0xffff. A folded sum is
// 0x0000 only if every word is zero, so a field computed over a header that is
// not all zero is never 0xffff. Equation 3 keeps that: ~HC is then at least 1,
// adding to it with end-around carry never gives 0, so HC' is never 0xffff.
// Which form of zero a diff has is therefore of no importance.

// Sum adds the words of b to acc; an odd last byte counts as followed by a zero
// byte. acc may be any sum below 2^63.
func Sum(b []byte, acc uint64) uint64 {
	// RFC 1071 section 2(B): the sum does not depend on byte order but for a
	// final swap, so add what the machine loads fastest, 8 bytes at a time,
	// with the carry going round.
	var s, c uint64
	for len(b) >= 32 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s += c // cannot carry: s wrapped, so it is not all ones
		b = b[32:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	var tail uint64
	if len(b) >= 4 {
		tail = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		tail += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		tail += uint64(b[0])
	}
	s, c = bits.Add64(s, tail, 0)
	return acc + uint64(bits.ReverseBytes16(Fold(s+c)))
}

// Fold makes the 16-bit one's complement sum of s. The checksum field is its
// complement.
func Fold(s uint64) uint16 {
	// Of a number plus its halves swapped the upper half is the sum of both halves,
	// and of the carry out of the lower one, which is the carry out of that sum.
	s = (s + bits.RotateLeft64(s, 32)) >> 32
	return uint16((uint32(s) + bits.RotateLeft32(uint32(s), 16)) >> 16)
}

// Checksum is the field value over b and what acc already holds: the
// complement of the folded sum. The field itself must be zero in b. For UDP a
// result of 0 is sent as 0xffff.
func Checksum(b []byte, acc uint64) uint16 { return ^Fold(Sum(b, acc)) }

// PseudoSum is the sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200
// section 8.1). length is that of the transport header and data in bytes; both
// addresses are of one family.
func PseudoSum(src, dst Addr, proto uint8, length int) uint64 {
	return sumAddr(src) + sumAddr(dst) + uint64(proto) + uint64(uint32(length))
}

// sumAddr is the sum of the address as it stands on the wire.
func sumAddr(a Addr) uint64 {
	if a.Is4() {
		return uint64(a.V4())
	}
	return a.Hi>>32 + a.Hi&0xffffffff + a.Lo>>32 + a.Lo&0xffffffff
}

// Diff16 is the diff of a 16-bit field that was old (a number in host order)
// and is now new.
func Diff16(old, new uint16) uint16 {
	return Fold(uint64(^old) + uint64(new))
}

// Diff32 is Diff16 for a 32-bit field at an even offset: an IPv4 address, a
// sequence number.
func Diff32(old, new uint32) uint16 {
	return Fold(uint64(^old) + uint64(new))
}

// DiffAddr is the diff of an address in a pseudo-header. The families may
// differ: the pseudo-headers of both have else the same sum (protocol and
// length; RFC 7915 translates so).
func DiffAddr(old, new Addr) uint16 {
	return Fold(uint64(^Fold(sumAddr(old))) + sumAddr(new))
}

// DiffBytes is the diff of a run of bytes that begins at an even offset from
// the start of what is checksummed. The lengths may differ if both are even.
func DiffBytes(old, new []byte) uint16 {
	return Fold(Sum(new, uint64(^Fold(Sum(old, 0)))))
}

// DiffAt moves a diff computed as if at an even offset to offset off: at an
// odd one each byte counts in the other half of its word (RFC 1071 section
// 2(B)). off counts from the start of what is checksummed.
func DiffAt(diff uint16, off int) uint16 {
	if off&1 != 0 {
		return bits.ReverseBytes16(diff)
	}
	return diff
}

// AddDiff is the diff of two changes together.
func AddDiff(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s>>16 + s)
}

// Negate is the diff of the change undone.
func Negate(diff uint16) uint16 { return ^diff }

// Apply is the checksum field csum (a number in host order) after a change:
// equation 3. It is for IPv4 headers, TCP, ICMP and ICMPv6; a field that was
// wrong stays wrong.
func Apply(csum, diff uint16) uint16 {
	return ^AddDiff(^csum, diff)
}

// ApplyUDP is Apply for UDP, where 0 means "no checksum" and stays 0, and a
// checksum that computes to 0 is sent as 0xffff (RFC 768).
func ApplyUDP(csum, diff uint16) uint16 {
	if csum == 0 {
		return 0
	}
	if c := Apply(csum, diff); c != 0 {
		return c
	}
	return 0xffff
}

// VerifyIPv4 reports whether the IPv4 header checksum is right; p must be
// Parse's result for frame. IPv6 and ARP, which have none, are right.
func VerifyIPv4(frame []byte, p *Packet) bool {
	if p.V6 || p.Kind == KindARP {
		return true
	}
	start := int(p.L3)
	if len(frame) < start+IPv4MinLen {
		return false
	}
	end := start + int(frame[start]&15)*4
	return end <= len(frame) && Fold(Sum(frame[start:end], 0)) == 0xffff
}

// VerifyL4 reports whether the TCP, UDP, ICMP or ICMPv6 checksum is right; p
// must be Parse's result for frame. UDP over IPv4 without checksum is right,
// and so is what has no checksum that one frame could prove: fragments, ARP,
// other protocols. A packet that Parse refused is not.
func VerifyL4(frame []byte, p *Packet) bool {
	if p.Err != ErrNone || int(p.End) > len(frame) {
		return false
	}
	b := frame[p.L4:p.End]
	proto := p.Proto
	switch p.Kind {
	case KindFragment, KindARP:
		return true
	case KindEcho, KindICMPError, KindNS:
		proto = p.ICMPProto()
	case KindUDP:
		if !p.V6 && binary.BigEndian.Uint16(b[UDPChecksum:]) == 0 {
			return true
		}
		b = b[:binary.BigEndian.Uint16(b[UDPLength:])]
	}
	var acc uint64
	switch {
	case proto == ProtoTCP || proto == ProtoUDP || proto == ProtoICMPv6 && p.V6:
		src, dst := p.OuterAddrs(frame)
		acc = PseudoSum(src, dst, proto, len(b))
	case proto != ProtoICMP || p.V6:
		return true
	}
	return Fold(Sum(b, acc)) == 0xffff
}

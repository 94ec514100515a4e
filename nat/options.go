package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// MinMSS is the smallest maximum segment size LowerMSS and ClampMSS make. A server
// that asks for less is left alone: no link has so small an MTU that the few bytes
// of TOA would not fit on top.
const MinMSS = 256

// hasOptions reports whether p is TCP with options that lie within frame.
func hasOptions(frame []byte, p *packet.Packet) bool {
	from, to := int(p.L4)+packet.TCPMinLen, int(p.Payload)
	return p.Kind == packet.KindTCP && from < to && to <= len(frame)
}

// PlainTimestamps is how the options of nearly every data packet of a modern
// stack begin, and end, if the header is 32 bytes long: two NOPs, timestamps.
const PlainTimestamps = packet.OptNop<<24 | packet.OptNop<<16 | packet.OptTimestamps<<8 | packet.OptTimestampsLen

// PlainTimestampsLen is how long the options are that PlainTimestamps begins: two NOPs, and
// the timestamps.
const PlainTimestampsLen = 2 + packet.OptTimestampsLen

// onlyTimestamps reports that all options are PlainTimestamps. hasOptions holds.
func onlyTimestamps(frame []byte, p *packet.Packet) bool {
	from, to := int(p.L4)+packet.TCPMinLen, int(p.Payload)
	return to-from == PlainTimestampsLen && binary.BigEndian.Uint32(frame[from:]) == PlainTimestamps
}

// StripOption overwrites every TCP option of the given kind by NOPs, on a SYN
// too, and fixes the checksum incrementally. A client's packet goes through it
// with TOA's kind before anything else: whatever TOA arrives from outside is
// forged. One whose length is impossible is overwritten to the end of the
// header. It reports whether there was any.
//
// All options of the kind go, also honest ones: kinds 253 and 254 are shared by
// experiments (RFC 6994), which will not work through a service with TOA.
func StripOption(frame []byte, p *packet.Packet, kind uint8) (found bool) {
	return StripOptions(frame, p, kind, packet.OptNop, packet.OptNop)
}

// StripOptions is StripOption for three kinds at once, in one walk: of a SYN, which is
// walked over often enough. Kinds up to packet.OptNop are none.
//
// Timestamps out of a client's SYN, so that neither side uses them, are the default in
// Full-NAT: to the server, many clients with unrelated timestamp clocks appear as one
// host behind one local address, and where a tuple is reused PAWS (RFC 7323 section 5)
// would take the new client's segments for old ones and drop them.
func StripOptions(frame []byte, p *packet.Packet, one, two, three uint8) (found bool) {
	if !hasOptions(frame, p) || one != packet.OptTimestamps && two != packet.OptTimestamps &&
		three != packet.OptTimestamps && onlyTimestamps(frame, p) {
		return false
	}
	var diff uint16
	b := frame[:p.Payload]
	at := int(p.L4) + packet.TCPMinLen
	for {
		k, n := packet.OptionAt(b, at)
		if n < 0 {
			n = len(b) - at
		}
		if n == 0 {
			break
		}
		if k > packet.OptNop && (k == one || k == two || k == three) {
			diff = packet.AddDiff(diff, blank(b, int(p.L4), at, at+n))
			found = true
		}
		at += n
	}
	if found {
		applyTCP(frame[p.L4:], diff)
	}
	return found
}

// LowerMSS reduces the maximum segment size that a SYN or SYN-ACK announces by
// the given number of bytes, so that the other side's segments leave room for
// what l4fwd adds to them. It never goes below MinMSS. It reports whether the
// option was there; without it the other side sends at most 536 bytes (IPv4) or
// 1220 (IPv6, RFC 9293 section 3.7.1), and there is room on any usual link.
func LowerMSS(frame []byte, p *packet.Packet, by uint16) (found bool) {
	return cutMSS(frame, p, by, 0xffff)
}

// ClampMSS reduces the maximum segment size that a SYN or SYN-ACK announces to
// most, where it is more; for the rest it is as LowerMSS. Segments of that many
// bytes of data and options, behind 20 bytes of TCP header, are what the sender
// of the packet will get at most (RFC 6691).
func ClampMSS(frame []byte, p *packet.Packet, most uint16) (found bool) {
	return cutMSS(frame, p, 0, most)
}

// cutMSS takes off by bytes, and whatever is then still above most.
func cutMSS(frame []byte, p *packet.Packet, by, most uint16) (found bool) {
	if p.TCPFlags&packet.SYN == 0 || !hasOptions(frame, p) {
		return false
	}
	var diff uint16
	b := frame[:p.Payload]
	for at := int(p.L4) + packet.TCPMinLen; ; {
		kind, n := packet.OptionAt(b, at)
		if n <= 0 {
			break
		}
		if kind == packet.OptMSS && n == packet.OptMSSLen {
			found = true
			diff = packet.AddDiff(diff, packet.DiffAt(lowerTo(b[at+2:at+4], by, most), at-int(p.L4)))
		}
		at += n
	}
	if found {
		applyTCP(frame[p.L4:], diff)
	}
	return found
}

// lowerTo takes by bytes off the segment size in b, and whatever is then still above
// most, and returns the change of the checksum, as if at an even offset.
func lowerTo(b []byte, by, most uint16) (diff uint16) {
	was := binary.BigEndian.Uint16(b)
	if was <= MinMSS {
		return 0
	}
	mss := uint16(max(min(int(was)-int(by), int(most)), MinMSS))
	binary.BigEndian.PutUint16(b, mss)
	return packet.Diff16(was, mss)
}

// shiftSACK adds delta to both edges of every SACK block (RFC 2018 section 3)
// and returns the change of the TCP checksum, which it does not apply.
func shiftSACK(frame []byte, p *packet.Packet, delta uint32) (diff uint16) {
	if !hasOptions(frame, p) || onlyTimestamps(frame, p) {
		return 0
	}
	b := frame[:p.Payload]
	for at := int(p.L4) + packet.TCPMinLen; ; {
		kind, n := packet.OptionAt(b, at)
		if n <= 0 {
			return diff
		}
		if kind == packet.OptSACK {
			diff = packet.AddDiff(diff, shiftEdges(b[at+2:at+n], at+2-int(p.L4), delta))
		}
		at += n
	}
}

// shiftEdges adds delta to the edges in b, which begin at off from the TCP header,
// and returns the change of the checksum.
func shiftEdges(b []byte, off int, delta uint32) (diff uint16) {
	for ; len(b) >= 4; b = b[4:] {
		diff = packet.AddDiff(diff, packet.DiffAt(shift32(b, delta), off))
	}
	return diff
}

// blank makes frame[from:to] NOPs and returns the change of the checksum of a
// header that begins at l4. Bytes at even distances are the upper halves of
// their words.
func blank(frame []byte, l4, from, to int) (diff uint16) {
	for i := from; i < to; i++ {
		d := packet.Diff16(uint16(frame[i]), packet.OptNop)
		diff = packet.AddDiff(diff, packet.DiffAt(d, i-l4+1))
		frame[i] = packet.OptNop
	}
	return diff
}

// applyTCP brings diff into the checksum of the header tcp begins with.
func applyTCP(tcp []byte, diff uint16) {
	csum := tcp[packet.TCPChecksum : packet.TCPChecksum+2]
	binary.BigEndian.PutUint16(csum, packet.Apply(binary.BigEndian.Uint16(csum), diff))
}

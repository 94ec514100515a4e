package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Lengths of the option: kind, length, port (big endian), address.
const (
	toaLen4 = 8
	toaLen6 = 20
)

// TOAResult is what became of a TOA option. The caller counts each and, by
// policy, sends the packet without the option or drops it.
type TOAResult uint8

// The results of InsertTOA. All but the first leave the packet as it was.
const (
	TOAInserted   TOAResult = iota
	TOANoRoom               // the TCP header would exceed its 60 bytes
	TOATooBig               // the datagram would exceed the MTU
	TOANoHeadroom           // no space before the frame in its chunk, or the frame is not TCP
	NumTOAResults
)

var toaResults = [NumTOAResults]string{"toa_inserted", "toa_no_room", "toa_too_big", "toa_no_headroom"}

// String returns a word usable as a metric label.
func (r TOAResult) String() string {
	if r >= NumTOAResults {
		return "toa_unknown"
	}
	return toaResults[r]
}

// TOALen returns the length in bytes of the TOA option for the flow's client: 8
// for IPv4, 20 for IPv6. What the client may send is lowered by it (LowerMSS).
func TOALen(e *conntrack.Entry) uint16 {
	if e.Client.Is4() {
		return toaLen4
	}
	return toaLen6
}

// TOARoom returns by how many bytes a client's packet of flow e may still have to
// grow, if its service wants TOA (which the caller knows): TOALen until the client
// has acknowledged data from the server, then nothing. It is what the client is
// told of an MTU that is in its way.
func TOARoom(e *conntrack.Entry) int {
	const over = conntrack.HasServerISN | conntrack.ServerAcked
	if e.Proto != packet.ProtoTCP || e.Mode != conntrack.FullNAT || e.Flags&over == over {
		return 0
	}
	return int(TOALen(e))
}

// TOANeeded reports whether a client's packet carries TOA if its service wants
// any (which the caller knows): from the handshake's ACK on, every packet until
// the client acknowledges data from the server, for until then an earlier one
// may have been lost; FIN included, SYN and RST never. conntrack has tracked the
// packet already, so one that makes the acknowledgement bears none.
//
// What acknowledges just the server's SYN always bears it: nothing else completes a
// handshake (RFC 9293 section 3.10.7.4), and that an acknowledgement of data passed
// here does not prove that the server ever saw anything of the client's. It may have
// had a TTL that ended on the way. And while a SYN-ACK of another number is noted
// (see conntrack.HasServerISN), which anybody can send in the server's name, it is
// not known what acknowledges just the SYN: then all bear it.
func TOANeeded(e *conntrack.Entry, p *packet.Packet) bool {
	return p.TCPFlags&(packet.ACK|packet.SYN|packet.RST) == packet.ACK && p.Kind == packet.KindTCP && TOADue(e, p.Ack)
}

// TOADue is TOANeeded for what acknowledges ack and is neither SYN nor RST.
func TOADue(e *conntrack.Entry, ack uint32) bool {
	const over = conntrack.HasServerISN | conntrack.ServerAcked
	answered := e.Flags & over
	return answered != 0 && (answered != over || ack == e.ServerNext) && e.Mode == conntrack.FullNAT
}

// InsertTOA puts the client's address and port into the packet as its first TCP
// option:
//
//	v4 client: kind, 8,  port (2), address (4)
//	v6 client: kind, 20, port (2), address (16)
//
// all in network order; the client's family decides, not the packet's. Both
// sizes are multiples of 4, so nothing else needs to move or be padded.
//
// The frame is chunk[off:off+n], as received, before Forward. It grows at its
// front: everything up to the fixed TCP header moves towards the chunk's start,
// into the headroom. The new offset and length are returned, p.Payload and p.End
// are corrected, lengths and checksums in the headers too. Ethernet padding that
// is no longer needed goes.
//
// mtu is the IP MTU of the way out. If the header's 60 bytes or the MTU are
// exceeded, padding among the client's options is dropped, then SACK blocks
// beyond the first, last one first: SACK is advisory (RFC 2018 section 8), and
// the first block is the newest. No other option is touched. If that is not
// enough, nothing is changed and the result says why.
func InsertTOA(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, kind uint8, mtu int) (newOff, newLen int, res TOAResult) {
	l3, l4, payload, end := int(p.L3), int(p.L4), int(p.Payload), int(p.End)
	fixed := l4 + packet.TCPMinLen
	if p.Kind != packet.KindTCP || off < 0 || off > len(chunk) || n < end || n > len(chunk)-off ||
		l4 < l3+packet.IPv4MinLen || payload < fixed || payload > fixed+maxOptions || end < payload {
		return off, n, TOANoHeadroom
	}
	had := payload - fixed
	size := int(TOALen(e))
	// How long all options together may become.
	limit := min(maxOptions, mtu-(end-l3-had))
	var kept [maxOptions]byte
	var diff uint16
	options := had
	if had+size > limit {
		old := chunk[off+fixed : off+payload]
		options, res = squeeze(&kept, chunk[off:off+n], p, limit-size, maxOptions-size)
		if res != TOAInserted {
			return off, n, res
		}
		diff = packet.DiffBytes(old, kept[:options])
	}
	grow := size + options - had
	if off < grow {
		return off, n, TOANoHeadroom
	}
	newOff = off - grow
	copy(chunk[newOff:], chunk[off:off+fixed])
	frame := chunk[newOff : off+n]
	toa := frame[fixed : fixed+size]
	diff = packet.AddDiff(diff, putTOA(toa, e, kind))
	if had+size > limit {
		copy(frame[fixed+size:], kept[:options])
	}
	lengthen(frame, p, grow, diff)
	return newOff, unpadded(n+grow, end+grow), TOAInserted
}

// PlainTOALen is the length of the option that PlainTOA writes.
const PlainTOALen = toaLen4

// PlainTOA is InsertTOA for a client of IPv4 and a packet without IPv4 options, whose
// TCP header has room for it. Both headers, the TCP header without its options, begin at
// h[PlainTOALen:], and at h when it is done. What was in front of them is not moved, and
// p.Payload and p.End are the caller's to correct.
func PlainTOA(h *[PlainTOALen + packet.IPv4MinLen + packet.TCPMinLen]byte, e *conntrack.Entry, kind uint8) {
	lengthen4((*[PlainTOALen + packet.IPv4MinLen]byte)(h[:]))
	putTOA4((*[PlainTOALen + packet.TCPMinLen]byte)(h[packet.IPv4MinLen:]),
		uint64(kind)<<56|toaLen4<<48|uint64(e.ClientPort)<<32|e.Client.Lo&0xffffffff)
}

// lengthen4 moves an IPv4 header at h[toaLen4:] to h and adds toaLen4 to its length.
// Whole words are moved: what has been written in pieces could not be read in one before
// it has reached the cache.
func lengthen4(h *[toaLen4 + packet.IPv4MinLen]byte) {
	length, ttl := binary.BigEndian.Uint64(h[toaLen4:]), binary.BigEndian.Uint64(h[toaLen4+8:])
	sum := fold32(uint32(uint16(^(ttl >> 32))) + toaLen4)
	binary.BigEndian.PutUint64(h[:], length+toaLen4<<32)
	binary.BigEndian.PutUint64(h[8:], ttl&^(0xffff<<32)|uint64(^sum)<<32)
	binary.LittleEndian.PutUint32(h[16:], binary.LittleEndian.Uint32(h[toaLen4+16:]))
}

// putTOA4 moves a TCP header at h[toaLen4:] to h and puts toa behind it.
func putTOA4(h *[toaLen4 + packet.TCPMinLen]byte, toa uint64) {
	const longer = toaLen4 / 4 << 12 // in the word of the header's length
	offset := binary.BigEndian.Uint64(h[toaLen4+packet.TCPOffset:])
	sum := packet.Fold(uint64(uint16(^(offset >> 16))) + toaLen4 + longer + toa>>32 + toa&0xffffffff)
	binary.LittleEndian.PutUint64(h[:], binary.LittleEndian.Uint64(h[toaLen4:]))
	binary.LittleEndian.PutUint32(h[8:], binary.LittleEndian.Uint32(h[toaLen4+8:]))
	binary.BigEndian.PutUint64(h[packet.TCPOffset:], (offset+longer<<48)&^(0xffff<<16)|uint64(^sum)<<16)
	binary.BigEndian.PutUint64(h[packet.TCPMinLen:], toa)
}

// maxOptions is all that a TCP header has for options.
const maxOptions = packet.TCPMaxLen - packet.TCPMinLen

// unpadded returns the length of a frame of n bytes whose datagram ends at end
// without the Ethernet padding it does not need: a frame has at least 60 bytes.
func unpadded(n, end int) int { return max(end, min(n, 60)) }

// putTOA writes the option and returns its sum. It is not read back for that: what
// has just been written in small pieces cannot be read in one before it has reached
// the cache.
func putTOA(o []byte, e *conntrack.Entry, kind uint8) (sum uint16) {
	head := uint32(kind)<<24 | uint32(len(o))<<16 | uint32(e.ClientPort)
	if len(o) == toaLen4 {
		binary.BigEndian.PutUint64(o, uint64(head)<<32|uint64(e.Client.V4()))
		return packet.Fold(uint64(head) + uint64(e.Client.V4()))
	}
	binary.BigEndian.PutUint32(o, head)
	e.Client.Put16(o[4:])
	return packet.AddDiff(packet.Fold(uint64(head)), packet.DiffAddr(packet.Addr{}, e.Client))
}

// lengthen corrects every length by grow bytes of TCP options that have been
// added, in the headers and in p, and the checksums. diff is the checksum change
// of the option bytes themselves.
func lengthen(frame []byte, p *packet.Packet, grow int, diff uint16) {
	diff = packet.AddDiff(diff, resize(frame, p, grow))
	h := frame[p.L4:]
	was := h[packet.TCPOffset]
	h[packet.TCPOffset] += byte(grow / 4 << 4)
	diff = packet.AddDiff(diff, packet.Diff16(uint16(was)<<8, uint16(h[packet.TCPOffset])<<8))
	applyTCP(h, diff)
	p.Payload += uint16(grow)
}

// squeeze copies the TCP options of p into kept without their padding, and with fewer
// SACK blocks if need be, so that they take at most limit bytes; the rest up to
// a multiple of 4 is the end of the list. It returns the bytes used. room is the
// limit without regard to the MTU and tells the two failures apart. Options that
// cannot be walked to their end are not touched.
func squeeze(kept *[maxOptions]byte, frame []byte, p *packet.Packet, limit, room int) (int, TOAResult) {
	n, sack := 0, -1
	it := packet.Options(frame, p)
	for it.Next() {
		if it.Kind == packet.OptSACK {
			sack = n
		}
		n += copy(kept[n:], frame[it.Off:it.Off+it.Len])
	}
	if it.Malformed {
		return 0, tooLong(int(p.Payload-p.L4)-packet.TCPMinLen, room)
	}
	for sack >= 0 && (n+3)&^3 > limit && kept[sack+1] >= 2+2*packet.SACKBlockLen {
		behind := sack + int(kept[sack+1])
		copy(kept[behind-packet.SACKBlockLen:], kept[behind:n])
		kept[sack+1] -= packet.SACKBlockLen
		n -= packet.SACKBlockLen
	}
	padded := (n + 3) &^ 3
	if padded > limit {
		return 0, tooLong(padded, room)
	}
	clear(kept[n:padded])
	return padded, TOAInserted
}

// tooLong names the reason why options of n bytes leave no place for TOA.
func tooLong(n, room int) TOAResult {
	if n > room {
		return TOANoRoom
	}
	return TOATooBig
}

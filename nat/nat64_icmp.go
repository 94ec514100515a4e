package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Error64 is what became of an ICMP error that had to change family. All but
// Error64Translated leave the frame as it was, not to be sent.
type Error64 uint8

// The results of TranslateError64.
const (
	Error64NotThisFlow   Error64 = iota // the error cannot be about this flow
	Error64NoCounterpart                // the other family has no such error: RFC 7915 says to drop it silently
	Error64NoHeadroom                   // no space before the frame in its chunk
	Error64Translated
	NumError64
)

var errors64 = [NumError64]string{"icmp64_not_this_flow", "icmp64_no_counterpart", "icmp64_no_headroom", "icmp64_translated"}

// String returns a word usable as a metric label.
func (r Error64) String() string {
	if r >= NumError64 {
		return "icmp64_unknown"
	}
	return errors64[r]
}

// icmpFamily is what ICMP errors of the two families differ in.
type icmpFamily struct {
	v6      bool
	ip      int // length of an IP header without options
	longest int // IP packet with an error: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)
	unit    int // of the length attribute of RFC 4884, in bytes
	attr    int // where that is in the ICMP header
	ether   uint16
	proto   uint8
}

var (
	family4 = icmpFamily{ip: packet.IPv4MinLen, longest: 576, unit: 4, attr: 5, ether: packet.EtherTypeIPv4, proto: packet.ProtoICMP}
	family6 = icmpFamily{v6: true, ip: packet.IPv6Len, longest: minMTU6, unit: 8, attr: 4, ether: packet.EtherTypeIPv6, proto: packet.ProtoICMPv6}
)

// TranslateError64 is TranslateError for the flow of an IPv6 client to an IPv4
// server. In direction Reply it makes ICMPv6 of an ICMP error, in direction Forward
// ICMP of an ICMPv6 error: type, code, MTU and pointer by the tables of RFC 7915
// sections 4.2 and 5.2, the embedded packet by sections 4.3 and 5.3, with the
// addresses, ports, sequence numbers and checksums that its sender knows. Outer
// source and destination, and room, are as in TranslateError.
// TTL and hop limit are decremented: the caller has refused 1 and less.
//
// The error is cut to 1280 (ICMPv6) or 576 bytes (ICMP), IP header included.
// Extensions (RFC 4884) are carried over where both families have a place for
// their length, and dropped where they no longer fit. An embedded packet that was
// fragmented on the way to the server is shown to the client without fragment
// header, for it never sent one.
//
// path is PathMTU64 of the next hops towards client and server, 0 if it is not
// known. id is the identification of an IPv4 packet; see Forward64.
//
// The ICMP checksum is updated by the difference that all this makes, so an error
// that arrives damaged leaves damaged, wherever in the message that is; for the
// outer IPv4 header the caller has to look, as for Reply64. The frame is
// chunk[off:off+n]; for what is returned, and what becomes of p, see Forward64.
// Towards the client it grows at its front, by 40 bytes less the options of both
// IPv4 headers; padding before an extension may take up to 20 bytes of the chunk
// behind the frame.
func TranslateError64(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir,
	dir *conntrack.Directory, id uint16, path, room int) (newOff, newLen int, res Error64) {
	server, rs, ports, ok := serverSide(e, dir)
	if !ok || !translates(e) || int(e.Service) >= len(dir.Services) || p.V6 != (d == conntrack.Forward) ||
		off < 0 || off > len(chunk) || n < 0 || n > len(chunk)-off || !hasEthernet(p) || !isError(chunk[off:off+n], p) {
		return off, n, Error64NotThisFlow
	}
	vip := &dir.Services[e.Service]
	t := translation64{frame: chunk[off : off+n], p: p}
	if d == conntrack.Reply {
		t.from, t.to = &family4, &family6
		t.src, t.dst = vip.Addr, e.Client
		t.inner = embedded{src: e.Client, dst: vip.Addr, ports: uint32(e.ClientPort)<<16 | uint32(vip.Port),
			portDiff: packet.Negate(e.PortSum), seq: -e.SeqDelta}
		ok = t.head6(room, path)
	} else {
		t.from, t.to = &family6, &family4
		t.src, t.dst = server, rs
		t.inner = embedded{src: rs, dst: server, ports: ports<<16 | ports>>16, portDiff: e.PortSum, ack: e.SeqDelta}
		ok = t.head4(path)
	}
	if !ok {
		return off, n, Error64NoCounterpart
	}
	newOff = off + int(p.Inner4) - int(p.L3) - t.to.ip - packet.ICMPLen - t.to.ip
	if newOff < 0 {
		return off, n, Error64NoHeadroom
	}
	t.measure(len(chunk) - newOff)
	t.write(chunk, newOff, id)
	return newOff, int(p.End), Error64Translated
}

// translation64 is one error on its way to the other family.
type translation64 struct {
	frame    []byte // as it came
	p        *packet.Packet
	from, to *icmpFamily
	src, dst packet.Addr // of the new outer header
	inner    embedded
	kind     uint8
	code     uint8
	rest     uint32 // second word of the new ICMP header, without length attribute
	quoted   int    // end of the embedded packet in frame
	ext      int    // length of the extensions behind it
	datagram int    // length of the embedded packet in the new error
	padded   int    // the same with padding
}

// measure decides what goes into the new error. From its start to the end of the
// chunk there are space bytes.
func (t *translation64) measure(space int) {
	const least = 128 // of an embedded packet that extensions follow (RFC 4884 section 3)
	p := t.p
	end, payload := int(p.End), int(p.Payload)
	t.quoted = end
	if t.from.extends(t.frame[p.L4]) {
		n := int(t.frame[int(p.L4)+t.from.attr]) * t.from.unit
		// Anything but version 2 is no extension, but padding or an old router.
		if at := payload + n; n >= least && at <= end-4 && at >= int(p.Inner4)+packet.UDPLen && t.frame[at]>>4 == 2 {
			t.quoted, t.ext = at, end-at
		}
	}
	room := t.to.longest - t.to.ip - packet.ICMPLen
	t.datagram = t.to.ip + t.quoted - int(p.Inner4)
	t.padded = max(least, (t.datagram+t.to.unit-1)&^(t.to.unit-1))
	if t.ext == 0 || !t.to.extends(t.kind) || t.padded+t.ext > room ||
		int(p.L3)+t.to.ip+packet.ICMPLen+t.padded+t.ext > space {
		t.datagram = min(t.datagram, room)
		t.padded, t.ext = t.datagram, 0
	}
}

// write makes the new error at newOff. Whatever of the old one is still needed is
// read before the first byte is written.
func (t *translation64) write(chunk []byte, newOff int, id uint16) {
	p, l3 := t.p, int(t.p.L3)
	msg := t.frame[p.L4:p.End]
	csum := binary.BigEndian.Uint16(msg[packet.ICMPChecksum:])
	src, dst := p.OuterAddrs(t.frame)
	// Without the checksum field itself.
	before := packet.Fold(t.from.sum(msg, src, dst) + uint64(^csum))
	outer, inner := t.outer(id), t.embedded()

	at := l3 + t.to.ip // the new ICMP header
	payload := at + packet.ICMPLen
	end := payload + t.padded + t.ext
	frame := chunk[newOff : newOff+end]
	copy(frame[payload+t.padded:], t.frame[t.quoted:t.quoted+t.ext])
	clear(frame[payload+t.datagram : payload+t.padded])
	copy(frame, t.frame[:l3])
	*p = packet.Packet{
		Tuple: p.Tuple, Seq: p.Seq, L3: p.L3, L4: uint16(at), Payload: uint16(payload),
		End: uint16(payload + t.datagram), Kind: p.Kind, V6: t.to.v6, Inner4: uint16(payload + t.to.ip),
	}
	inner.put(frame[payload:], t.to)
	t.inner.restore(frame, p)
	p.End = uint16(end)

	msg = frame[at:]
	msg[packet.ICMPType], msg[packet.ICMPCode] = t.kind, t.code
	binary.BigEndian.PutUint16(msg[packet.ICMPChecksum:], 0)
	binary.BigEndian.PutUint32(msg[packet.ICMPChecksum+2:], t.rest)
	if t.ext > 0 {
		msg[t.to.attr] = uint8(t.padded / t.to.unit)
	}
	outer.size = len(msg)
	outer.put(frame[l3:], t.to)
	binary.BigEndian.PutUint16(frame[l3-2:], t.to.ether)
	diff := packet.AddDiff(packet.Negate(before), packet.Fold(t.to.sum(msg, t.src, t.dst)))
	binary.BigEndian.PutUint16(msg[packet.ICMPChecksum:], packet.Apply(csum, diff))
}

// outer is the new outer header, but for its length.
func (t *translation64) outer(id uint16) header64 {
	b := t.frame[t.p.L3:]
	h := header64{src: t.src, dst: t.dst, proto: t.to.proto, id: id}
	if t.from.v6 {
		h.class, h.hops = class6(b), b[packet.IPv6HopLimit]-1
	} else {
		h.class, h.hops = b[packet.IPv4TOS], b[packet.IPv4TTL]-1
	}
	return h
}

// embedded is the header of the embedded packet in the other family. Its length is
// translated and not believed; TTL and hop limit stay.
func (t *translation64) embedded() header64 {
	p := t.p
	b := t.frame[p.Payload:]
	h := header64{src: t.inner.src, dst: t.inner.dst, proto: p.Proto}
	if !t.from.v6 {
		h.class, h.hops = b[packet.IPv4TOS], b[packet.IPv4TTL]
		h.size = max(int(binary.BigEndian.Uint16(b[packet.IPv4TotalLen:]))-int(p.Inner4-p.Payload), 0)
		return h
	}
	h.class, h.hops = class6(b), b[packet.IPv6HopLimit]
	h.size = max(int(binary.BigEndian.Uint16(b[packet.IPv6PayloadLen:]))-(int(p.Inner4-p.Payload)-packet.IPv6Len), 0)
	if f, ok := fragmentHeader(t.frame[:p.Inner4], int(p.Payload)); ok {
		// RFC 7915 section 5.1.1; Parse has seen to it that the offset is 0.
		h.id = binary.BigEndian.Uint16(f[4:])
		if f[1]&1 != 0 {
			h.frag = packet.IPv4MoreFragments
		}
	} else if packet.IPv4MinLen+h.size > fragmentable4 {
		h.frag = packet.IPv4DontFragment
	}
	return h
}

func (h *header64) put(b []byte, to *icmpFamily) {
	if to.v6 {
		h.put6(b)
	} else {
		h.put4(b)
	}
}

// extends reports whether errors of a type have a length attribute: in ICMPv6
// "packet too big" and "parameter problem" have none.
func (f *icmpFamily) extends(kind uint8) bool {
	return !f.v6 || kind == packet.ICMPv6Unreachable || kind == packet.ICMPv6TimeExceeded
}

// sum is the sum of an ICMP message; ICMPv6 has a pseudo-header, ICMP none.
func (f *icmpFamily) sum(msg []byte, src, dst packet.Addr) uint64 {
	if f.v6 {
		return packet.Sum(msg, packet.PseudoSum(src, dst, f.proto, len(msg)))
	}
	return packet.Sum(msg, 0)
}

package rs

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// twin is decap.c again: by slices and addresses, without a thought of speed.
type twin struct {
	vips, hosts []netip.Addr
	from        []netip.Prefix
	gue, fou    uint16
}

// outer is what a tunnel's IP header says.
type outer struct {
	src, dst netip.Addr
	proto    byte
	ecn      byte
	fragment bool
	later    bool   // not the first
	rest     []byte // behind it, until the end of the frame
	left     int    // bytes behind it that the datagram has
	head     int    // bytes of it, options included
}

// unwrap returns what becomes of a frame and the name of what is counted, "" for
// nothing; marked if the ECN field was changed.
func (w twin) unwrap(frame []byte) (out []byte, outcome string, marked bool) {
	l2 := 14
	if len(frame) < l2 {
		return frame, "", false
	}
	kind := binary.BigEndian.Uint16(frame[12:])
	if kind == 0x8100 {
		if len(frame) < 18 {
			return frame, "", false
		}
		kind, l2 = binary.BigEndian.Uint16(frame[16:]), 18
	}
	o, ok := outerOf(kind, frame[l2:])
	if !ok || l2+o.head > 511 {
		return frame, "", false
	}
	inner, version, outcome := w.inside(o)
	if outcome == "" || !slices.Contains(w.hosts, o.dst) {
		return frame, "", false
	}
	if !slices.Contains([]string{"ipip", "gre", "gue", "fou"}, outcome) {
		return frame, outcome, false
	}
	left := o.left - (len(o.rest) - len(inner)) // bytes of the datagram from inner on
	if len(o.rest) < o.left || len(inner) == 0 || len(frame)-len(inner) > 511 {
		return frame, "malformed", false
	}
	if version == 0 {
		version = 6
		if inner[0]>>4 == 4 {
			version = 4
		}
	}
	dst, whole := innerOf(version, inner, left)
	switch {
	case !whole:
		return frame, "malformed", false
	case !slices.Contains(w.vips, dst):
		return frame, "", false
	case !slices.ContainsFunc(w.from, func(p netip.Prefix) bool { return p.Contains(o.src) }):
		return frame, "refused", false
	}
	inner = slices.Clone(inner)
	was := ecnOf(version, inner)
	is, legal := rfc6040(was, o.ecn)
	if !legal {
		return nil, "drop_ecn", false
	}
	setECN(version, inner, is)
	out = append(slices.Clone(frame[:l2]), inner...)
	binary.BigEndian.PutUint16(out[l2-2:], map[byte]uint16{4: 0x0800, 6: 0x86dd}[version])
	return out, outcome, was != is
}

func outerOf(kind uint16, b []byte) (o outer, ok bool) {
	switch {
	case kind == 0x0800 && len(b) >= 20 && b[0]>>4 == 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || total < head {
			return o, false
		}
		o.src, _ = netip.AddrFromSlice(b[12:16])
		o.dst, _ = netip.AddrFromSlice(b[16:20])
		o.proto, o.ecn, o.left, o.head = b[9], b[1]&3, total-head, head
		o.fragment, o.later = binary.BigEndian.Uint16(b[6:])&0x3fff != 0, binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		o.rest = b[min(head, len(b)):]
		if head > len(b) { // nothing behind it can be read, and it is cut short
			o.rest, o.left = nil, o.left+1
		}
		return o, true
	case kind == 0x86dd && len(b) >= 40 && b[0]>>4 == 6:
		o.src, _ = netip.AddrFromSlice(b[8:24])
		o.dst, _ = netip.AddrFromSlice(b[24:40])
		o.proto, o.ecn, o.left = b[6], b[1]>>4&3, int(binary.BigEndian.Uint16(b[4:]))
		o.rest, o.head = b[40:], 40
		if len(o.rest) < 4 {
			return o, true
		}
		switch o.proto {
		case 60:
			n := (int(o.rest[1]) + 1) * 8
			o.proto, o.left, o.head = o.rest[0], o.left-n, o.head+n
			if n > len(o.rest) {
				o.rest, o.left = nil, 1
			} else {
				o.rest = o.rest[n:]
			}
		case 44:
			o.proto, o.fragment, o.later = o.rest[0], true, binary.BigEndian.Uint16(o.rest[2:])&0xfff8 != 0
			o.rest, o.head, o.left = o.rest[min(8, len(o.rest)):], 48, o.left-8
		}
		return o, true
	}
	return o, false
}

// inside returns the packet in the tunnel, what version it must have (0 = as it
// says) and by what it comes.
func (w twin) inside(o outer) (inner []byte, version byte, outcome string) {
	b := o.rest
	switch o.proto {
	case 4, 41:
		if o.fragment {
			return nil, 0, "fragment"
		}
		return b, map[byte]byte{4: 4, 41: 6}[o.proto], "ipip"
	case 47:
		if o.fragment {
			return nil, 0, "fragment"
		}
		if len(b) < 4 {
			return nil, 0, "malformed"
		}
		version = map[uint16]byte{0x0800: 4, 0x86dd: 6}[binary.BigEndian.Uint16(b[2:])]
		if b[0] != 0 || b[1] != 0 || version == 0 {
			return nil, 0, "unsupported"
		}
		return b[4:], version, "gre"
	case 17:
		return w.insideUDP(o)
	}
	return nil, 0, ""
}

func (w twin) insideUDP(o outer) (inner []byte, version byte, outcome string) {
	b := o.rest
	if len(b) < 8 || o.later {
		return nil, 0, ""
	}
	port := binary.BigEndian.Uint16(b[2:])
	if port == 0 || port != w.gue && port != w.fou {
		return nil, 0, ""
	}
	if o.fragment {
		return nil, 0, "fragment"
	}
	if b = b[8:]; port == w.fou {
		return b, 0, "fou"
	}
	if len(b) < 4 {
		return nil, 0, "malformed"
	}
	if b[0]>>6 == 1 {
		return b, 0, "gue"
	}
	version = map[byte]byte{4: 4, 41: 6}[b[1]]
	if b[0]>>5 != 0 || b[2] != 0 || b[3] != 0 || version == 0 {
		return nil, 0, "unsupported"
	}
	head := 4 + int(b[0]&31)*4
	if head > len(b) {
		return nil, 0, "malformed"
	}
	return b[head:], version, "gue"
}

func innerOf(version byte, b []byte, left int) (dst netip.Addr, whole bool) {
	switch {
	case version == 4 && len(b) >= 20 && b[0]>>4 == 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		dst, _ = netip.AddrFromSlice(b[16:20])
		return dst, head >= 20 && total >= head && total <= left
	case version == 6 && len(b) >= 40 && b[0]>>4 == 6:
		dst, _ = netip.AddrFromSlice(b[24:40])
		return dst, 40+int(binary.BigEndian.Uint16(b[4:])) <= left
	}
	return dst, false
}

// rfc6040 is figure 4 of RFC 6040, rows by the inner field and columns by the outer,
// in the order of their numbers; 4 = drop.
func rfc6040(inner, outer byte) (ecn byte, legal bool) {
	figure := [4][4]byte{
		{0, 0, 0, 4},
		{1, 1, 1, 3},
		{2, 1, 2, 3},
		{3, 3, 3, 3},
	}
	ecn = figure[inner][outer]
	return ecn, ecn != 4
}

func ecnOf(version byte, b []byte) byte {
	if version == 4 {
		return b[1] & 3
	}
	return b[1] >> 4 & 3
}

// setECN sets the field. The IPv4 header's checksum is as right, or as wrong, as it
// was: RFC 1624 equation 3 by the whole word.
func setECN(version byte, b []byte, ecn byte) {
	if version == 6 {
		b[1] = b[1]&^0x30 | ecn<<4
		return
	}
	if b[1]&3 == ecn {
		return
	}
	was := binary.BigEndian.Uint16(b)
	b[1] = b[1]&^3 | ecn
	sum := uint32(^binary.BigEndian.Uint16(b[10:])) + uint32(^was) + uint32(binary.BigEndian.Uint16(b))
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
}

package packet

import "encoding/binary"

// IPv4 options (RFC 791 section 3.1): whole type bytes.
const (
	ip4OptEnd  = 0
	ip4OptNop  = 1
	ip4OptLSRR = 131
	ip4OptSSRR = 137
)

// IPv6 extension headers (RFC 8200 section 4).
const (
	ip6HopByHop  = 0
	ip6Routing   = 43
	ip6Fragment  = 44
	ip6DestOpts  = 60
	ip6FragLen   = 8
	ip6MaxHeader = 8 // our bound on how many are walked
)

// martian4 reports whether an IPv4 address (host order) cannot be the source
// of a packet from another host (RFC 1122 section 3.2.1.3). The rest of
// 240/4 is let through: it is in use inside some networks.
func martian4(a uint32) bool {
	top := a >> 24
	return top == 0 || top == 127 || top >= 224 && (top < 240 || a == 0xffffffff)
}

// martian6 is martian4 for IPv6, save for the unspecified address, which the
// caller judges (RFC 4291 sections 2.5.3 and 2.7).
func martian6(a Addr) bool {
	return a.Hi>>56 == 0xff || a.Hi == 0 && a.Lo == 1
}

func parse4(frame []byte, p *Packet) Err {
	b := frame[p.L3:]
	if len(b) < IPv4MinLen {
		return ErrTruncated
	}
	b = b[:IPv4MinLen:IPv4MinLen]
	if b[0]>>4 != 4 {
		return ErrIPVersion
	}
	p.Src = Addr4(b[IPv4Src:])
	p.Dst = Addr4(b[IPv4Dst:])
	p.Proto = b[IPv4Proto]
	header := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[IPv4TotalLen:]))
	switch {
	case header < IPv4MinLen:
		return ErrHeaderLength
	case total < IPv4MinLen:
		return ErrTotalLength
	case total < header:
		return ErrHeaderLength
	case int(p.L3)+total > len(frame):
		return ErrTruncated
	}
	p.L4 = p.L3 + uint16(header)
	p.End = p.L3 + uint16(total)
	p.Payload = p.L4
	if header > IPv4MinLen {
		if e := checkOptions4(frame[p.L3+IPv4MinLen : p.L4]); e != ErrNone {
			return e
		}
	}
	switch {
	case martian4(p.Src.V4()):
		return ErrMartianSource
	case p.Dst.V4() == 0:
		return ErrMartianDest
	}
	frag := binary.BigEndian.Uint16(b[IPv4Frag:])
	if frag&(IPv4MoreFragments|IPv4OffsetMask) != 0 {
		return parseFragment(p, int(frag&IPv4OffsetMask)*8, frag&IPv4MoreFragments != 0)
	}
	return parseTransport(frame, p)
}

func checkOptions4(b []byte) Err {
	for len(b) > 0 {
		switch b[0] {
		case ip4OptEnd:
			return ErrNone
		case ip4OptNop:
			b = b[1:]
			continue
		case ip4OptLSRR, ip4OptSSRR:
			return ErrSourceRoute
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return ErrIPOptions
		}
		b = b[b[1]:]
	}
	return ErrNone
}

func parse6(frame []byte, p *Packet) Err {
	b := frame[p.L3:]
	if len(b) < IPv6Len {
		return ErrTruncated
	}
	b = b[:IPv6Len:IPv6Len]
	if b[0]>>4 != 6 {
		return ErrIPVersion
	}
	p.V6 = true
	p.Src = Addr16(b[IPv6Src:])
	p.Dst = Addr16(b[IPv6Dst:])
	p.Proto = b[IPv6NextHeader]
	// A jumbogram (RFC 2675) says 0 here and comes out as an empty datagram,
	// too short for the header it must carry.
	end := int(p.L3) + IPv6Len + int(binary.BigEndian.Uint16(b[IPv6PayloadLen:]))
	if end > len(frame) {
		return ErrTruncated
	}
	p.L4 = p.L3 + IPv6Len
	p.Payload = p.L4
	p.End = uint16(end)
	switch {
	case p.Src.Is4() || p.Dst.Is4():
		return ErrMapped
	case martian6(p.Src):
		return ErrMartianSource
	case p.Dst.IsZero():
		return ErrMartianDest
	}
	w := walk6{at: int(p.L4), proto: p.Proto}
	if e := w.walk(frame[:end]); e != ErrNone {
		return e
	}
	p.L4 = uint16(w.at)
	p.Payload = p.L4
	p.Proto = w.proto
	if p.Src.IsZero() && (w.fragment || w.proto != ProtoICMPv6) {
		return ErrMartianSource
	}
	if w.fragment {
		return parseFragment(p, w.offset, w.more)
	}
	e := parseTransport(frame, p)
	// Only duplicate address detection has no source yet (RFC 4862 section 5.4).
	if e == ErrNone && p.Kind != KindNS && p.Src.IsZero() {
		return ErrMartianSource
	}
	return e
}

// walk6 goes over IPv6 extension headers.
type walk6 struct {
	at       int   // offset of the header proto names
	proto    uint8 // what is at "at"
	fragment bool  // stopped behind a fragment header that is not atomic
	more     bool
	offset   int // of the fragment, in bytes
}

// walk advances to the upper-layer header, or to the data of a fragment. b
// ends where the datagram does.
func (w *walk6) walk(b []byte) Err {
	for n := 0; ; n++ {
		switch w.proto {
		case ip6HopByHop:
			if n != 0 {
				return ErrExtHeaders // only right after the IPv6 header
			}
		case ip6Routing, ip6Fragment, ip6DestOpts:
		default:
			return ErrNone
		}
		if n == ip6MaxHeader || len(b)-w.at < 8 {
			return ErrExtHeaders
		}
		h := b[w.at : w.at+8 : w.at+8]
		size := 8
		switch w.proto {
		case ip6Fragment:
			v := binary.BigEndian.Uint16(h[2:])
			w.offset, w.more = int(v&^7), v&1 != 0
			w.fragment = w.offset != 0 || w.more
		case ip6Routing:
			// With segments left the destination is not the final one, the
			// one the transport checksum covers (RFC 8200 section 8.1).
			if h[3] != 0 {
				return ErrSourceRoute
			}
			size += int(h[1]) * 8
		default:
			size += int(h[1]) * 8
		}
		if len(b)-w.at < size {
			return ErrExtHeaders
		}
		w.proto = h[0]
		w.at += size
		if w.fragment {
			return ErrNone
		}
	}
}

// parseFragment judges a fragment whose data is at p.L4; offset is in bytes.
func parseFragment(p *Packet, offset int, more bool) Err {
	p.Payload = p.L4
	n := int(p.End) - int(p.L4)
	if n == 0 || more && n%8 != 0 || offset+n > 0xffff {
		return ErrBadFragment
	}
	// A first fragment that stops within the transport header, or a later one
	// that begins within it, exists to slip past filters (RFC 1858, 3128). It
	// would also slip past the rewrite of ports and checksum.
	need := 0
	switch p.Proto {
	case ProtoTCP:
		need = TCPMinLen
	case ProtoUDP:
		need = UDPLen
	}
	if offset == 0 && n < need || offset > 0 && offset < need {
		return ErrTinyFragment
	}
	p.Kind = KindFragment
	return ErrNone
}

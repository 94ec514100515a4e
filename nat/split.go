package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// FragmentLen is the length of IPv6's fragment header (RFC 8200 section 4.5).
const FragmentLen = 8

// fragmentHeader6 is the next header value that announces it.
const fragmentHeader6 = 44

// MaxPiece6 is how long at most the IPv6 fragments should be that an IPv4 packet
// without DF becomes: its sender does not look for the path's MTU, so they must
// fit every link (RFC 7915 section 4).
const MaxPiece6 = minMTU6

// maxHeader4 is how long an IPv4 header can be, options included.
const maxHeader4 = 60

// Split cuts one packet into fragments. It may be an IPv4 datagram, an IPv4
// fragment (to RFC 791 section 3.2 they are the same), or what Reply64 or
// Readdress64 has made for an IPv6 client.
type Split struct {
	from        packet.Fragment // the packet's own place in its datagram
	l3, l4, end int             // where in the frame its headers and data are
	size        int             // bytes of data in every piece but the last
	v6          bool
}

// NewSplit says into how many pieces of at most mtu bytes, IP header included,
// the packet has to be cut. frame is as it is to leave but for its length, and p's
// offsets and V6 are true of it. An IPv6 packet gets a fragment header in any
// case, even if it is one piece; from says what was known of it as IPv4 packet: its
// Offset and More, both zero if it was whole, and the ID for all pieces. For IPv4
// the header says it all, and from means nothing.
//
// No pieces at all: the MTU leaves no room for data, or p is no such packet. DF is
// for the caller to look at.
func NewSplit(frame []byte, p *packet.Packet, mtu int, from packet.Fragment) (s Split, pieces int) {
	s = Split{from: from, l3: int(p.L3), l4: int(p.L4), end: int(p.End), v6: p.V6}
	least, most, more := packet.IPv4MinLen, maxHeader4, 0
	if p.V6 {
		least, most, more = packet.IPv6Len, packet.IPv6Len, FragmentLen
	}
	head := s.l4 - s.l3
	if head < least || head > most || s.end <= s.l4 || s.end > len(frame) {
		return s, 0
	}
	if !p.V6 {
		s.from = p.Fragment(frame)
	}
	data, room := s.end-s.l4, mtu-head-more
	switch {
	case room < 8 || int(s.from.Offset)+data > 0xffff:
		return s, 0
	case data <= room:
		s.size = data
	default:
		s.size = room &^ 7
	}
	return s, (data + s.size - 1) / s.size
}

// Put writes piece k, counted from 0, into dst, from the IP header on, and returns
// its length. frame is the one NewSplit has seen, unchanged, and no part of dst.
// IPv4 options that only the first fragment carries (RFC 791 section 3.1, the
// copied flag) are NOPs in the others. It returns 0, with nothing written, if there
// is no such piece or dst is too short; a packet's length, of its family, always
// does.
func (s *Split) Put(dst, frame []byte, k int) int {
	from := s.l4 + k*s.size
	if k < 0 || from >= s.end || s.end > len(frame) {
		return 0
	}
	to := min(from+s.size, s.end)
	f := packet.Fragment{ID: s.from.ID, Offset: s.from.Offset + uint16(from-s.l4), More: s.from.More || to < s.end}
	head := s.l4 - s.l3
	if s.v6 {
		head += FragmentLen
	}
	n := head + to - from
	if len(dst) < n {
		return 0
	}
	copy(dst, frame[s.l3:s.l4])
	if s.v6 {
		putFragment6(dst[:head], f, n)
	} else {
		putFragment4(dst[:head], f, n, k > 0)
	}
	copy(dst[head:n], frame[from:to])
	return n
}

// putFragment6 makes the IPv6 header that h begins with, and the 8 bytes behind it,
// those of a fragment of n bytes.
func putFragment6(h []byte, f packet.Fragment, n int) {
	binary.BigEndian.PutUint16(h[packet.IPv6PayloadLen:], uint16(n-packet.IPv6Len))
	w := uint32(h[packet.IPv6NextHeader])<<24 | uint32(f.Offset)
	if f.More {
		w |= 1
	}
	h[packet.IPv6NextHeader] = fragmentHeader6
	binary.BigEndian.PutUint32(h[packet.IPv6Len:], w)
	binary.BigEndian.PutUint32(h[packet.IPv6Len+4:], f.ID)
}

// putFragment4 makes the IPv4 header h that of a fragment of n bytes. Flags but MF
// stay. Its checksum is updated, not computed afresh: what was damaged stays so.
func putFragment4(h []byte, f packet.Fragment, n int, later bool) {
	var was [maxHeader4]byte
	copy(was[:], h)
	flags := binary.BigEndian.Uint16(h[packet.IPv4Frag:]) &^ (packet.IPv4MoreFragments | packet.IPv4OffsetMask)
	binary.BigEndian.PutUint16(h[packet.IPv4Frag:], flags|fragmentWord(f))
	binary.BigEndian.PutUint16(h[packet.IPv4TotalLen:], uint16(n))
	if later {
		uncopied(h[packet.IPv4MinLen:])
	}
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, packet.DiffBytes(was[:len(h)], h)))
}

// uncopied replaces the IPv4 options without the copied flag by NOPs.
func uncopied(o []byte) {
	const end, nop, copied = 0, 1, 0x80
	for len(o) > 0 && o[0] != end {
		n := 1
		if o[0] != nop {
			if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
				return
			}
			n = int(o[1])
		}
		if o[0]&copied == 0 {
			for i := range n {
				o[i] = nop
			}
		}
		o = o[n:]
	}
}

package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Readdress64 is Readdress for a flow of an IPv6 client to an IPv4 server, by RFC
// 7915 sections 4.1 and 5.1.1. In direction Forward it makes an IPv4 fragment of
// an IPv6 one, at the same place of the datagram, with identification id and
// without DF. In direction Reply it makes an IPv6 packet of an IPv4 fragment,
// without a fragment header yet: Split puts that in, as it does behind Reply64,
// and has to be told what p.Fragment said before. The caller has then seen to
// VerifyIPv4, as for Reply64.
//
// The frame is chunk[off:off+n]; for what is returned, and what becomes of p, see
// Forward64. It returns false, with nothing changed, if the packet is no later
// fragment of this flow, the flow is not one to be translated, or there is no
// space before the frame in its chunk.
func Readdress64(chunk []byte, off, n int, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir, dir *conntrack.Directory, id uint16) (newOff, newLen int, ok bool) {
	src, dst, _, ok := serverSide(e, dir)
	head, size, ether := packet.IPv6Len+FragmentLen, packet.IPv4MinLen, uint16(packet.EtherTypeIPv4)
	if d == conntrack.Reply {
		if int(e.Service) >= len(dir.Services) {
			return off, n, false
		}
		src, dst = dir.Services[e.Service].Addr, e.Client
		head, size, ether = packet.IPv4MinLen, packet.IPv6Len, packet.EtherTypeIPv6
	}
	grow := int(p.L3) + size - int(p.L4)
	if !ok || !translates(e) || p.V6 != (d == conntrack.Forward) || p.Kind != packet.KindFragment ||
		off < 0 || off > len(chunk) || n < int(p.End) || n > len(chunk)-off || !hasEthernet(p) ||
		int(p.L4) < int(p.L3)+head || p.End < p.L4 || grow > off || int(p.End)+grow > 0xffff {
		return off, n, false
	}
	l3, frame := int(p.L3), chunk[off:off+n]
	f := p.Fragment(frame)
	if f.Offset == 0 {
		return off, n, false
	}
	h := header64{src: src, dst: dst, proto: p.Proto, size: int(p.End) - int(p.L4), id: id, frag: fragmentWord(f)}
	if p.V6 {
		h.class, h.hops = class6(frame[l3:]), frame[l3+packet.IPv6HopLimit]-1
	} else {
		h.class, h.hops = frame[l3+packet.IPv4TOS], frame[l3+packet.IPv4TTL]-1
	}
	newOff = off + reheader(p, size)
	copy(chunk[newOff:newOff+l3], chunk[off:off+l3])
	frame = chunk[newOff:]
	binary.BigEndian.PutUint16(frame[l3-2:], ether)
	if p.V6 {
		h.put6(frame[l3:])
	} else {
		h.put4(frame[l3:])
	}
	return newOff, int(p.End), true
}

// fragmentWord is the word at packet.IPv4Frag of a fragment.
func fragmentWord(f packet.Fragment) uint16 {
	w := f.Offset >> 3
	if f.More {
		w |= packet.IPv4MoreFragments
	}
	return w
}

// Divisible reports whether p, a packet of flow e as received or as InsertTOA
// made it, may be fragmented on its way out: an IPv4 packet without DF (RFC 791),
// or an IPv6 one that Forward64 or Readdress64 will make such a packet of. p must
// be Parse's result for frame, or FirstFragment's.
func Divisible(frame []byte, p *packet.Packet, e *conntrack.Entry) bool {
	switch {
	case !p.V6:
		return !p.DontFragment(frame)
	case !translates(e):
		return false
	case p.Kind == packet.KindFragment:
		return true
	}
	return fragment4(frame, p, e)&packet.IPv4DontFragment == 0
}

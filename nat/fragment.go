package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Readdress is Forward, or with d Reply is Reply, for a fragment that has no
// transport header, KindFragment with another Offset than 0: both addresses and
// the TTL. The checksum that covers them is in the first fragment, which goes
// through Forward or Reply.
func Readdress(frame []byte, p *packet.Packet, e *conntrack.Entry, d conntrack.Dir, dir *conntrack.Directory) bool {
	src, dst, _, ok := serverSide(e, dir)
	v6, diff := conntrack.V6Server, e.AddrSum
	if d == conntrack.Reply {
		if int(e.Service) >= len(dir.Services) {
			return false
		}
		src, dst = dir.Services[e.Service].Addr, e.Client
		v6, diff = conntrack.V6Client, packet.Negate(diff)
	}
	return ok && p.V6 == (e.Flags&v6 != 0) && readdress(frame, p, src, dst, diff)
}

// RenewID gives a KindFragment packet, or any of IPv4, another identification, of
// which IPv4 has room for the low 16 bits: hosts that count theirs apart from each
// other must not meet in one reassembly queue when they share an address
// afterwards (RFC 791 section 3.2, RFC 6864 section 4.3, RFC 8200 section 4.5).
// All fragments of a datagram get the same. p is Parse's result for frame.
func RenewID(frame []byte, p *packet.Packet, id uint32) {
	if p.V6 {
		binary.BigEndian.PutUint32(frame[p.L4-4:], id) // the fragment header's last field
		return
	}
	h := frame[p.L3 : p.L3+packet.IPv4MinLen]
	was := binary.BigEndian.Uint16(h[packet.IPv4ID:])
	binary.BigEndian.PutUint16(h[packet.IPv4ID:], uint16(id))
	csum := binary.BigEndian.Uint16(h[packet.IPv4Checksum:])
	binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Apply(csum, packet.Diff16(was, uint16(id))))
}

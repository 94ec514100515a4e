package nat

import "github.com/l4fwd/l4fwd/packet"

// Shrink64 is by how many bytes an IPv6 packet without extension headers becomes
// shorter in Forward64, and an IPv4 packet without options longer in Reply64.
const Shrink64 = packet.IPv6Len - packet.IPv4MinLen

// Growth64 returns by how many bytes Forward64 (a negative number) or Reply64
// will change the length of p: before they are called, p.IPLen()+Growth64(p) is
// what to hold against the MTU of the way out, and that MTU less Growth64(p) is
// what to tell InsertTOA.
func Growth64(p *packet.Packet) int {
	if p.V6 {
		return packet.IPv4MinLen - (int(p.L4) - int(p.L3))
	}
	return packet.IPv6Len - (int(p.L4) - int(p.L3))
}

// PathMTU64 returns the length of the longest IPv6 packet that fits both next
// hops, the one towards the client in IPv6, of MTU mtu6, and the one towards the
// server once translated, of MTU mtu4: the part of the minimum in RFC 7915
// sections 4.2 and 5.2 that does not come out of the error.
func PathMTU64(mtu6, mtu4 int) int { return min(mtu6, mtu4+Shrink64) }

// MSSCut64 returns what LowerMSS must take off the MSS in an IPv4 server's SYN-ACK
// before it is shown to an IPv6 client. more is how many bytes l4fwd adds to the
// client's segments on top of translating them: TOALen, or 0.
//
// A server with MTU m announces m-40. A client that sends segments of s bytes
// sends packets of s+60, and the server gets s+40+more. Both must be at most m,
// the first because the two sides of l4fwd usually have one MTU, so that
// s <= m-40-max(20, more). The two do not add up: a packet that was short enough
// for IPv6 has become 20 bytes shorter where the 20 bytes of TOA are added. A
// client's MSS in its SYN needs no change: what it announces is its MTU less 60,
// and an IPv4 packet of that and 40 is its MTU once translated.
func MSSCut64(more uint16) uint16 { return max(Shrink64, more) }

// plateaus are the MTUs that RFC 1191 section 7 (table 7-1) thinks likely, as far
// as IPv6 has any use for them.
var plateaus = [...]int{65535, 32000, 17914, 8166, 4352, 2002, 1492}

// tooBig6 is the MTU of a "packet too big" made of "fragmentation needed" (RFC
// 7915 section 4.2). total is the total length of the packet that was too long, for
// routers that report no MTU; the plateau below it stands as it is. room is what
// l4fwd adds to such packets, path what PathMTU64 says, 0 if nobody knows.
func tooBig6(mtu, total, room, path int) int {
	if mtu != 0 {
		mtu += Shrink64 - room
	} else {
		for _, v := range plateaus {
			if v < total {
				mtu = v
				break
			}
		}
	}
	if path > 0 {
		mtu = min(mtu, path)
	}
	return max(mtu, minMTU6)
}

// tooBig4 is the MTU of a "fragmentation needed" made of "packet too big" (RFC
// 7915 section 5.2). headers is by how much the packet that was too long is shorter
// in IPv4.
func tooBig4(mtu uint32, headers, path int) int {
	v := int(min(mtu, 1<<16+64))
	if path > 0 {
		v = min(v, path)
	}
	return min(max(v-headers, minMTU4), 0xffff)
}

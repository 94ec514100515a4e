package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/packet"
)

// optUOA is the IPv4 option by which DPVS names the client of a UDP packet to real
// servers: type, length 8 or 20, port, address (its include/uoa.h; IANA has not
// assigned the number).
const optUOA = 31

// StripUOA overwrites every such option in the IPv4 header of p by NOPs and fixes
// the header's checksum incrementally: whatever arrives from a client is forged,
// and a server that listens to DPVS would believe it. It reports whether there
// was any. p is Parse's result for frame, which has refused options of impossible
// length; a packet of IPv6 has none.
func StripUOA(frame []byte, p *packet.Packet) (found bool) {
	if p.V6 || int(p.L4) > len(frame) || int(p.L4) < int(p.L3)+packet.IPv4MinLen {
		return false
	}
	h := frame[p.L3:p.L4]
	var diff uint16
	for at := packet.IPv4MinLen; at+1 < len(h) && h[at] != packet.OptEnd; {
		if h[at] == packet.OptNop { // this and the end are the same in IPv4 and TCP
			at++
			continue
		}
		next := at + int(h[at+1])
		if next < at+2 || next > len(h) {
			break
		}
		if h[at] == optUOA {
			diff = packet.AddDiff(diff, blank(h, 0, at, next))
			found = true
		}
		at = next
	}
	if found {
		csum := h[packet.IPv4Checksum : packet.IPv4Checksum+2]
		binary.BigEndian.PutUint16(csum, packet.Apply(binary.BigEndian.Uint16(csum), diff))
	}
	return found
}

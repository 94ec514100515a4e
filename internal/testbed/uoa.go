package testbed

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// UOA is what a real server learns of a datagram with UOA.
type UOA struct {
	Client netip.AddrPort
	Plain  []byte // the IP datagram as it is without, checksums of its header right
	Apart  bool   // nobody has sent it but l4fwd: the option list ends behind the option
}

// ReadUOA reads UOA in an IP datagram, in either of the forms that DPVS's include/uoa.h
// describes. It is written from that, and owes nothing to what puts UOA there.
func ReadUOA(d []byte) (u UOA, ok bool) {
	u.Plain = slices.Clone(d)
	head, proto, length := 40, 6, 4
	if d[0]>>4 == 4 {
		head, proto, length = int(d[0]&15)*4, 9, 2
	}
	var options []byte
	switch {
	case d[proto] == 248:
		n := int(binary.BigEndian.Uint16(d[head+2:]))
		if n < 12 || head+n+8 > len(d) || d[head+1] != 17 {
			return u, false
		}
		options = d[head+4 : head+n]
		// The lower half is reserved: whoever reads it passes over it.
		if version := map[byte]byte{8: 1, 20: 2}[options[1]]; d[head]>>4 != version {
			return u, false
		}
		u.Plain = slices.Delete(u.Plain, head, head+n)
		u.Plain[proto] = 17
		length16(u.Plain[length:], -n)
	case length == 2 && d[proto] == 17 && head > 20 && d[20] == 31:
		options = d[20:head]
		u.Plain = slices.Delete(u.Plain, 20, 28)
		u.Plain[0] -= 2
		length16(u.Plain[length:], -8)
	default:
		return u, false
	}
	if length == 2 {
		h := u.Plain[:int(u.Plain[0]&15)*4]
		clear(h[10:12])
		var sum uint32
		for i := 0; i < len(h); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(h[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum&0xffff))
	}
	n := int(options[1])
	if options[0] != 31 || n > len(options) || n != 8 && n != 20 {
		return u, false
	}
	a, _ := netip.AddrFromSlice(options[4:n])
	u.Client = netip.AddrPortFrom(a, binary.BigEndian.Uint16(options[2:]))
	u.Apart = slices.Equal(options[n:], []byte{0, 0, 0, 0})
	return u, true
}

func length16(b []byte, by int) {
	binary.BigEndian.PutUint16(b, uint16(int(binary.BigEndian.Uint16(b))+by))
}

package packet

import "encoding/binary"

// parsePlain6 is Parse for IPv6 without tag and extension headers, carrying TCP or
// UDP, and parseAny for all else. frame is long enough for Parse's short way.
//
//go:noinline
func parsePlain6(frame []byte, p *Packet) Err {
	const l4 = EthLen + IPv6Len
	if len(frame) < l4+UDPLen {
		return parseAny(frame, p)
	}
	b := frame[: l4+UDPLen : l4+UDPLen]
	end := l4 + uint(binary.BigEndian.Uint16(b[EthLen+IPv6PayloadLen:]))
	src := Addr{Hi: binary.BigEndian.Uint64(b[EthLen+IPv6Src:]), Lo: binary.BigEndian.Uint64(b[EthLen+IPv6Src+8:])}
	dst := Addr{Hi: binary.BigEndian.Uint64(b[EthLen+IPv6Dst:]), Lo: binary.BigEndian.Uint64(b[EthLen+IPv6Dst+8:])}
	// EtherType and version at once. All of what parse6 says of addresses, that
	// they are mapped, unspecified, loopback or multicast, needs no closer look
	// unless the first half is zero or begins with ff.
	if binary.LittleEndian.Uint32(b[EthType:])&0x00f0ffff != 0x60_dd_86 ||
		end > uint(len(frame)) || src.Hi == 0 || dst.Hi == 0 || src.Hi>>56 == 0xff || src == dst {
		return parseAny(frame, p)
	}
	switch b[EthLen+IPv6NextHeader] {
	case ProtoTCP:
		if end < l4+TCPMinLen {
			return parseAny(frame, p)
		}
		t := (*[TCPMinLen]byte)(frame[l4:])
		payload := l4 + uint(t[TCPOffset]>>2&0x3c)
		if payload < l4+TCPMinLen || payload > end {
			return parseAny(frame, p)
		}
		p.segment(t)
		p.Payload = uint16(payload)
	case ProtoUDP:
		n := uint(binary.BigEndian.Uint16(b[l4+UDPLength:]))
		if n < UDPLen || l4+n > end || binary.LittleEndian.Uint16(b[l4+UDPChecksum:]) == 0 {
			return parseAny(frame, p)
		}
		p.datagram()
		p.Payload = l4 + UDPLen
	default:
		return parseAny(frame, p)
	}
	p.Src, p.Dst = src, dst
	p.ports(binary.BigEndian.Uint32(b[l4:]))
	p.L3, p.L4, p.End = EthLen, l4, uint16(end)
	p.V6, p.Err, p.Inner4 = true, ErrNone, 0
	return ErrNone
}

package packet

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an IPv4 or IPv6 address as two big-endian words in host registers,
// so that it compares with == and hashes without a loop. IPv4 is held in its
// IPv4-mapped form ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2): the two families
// never compare equal. The zero value is "::" and stands for "none".
type Addr struct{ Hi, Lo uint64 }

const mappedPrefix = 0xffff << 32

// Addr4 returns the address whose four network-order bytes start at b[0].
func Addr4(b []byte) Addr {
	return Addr{Lo: mappedPrefix | uint64(binary.BigEndian.Uint32(b))}
}

// Addr16 returns the address whose sixteen network-order bytes start at b[0].
// It does not look for the IPv4-mapped form: such an address on the wire is
// not an IPv4 address (and Parse refuses it, see ErrMapped).
func Addr16(b []byte) Addr {
	_ = b[15]
	return Addr{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])}
}

// AddrFrom converts a netip.Addr; IPv4 and IPv4-mapped become the same Addr.
func AddrFrom(a netip.Addr) Addr {
	b := a.As16()
	return Addr16(b[:])
}

// Is4 reports whether a is an IPv4 address.
func (a Addr) Is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }

// IsZero reports whether a is the zero value, "none".
func (a Addr) IsZero() bool { return a == Addr{} }

// V4 returns the four bytes of an IPv4 address as one word in host order.
func (a Addr) V4() uint32 { return uint32(a.Lo) }

// Put4 writes the four bytes of an IPv4 address to b in network order.
func (a Addr) Put4(b []byte) { binary.BigEndian.PutUint32(b, uint32(a.Lo)) }

// Put16 writes the sixteen bytes of an IPv6 address to b in network order.
func (a Addr) Put16(b []byte) {
	_ = b[15]
	binary.BigEndian.PutUint64(b, a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
}

// Netip converts a to a netip.Addr, IPv4 unmapped.
func (a Addr) Netip() netip.Addr {
	var b [16]byte
	a.Put16(b[:])
	return netip.AddrFrom16(b).Unmap()
}

// String is the usual text form.
func (a Addr) String() string { return a.Netip().String() }

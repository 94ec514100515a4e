package testbed

import "net/netip"

// Family is an address family.
type Family int

// The families, with the numbers people call them by.
const (
	V4 Family = 4
	V6 Family = 6
)

// Families is both, for loops.
var Families = []Family{V4, V6}

// FamilyOf is the family of an address; IPv4-mapped counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return V4
	}
	return V6
}

// String is "v4" or "v6".
func (f Family) String() string {
	if f == V4 {
		return "v4"
	}
	return "v6"
}

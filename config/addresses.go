package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxLocalAddresses bounds what local_addresses may add up to: their ids are
// 16 bits wide.
const maxLocalAddresses = 65535

// parseAddr parses an address that a host can have and that can be routed to.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, errors.New("not an IP address")
	}
	return a, unfit(a)
}

// unfit says why an address cannot be a VIP, local address or backend.
func unfit(a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return errors.New("an address with a zone cannot be used")
	case a.Is4In6():
		return fmt.Errorf("an IPv4-mapped address cannot be used, write %v", a.Unmap())
	case a.IsUnspecified():
		return errors.New("the unspecified address cannot be used")
	case a.IsLoopback():
		return errors.New("a loopback address cannot be used")
	case a.IsMulticast():
		return errors.New("a multicast address cannot be used")
	case a.IsLinkLocalUnicast():
		return errors.New("a link-local address cannot be used")
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("the broadcast address cannot be used")
	case a.Is4() && a.As4()[0] == 0:
		return errors.New("an address of 0.0.0.0/8 cannot be used")
	}
	return nil
}

func parseAddrPort(s string) (netip.AddrPort, error) {
	fail := func(hint string) (netip.AddrPort, error) {
		return netip.AddrPort{}, expected(wantAddrPort, s, hint)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Is6() {
			return fail(fmt.Sprintf("IPv6 needs brackets and a port: [%v]:port", a))
		}
		return fail("the port is missing")
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return fail("")
	}
	host, portText := s[:i], s[i+1:]
	inner, ok := strings.CutPrefix(host, "[")
	if ok {
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return fail("")
		}
	}
	a, err := parseAddr(inner)
	switch {
	case err != nil:
		return fail(err.Error())
	case a.Is6() && !ok:
		return fail(fmt.Sprintf("IPv6 needs brackets: [%s]:%s", inner, portText))
	case a.Is4() && ok:
		return fail("brackets are for IPv6")
	}
	port, err := parseDecimal(portText, 65535)
	if err != nil || port == 0 {
		return fail("a port is a number from 1 to 65535")
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}

// parseAddrRange parses an address, or first-last of one family.
func parseAddrRange(s string) (LocalRange, error) {
	fail := func(hint string) (LocalRange, error) {
		return LocalRange{}, expected(wantRange, s, hint)
	}
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err := parseAddr(strings.TrimSpace(from))
	if err != nil {
		return fail(err.Error())
	}
	last, err := parseAddr(strings.TrimSpace(to))
	switch {
	case err != nil:
		return fail(err.Error())
	case first.Is4() != last.Is4():
		return fail("the two ends are of different families")
	case last.Less(first):
		return fail("it runs backwards")
	}
	r := LocalRange{First: first, Last: last}
	if r.Len() > maxLocalAddresses {
		return fail(fmt.Sprintf("it has more than %d addresses", maxLocalAddresses))
	}
	for a := first; a.Less(last); a = a.Next() {
		if err := unfit(a); err != nil {
			return fail(fmt.Sprintf("%v: %v", a, err))
		}
	}
	return r, nil
}

// Len returns how many addresses the range has, and maxLocalAddresses+1 if
// there are more than that many.
func (r LocalRange) Len() int {
	a, b := r.First.As16(), r.Last.As16()
	n, borrow := 0, 0
	for i := 15; i >= 0; i-- {
		d := int(b[i]) - int(a[i]) - borrow
		borrow = 0
		if d < 0 {
			d, borrow = d+256, 1
		}
		switch {
		case d == 0:
		case i < 13:
			return maxLocalAddresses + 1
		default:
			n += d << (8 * (15 - i))
		}
	}
	return min(n, maxLocalAddresses) + 1
}

// String returns the range as the configuration writes it, without the ports.
func (r LocalRange) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

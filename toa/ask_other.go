//go:build !linux

package toa

import "net/netip"

// ask has nobody to ask.
func ask(int) (netip.AddrPort, error) { return netip.AddrPort{}, ErrUnavailable }

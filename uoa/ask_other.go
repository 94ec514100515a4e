//go:build !linux

package uoa

import "net/netip"

// ask has nobody to ask.
func ask(int, netip.AddrPort) (netip.AddrPort, error) { return netip.AddrPort{}, ErrUnavailable }

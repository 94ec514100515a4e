package toa

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What rs/toa.c answers, with a struct sockaddr_in6: IPv4 mapped, family 0 if it
// does not know the client.
const (
	level     = 0x6c34
	optClient = 1
)

// ask asks the program for the client of a socket.
func ask(fd int) (netip.AddrPort, error) {
	// This one of x/sys takes any option into a struct that begins as the answer.
	a, err := unix.GetsockoptIPv6MTUInfo(fd, level, optClient)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		return netip.AddrPort{}, ErrUnavailable
	case err != nil:
		return netip.AddrPort{}, err
	case a.Addr.Family == unix.AF_UNSPEC:
		return netip.AddrPort{}, ErrUnknown
	}
	var port [2]byte // in network order
	binary.NativeEndian.PutUint16(port[:], a.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
}

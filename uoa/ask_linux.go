package uoa

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What rs/uoa.c is asked, with address (IPv4 mapped), port and a number, and answers, with
// a struct sockaddr_in6, family 0 if it does not know the client, and that number.
const (
	level       = 0x6c34
	optClientOf = 2
)

// attempts bounds how often another goroutine's question may come between.
const attempts = 100

var number atomic.Uint32

// ask asks the program for the client of a datagram.
func ask(fd int, from netip.AddrPort) (netip.AddrPort, error) {
	a := from.Addr().As16()
	question := binary.BigEndian.AppendUint16(a[:], from.Port())
	for range attempts {
		n := number.Add(1)
		q := binary.NativeEndian.AppendUint32(append(question[:len(question):len(question)], 0, 0), n)
		err := unix.SetsockoptString(fd, level, optClientOf, string(q))
		if err != nil {
			return netip.AddrPort{}, unavailable(err)
		}
		// This one of x/sys takes any option into a struct that is as the answer.
		is, err := unix.GetsockoptIPv6MTUInfo(fd, level, optClientOf)
		switch {
		case err != nil:
			return netip.AddrPort{}, unavailable(err)
		case is.Mtu != n:
			continue
		case is.Addr.Family == unix.AF_UNSPEC:
			return netip.AddrPort{}, ErrUnknown
		}
		var port [2]byte // in network order
		binary.NativeEndian.PutUint16(port[:], is.Addr.Port)
		return netip.AddrPortFrom(netip.AddrFrom16(is.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
	}
	return netip.AddrPort{}, ErrUnknown
}

// unavailable tells an option that nobody knows from other errors.
func unavailable(err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) {
		return ErrUnavailable
	}
	return err
}

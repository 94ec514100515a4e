package uoa

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// ErrUnavailable is no `l4fwd rs uoa --getsockopt` over this process' cgroup, or no UDP
// socket.
var ErrUnavailable = errors.New("uoa: nobody to ask for the client's address")

// ErrUnknown is a datagram of which no client is known: no balancer has sent it, or none
// that has named the client, or the address is the client's already.
var ErrUnknown = errors.New("uoa: the client's address is not known")

// Client returns the client of a datagram that was received by c from an address and port,
// an IPv4 address as such, not mapped. The error is ErrUnknown, ErrUnavailable, or that of
// a closed socket. It may be called from any number of goroutines.
func Client(c syscall.Conn, from netip.AddrPort) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("uoa: %w", err)
	}
	var client netip.AddrPort
	var asked error
	err = raw.Control(func(fd uintptr) { client, asked = ask(int(fd), from) })
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("uoa: %w", err)
	}
	return client, asked
}

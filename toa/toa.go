package toa

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// ErrUnavailable is no `l4fwd rs toa --getsockopt` over this process' cgroup, or no
// TCP connection.
var ErrUnavailable = errors.New("toa: nobody to ask for the client's address")

// ErrUnknown is a connection of which no client is known: no balancer has made it, or
// it has not named the client, or not yet.
var ErrUnknown = errors.New("toa: the client's address is not known")

// Client returns the client of an accepted connection, an IPv4 address as such, not
// mapped. The error is ErrUnknown, ErrUnavailable, or that of a closed connection.
func Client(c syscall.Conn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("toa: %w", err)
	}
	var client netip.AddrPort
	var asked error
	err = raw.Control(func(fd uintptr) { client, asked = ask(int(fd)) })
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("toa: %w", err)
	}
	return client, asked
}

// Listener accepts connections that know their clients.
type Listener struct{ net.Listener }

// NewListener wraps a TCP listener, which it owns from then on.
func NewListener(l net.Listener) *Listener { return &Listener{l} }

// Accept waits for the next connection, a *Conn; what is no *net.TCPConn is passed on
// as it is.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	return &Conn{TCPConn: tcp}, nil
}

// Conn is a TCP connection whose RemoteAddr is the client's.
type Conn struct {
	*net.TCPConn
	remote atomic.Pointer[net.TCPAddr] // nil until it is final
}

// RemoteAddr is the client's address. Until the client is known it is that of
// net.Conn, and asked for again each time.
func (c *Conn) RemoteAddr() net.Addr {
	if a := c.remote.Load(); a != nil {
		return a
	}
	client, err := Client(c.TCPConn)
	switch {
	case err == nil:
		a := net.TCPAddrFromAddrPort(client)
		c.remote.Store(a)
		return a
	case errors.Is(err, ErrUnavailable):
		if a, ok := c.TCPConn.RemoteAddr().(*net.TCPAddr); ok {
			c.remote.Store(a)
		}
	}
	return c.TCPConn.RemoteAddr()
}

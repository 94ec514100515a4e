package testbed

import (
	"context"
	"errors"
	"net"
	"time"
)

// Listen is net.Listen with a socket that lives in the namespace. Give an
// address literal, not a name.
func (ns *Namespace) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket with a socket that lives in the namespace.
func (ns *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := ns.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Dialer makes connections from within a namespace. The zero value of its
// net.Dialer is good; an address must be a literal.
type Dialer struct {
	net.Dialer
	ns *Namespace
}

// Dialer returns a dialer whose connections give up after timeout (0: never)
// and send no keep-alive probes.
func (ns *Namespace) Dialer(timeout time.Duration) *Dialer {
	return &Dialer{ns: ns, Dialer: net.Dialer{Timeout: timeout, KeepAlive: -1}}
}

var errNotLiteral = errors.New("testbed: dial wants an address literal: a name would be looked up outside the namespace")

// Dial connects; see DialContext.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext connects from within the namespace. It fits
// http.Transport.DialContext.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, errNotLiteral
	}
	var c net.Conn
	err = d.ns.Do(func() (err error) {
		c, err = d.Dialer.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

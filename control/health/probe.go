package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probe checks t once, and says what it found.
func (t *Target) probe(ctx context.Context) (string, error) {
	switch t.Check.Kind {
	case TCP:
		return t.probeTCP(ctx)
	case HTTP, HTTPS:
		return t.probeHTTP(ctx)
	case UDP:
		return t.probeUDP(ctx)
	case DNS:
		return t.probeDNS(ctx)
	case Ping:
		return t.probePing(ctx)
	case Exec:
		return t.probeExec(ctx)
	}
	return "", fmt.Errorf("no such check: %v", t.Check.Kind)
}

// dial is connect, ready to be used until ctx ends.
func (t *Target) dial(ctx context.Context, network string, echo uint16) (*conn, error) {
	c, err := t.connect(ctx, network, echo)
	if err != nil {
		return nil, err
	}
	return &conn{c, context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })}, nil
}

// connect connects a socket to what is probed. The network is tcp, udp or ping; echo is
// of the last.
func (t *Target) connect(ctx context.Context, network string, echo uint16) (net.Conn, error) {
	six := t.Address.Addr().Is6()
	to := t.Address.String()
	switch {
	case network != "ping" && six:
		network += "6"
	case network != "ping":
		network += "4"
	case six:
		network, to = "ip6:ipv6-icmp", t.Address.Addr().String()
	default:
		network, to = "ip4:icmp", t.Address.Addr().String()
	}
	d := net.Dialer{
		KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = t.prepare(network, int(fd), echo) })
			return errors.Join(err, failed)
		},
	}
	if t.Path == nil { // which binds the socket itself
		d.LocalAddr = localAddr(network, t.Check.Source)
	}
	// Not by DialTCP, which binds a socket even to no address, and so each to a port that
	// nobody else can have.
	return d.DialContext(ctx, network, to)
}

// conn is a connection whose reads and writes end with a context: at its deadline, or
// when the engine ends.
type conn struct {
	net.Conn
	stop func() bool // looking after the context
}

// Close also forgets the context.
func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// localAddr is where a dialer's socket shall be bound; nil for anywhere.
func localAddr(network string, a netip.Addr) net.Addr {
	switch {
	case !a.IsValid():
		return nil
	case strings.HasPrefix(network, "tcp"):
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	case strings.HasPrefix(network, "udp"):
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	}
	return &net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()}
}

// prepare sets the options of a socket before it is connected.
func (t *Target) prepare(network string, fd int, echo uint16) error {
	if network[0] == 't' {
		// Before it connects: of what times out nothing must be left either.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return os.NewSyscallError("SO_LINGER", err)
		}
		if t.Check.Kind != TCP {
			// What is asked comes at once, and acknowledges the SYN-ACK, too: a packet
			// less. Whoever only connects must say that it has.
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0); err != nil {
				return os.NewSyscallError("TCP_QUICKACK", err)
			}
		}
	}
	if err := filterEcho(network, fd); err != nil {
		return err
	}
	if t.Path != nil {
		return t.Path.Prepare(network, fd, echo)
	}
	return nil
}

func (t *Target) probeTCP(ctx context.Context) (string, error) {
	c, err := t.connect(ctx, "tcp", 0)
	if err != nil {
		return "", err
	}
	return "connected", c.Close()
}

// explain makes an error a reason in few words.
func explain(err error, timeout time.Duration) string {
	var number syscall.Errno
	var network interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("no answer within %v", timeout)
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("no answer within %v", timeout)
	}
	return printable(err.Error())
}

// maxReason is the longest reason in bytes: 10,000 backends have one each.
const maxReason = 200

// printable makes a text that may come from elsewhere fit for one line of a log.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}

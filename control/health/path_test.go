package health

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// path is a Path that notes what it is given.
type path struct {
	networks []string
	echo     uint16
	err      error
}

func (p *path) Prepare(network string, _ int, echo uint16) error {
	p.networks, p.echo = append(p.networks, network), echo
	return p.err
}

func TestPathIsGivenEverySocket(t *testing.T) {
	b := newBench(t)
	p := &path{}
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, c := range []Check{{Kind: TCP}, {Kind: UDP}, {Kind: Ping}} {
			c.Source = netip.MustParseAddr("192.0.2.9") // the path's matter
			target := &Target{Address: netip.AddrPortFrom(netip.MustParseAddr(host), 1), Check: &c, Path: p}
			b.do(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, _ = target.probe(ctx)
				return nil
			})
		}
	}
	if got, want := strings.Join(p.networks, " "), "tcp4 udp4 ip4:icmp tcp6 udp6 ip6:ipv6-icmp"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if p.echo == 0 {
		t.Error("a ping without an identifier")
	}
	p.err = errRefused
	b.do(func() error {
		_, err := (&Target{Address: netip.MustParseAddrPort("127.0.0.1:1"), Check: &Check{Kind: TCP}, Path: p}).probe(t.Context())
		if !errors.Is(err, errRefused) {
			t.Errorf("a path that failed: %v", err)
		}
		return nil
	})
}

// bound is a Path that binds sockets, as one may.
type bound struct{}

func (p bound) Prepare(network string, fd int, _ uint16) error {
	if strings.HasSuffix(network, "6") {
		return unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()})
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
}

func TestPathBindsSockets(t *testing.T) {
	b := newBench(t)
	for _, host := range hosts {
		tcp := b.serve(host, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		udp := b.answer(host, func(q []byte) []byte { return q })
		for c, to := range map[*Check]netip.AddrPort{{Kind: TCP}: tcp, {Kind: UDP, UDP: UDPCheck{Send: []byte("x"), Expect: []byte("x")}}: udp} {
			target := &Target{Address: to, Check: c, Path: bound{}}
			b.do(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err := target.probe(ctx)
				return err
			})
		}
	}
}

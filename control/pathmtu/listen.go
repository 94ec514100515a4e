package pathmtu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pause is how long a socket that gives errors is left alone.
const pause = 100 * time.Millisecond

// Listener hears errors until Close.
type Listener struct {
	conns []net.PacketConn
	done  sync.WaitGroup
}

// Listen opens raw sockets for both families in the calling thread's network
// namespace; it needs CAP_NET_RAW. told is called, by either of two goroutines, with
// what is said of the way to an end, again and again while it does not heed that.
func Listen(ends Ends, told func(Report)) (*Listener, error) {
	l := &Listener{}
	for _, f := range []struct {
		network string
		read    func([]byte) (Report, []byte, bool)
		filter  func(fd int) error
	}{{"ip4:icmp", Parse4, onlyUnreachable}, {"ip6:ipv6-icmp", Parse6, onlyTooBig}} {
		var failed error
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			err := c.Control(func(fd uintptr) { failed = f.filter(int(fd)) })
			return errors.Join(err, failed)
		}}
		c, err := lc.ListenPacket(context.Background(), f.network, "")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listening for ICMP errors: %w", err), l.Close())
		}
		l.conns = append(l.conns, c)
		l.done.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, _, err := c.ReadFrom(buf)
				switch {
				case errors.Is(err, net.ErrClosed):
					return
				case err != nil:
					time.Sleep(pause) // not for ever so
					continue
				}
				if r, rest, ok := f.read(buf[:n]); ok && ends.heed(&r, rest) {
					told(r)
				}
			}
		})
	}
	return l, nil
}

// Close ends it; nobody is told anything after that.
func (l *Listener) Close() error {
	var errs []error
	for _, c := range l.conns {
		errs = append(errs, c.Close())
	}
	l.done.Wait()
	return errors.Join(errs...)
}

// onlyUnreachable lets an ICMP socket have no other type (linux/icmp.h ICMP_FILTER: a
// set bit is a type that it does not get).
func onlyUnreachable(fd int) error {
	const icmpFilter = 1
	return unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^(1 << icmpUnreachable))
}

// onlyTooBig is the same for ICMPv6 (RFC 3542 section 3.2; Linux blocks by set bits).
func onlyTooBig(fd int) error {
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[0] &^= 1 << icmpv6TooBig
	return unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &f)
}

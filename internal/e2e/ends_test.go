package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Times of a session. Whoever waits for longer than sessionTime gives up.
const (
	sessionTime = 90 * time.Second
	giveUp      = 150 * time.Millisecond  // an abandoned connection
	lastChance  = 1500 * time.Millisecond // for the server, when the client is gone
	probeAfter  = 500 * time.Millisecond  // of silence, to learn of a lost RST
)

// transcript is what one end of a connection has seen of it.
type transcript struct {
	Open string // "" or why there was no connection
	Got  int    // bytes received, without those of an endure step
	// Wrong is the place of the first byte received that is not what was sent, if
	// there was one.
	Wrong   string
	End     string // "eof", "reset", "aborted", "closed", or what went wrong
	Options string // of TCP, as negotiated
}

// end is one end of a connection at work.
type end struct {
	which    int // 0 client, 1 server
	conn     *net.TCPConn
	deadline time.Time
	other    chan struct{} // the two ends meet here
	gone     <-chan struct{}

	sends, hears *rand.ChaCha8 // what is sent, and what should come
	got          int           // bytes
	out          transcript
}

func newEnd(which int, conn net.Conn, m *meeting) *end {
	var keys [2][32]byte
	for i := range keys {
		binary.LittleEndian.PutUint64(keys[i][:], m.script.seed)
		keys[i][8], keys[i][9] = byte(m.act), byte(i)
	}
	return &end{which: which, conn: conn.(*net.TCPConn), deadline: time.Now().Add(sessionTime), other: m.together, gone: m.gone[1-which],
		sends: rand.NewChaCha8(keys[which]), hears: rand.NewChaCha8(keys[1-which])}
}

// run takes the steps and returns what was seen. The connection is closed then.
func (e *end) run(steps []step) transcript {
	defer func() { _ = e.conn.Close() }()
	for _, s := range steps {
		if err := e.conn.SetDeadline(e.deadline); err != nil {
			e.out.End = err.Error()
			break
		}
		if err := e.take(s); err != nil {
			e.out.End = fmt.Sprintf("%s: %s", s, why(err))
			break
		}
	}
	return e.out
}

func (e *end) take(s step) error {
	if s.do == hangUp || s.do == abort || s.do == ignore {
		e.out.Options = optionsOf(e.conn)
	}
	switch s.do {
	case exchange:
		return e.exchange(s)
	case rest:
		time.Sleep(s.rest)
	case meet:
		return e.meet()
	case shut:
		return e.conn.CloseWrite()
	case hear:
		err := e.receive(1 << 30)
		e.out.Got = e.got
		if !errors.Is(err, io.EOF) {
			return err
		}
		e.out.End = "eof"
	case hangUp:
		if e.out.End == "" {
			e.out.End = "closed"
		}
		return e.conn.Close()
	case abort:
		e.out.End = "aborted"
		return errors.Join(e.conn.SetLinger(0), e.conn.Close())
	case ignore:
		e.out.End = "aborted"
		return errors.Join(e.pending(s.m), e.conn.Close())
	case endure:
		err := e.endure(s.n)
		e.out.Options = optionsOf(e.conn)
		return err
	}
	return nil
}

// exchange sends and receives at the same time.
func (e *end) exchange(s step) error {
	sent := make(chan error, 1)
	go func() { sent <- e.send(s.n) }()
	err := e.receive(s.m)
	e.out.Got = e.got
	if err != nil {
		_ = e.conn.SetWriteDeadline(time.Now())
	}
	return errors.Join(err, <-sent)
}

func (e *end) send(n int) error {
	buf := make([]byte, min(n, 32<<10))
	for n > 0 {
		b := buf[:min(n, len(buf))]
		_, _ = e.sends.Read(b) // never fails
		if _, err := e.conn.Write(b); err != nil {
			return err
		}
		n -= len(b)
	}
	return nil
}

// receive reads n bytes and compares them with what was sent.
func (e *end) receive(n int) error {
	buf, want := make([]byte, min(n, 32<<10)), make([]byte, min(n, 32<<10))
	for n > 0 {
		k, err := e.conn.Read(buf[:min(n, len(buf))])
		_, _ = e.hears.Read(want[:k]) // never fails
		for i := range k {
			if buf[i] != want[i] && e.out.Wrong == "" {
				e.out.Wrong = fmt.Sprintf("byte %d is %#x, want %#x", e.got+i, buf[i], want[i])
			}
		}
		e.got += k
		n -= k
		if err != nil {
			return err
		}
	}
	return nil
}

// meet waits until the other end waits, too.
func (e *end) meet() error {
	send, receive := e.other, e.other
	if e.which == 0 {
		receive = nil
	} else {
		send = nil
	}
	select {
	case send <- struct{}{}:
	case <-receive:
	case <-e.gone:
		return errors.New("the other end is gone")
	case <-time.After(time.Until(e.deadline)):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// pending waits until so many bytes can be read.
func (e *end) pending(n int) error {
	raw, err := e.conn.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var k int
		var got error
		err := raw.Control(func(fd uintptr) { k, got = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		switch {
		case err != nil || got != nil:
			return errors.Join(err, got)
		case k >= n:
			return nil
		case time.Now().After(e.deadline):
			return os.ErrDeadlineExceeded
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// endure goes on until the connection is reset. The RST may be lost, so an end
// that hears nothing says something.
func (e *end) endure(n int) error {
	sent := make(chan struct{})
	go func() { _ = e.send(n); close(sent) }() // it will fail, or fit somewhere
	defer func() { _ = e.conn.SetWriteDeadline(time.Now()); <-sent }()
	for {
		if time.Now().After(e.deadline) {
			return os.ErrDeadlineExceeded
		}
		_ = e.conn.SetReadDeadline(time.Now().Add(probeAfter)) // the read would tell
		err := e.receive(1 << 30)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
			if errors.Is(err, io.EOF) {
				time.Sleep(probeAfter / 10)
			}
			select {
			case <-sent:
				_, err = e.conn.Write([]byte{0}) // never read
			default: // something is on its way already
				continue
			}
		}
		if err != nil {
			// With Fast Open the end may come before the SYN-ACK.
			if e.out.End = why(err); e.out.End == "refused" {
				e.out.End = "reset"
			}
			if e.out.End != "reset" {
				return err
			}
			return nil
		}
	}
}

// why sorts errors.
func why(err error) string {
	switch {
	case errors.Is(err, io.EOF):
		return "eof"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	var late net.Error // the context's is one, too
	if errors.As(err, &late) && late.Timeout() {
		return "timeout"
	}
	return err.Error()
}

// Bits of tcpi_options (linux/tcp.h).
var tcpOptions = []struct {
	bit  uint8
	name string
}{{1, "timestamps"}, {2, "sack"}, {4, "scale"}, {8, "ecn"}, {32, "syn-data"}}

// optionsOf is what the two ends have agreed on.
func optionsOf(c *net.TCPConn) (out string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			out = err.Error()
			return
		}
		for _, o := range tcpOptions {
			if info.Options&o.bit != 0 {
				out += o.name + " "
			}
		}
	})
	if err != nil {
		return err.Error()
	}
	return out
}

// socket sets up an end's socket before it connects or listens.
func (s script) socket(end int, port *netip.AddrPort) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		set := func(fd, level, name, value int) {
			if err == nil {
				err = unix.SetsockoptInt(fd, level, name, value)
			}
		}
		control := c.Control(func(raw uintptr) {
			fd := int(raw)
			set(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if s.buffers[end] > 0 {
				set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, s.buffers[end])
			}
			if s.keepAlive {
				set(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
				set(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
				set(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1)
			}
			fast := s.open == fastOpen || s.open == noCookie
			if s.open == noCookie {
				set(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1)
			}
			if fast && end == 0 && port == nil {
				set(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			}
			if fast && end == 1 {
				set(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 64)
			}
		})
		return errors.Join(control, err)
	}
}

// dial opens the client's end, from an address used before if there is one.
func (s script) dial(ns *testbed.Namespace, to netip.AddrPort, from *netip.AddrPort) (net.Conn, error) {
	d := ns.Dialer(sessionTime)
	d.Control = s.socket(0, from)
	if from != nil {
		d.LocalAddr = net.TCPAddrFromAddrPort(*from)
	}
	ctx := context.Background()
	if s.open == abandoned {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, giveUp)
		defer cancel()
	}
	deadline := time.Now().Add(sessionTime)
	for {
		c, err := d.DialContext(ctx, "tcp", to.String())
		// The kernel lets go of the former connection's end in its own time.
		busy := errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EADDRINUSE)
		if !busy || from == nil || time.Now().After(deadline) {
			return c, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// listen opens the server's end.
func (s script) listen(ns *testbed.Namespace, at netip.AddrPort) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: s.socket(1, nil), KeepAlive: -1}
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = config.Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

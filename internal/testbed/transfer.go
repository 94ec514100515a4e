package testbed

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// An exchange: the client begins with the line "<up> <down> <seed>\n"; then both
// sides send their bytes at the same time; then the server sends the SHA-256 of
// what it got and of what it sent. A connection may carry many, one after the
// other.

// maxHeader bounds the first line of a transfer.
const maxHeader = 128

func (s *Server) serveTransfers(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if !s.track(c) {
			_ = c.Close()
			return
		}
		s.wg.Go(func() {
			defer s.untrack(c)
			r := bufio.NewReaderSize(c, 1<<17)
			// The client reports what went wrong, it sees more of it.
			for s.serveExchange(c, r) == nil {
			}
		})
	}
}

func (s *Server) serveExchange(c net.Conn, r *bufio.Reader) error {
	line, err := r.ReadSlice('\n')
	if err != nil || len(line) > maxHeader {
		return fmt.Errorf("transfer header: %w", err)
	}
	var up, down int64
	var seed uint64
	if _, err := fmt.Sscanf(string(line), "%d %d %d\n", &up, &down, &seed); err != nil {
		return fmt.Errorf("transfer header: %w", err)
	}
	s.transfers.Add(1)
	if peer, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		s.met(peer)
	}
	sent := make(chan sum, 1)
	go func() { sent <- sendRandom(c, down, seed) }()
	got := sha256.New()
	n, err := io.CopyN(got, r, up)
	s.bytesIn.Add(uint64(n))
	if err != nil {
		_ = c.Close() // stops the sender
	}
	out := <-sent
	s.bytesOut.Add(uint64(out.n))
	if err := errors.Join(err, out.err); err != nil {
		return err
	}
	_, err = c.Write(append(got.Sum(nil), out.hash[:]...))
	return err
}

// sum is what one direction carried.
type sum struct {
	n    int64
	hash [sha256.Size]byte
	err  error
}

// sendRandom sends n pseudo-random bytes and returns their hash.
func sendRandom(w io.Writer, n int64, seed uint64) sum {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	src := rand.NewChaCha8(key)
	h := sha256.New()
	buf := make([]byte, 1<<17)
	var out sum
	for out.n < n && out.err == nil {
		b := buf[:min(int64(len(buf)), n-out.n)]
		_, _ = src.Read(b) // never fails
		h.Write(b)
		var wrote int
		wrote, out.err = w.Write(b)
		out.n += int64(wrote)
	}
	h.Sum(out.hash[:0])
	return out
}

// Transfer sends and receives pseudo-random bytes over one TCP connection.
type Transfer struct {
	To       netip.AddrPort
	Up, Down int64         // bytes client to server, server to client
	Seed     uint64        // of both streams
	Timeout  time.Duration // of everything; 0 = 5 minutes
}

// TransferResult is a finished transfer: both hashes were right.
type TransferResult struct {
	Duration time.Duration
	Client   netip.AddrPort // the client's own address
}

// Run makes the transfer from a namespace. Both sides hash what they sent and
// what they got; any difference is an error.
func (t Transfer) Run(ctx context.Context, ns *Namespace) (TransferResult, error) {
	if t.Timeout == 0 {
		t.Timeout = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	c, err := ns.Dialer(0).DialContext(ctx, "tcp", t.To.String())
	if err != nil {
		return TransferResult{}, fmt.Errorf("transfer: %w", err)
	}
	defer func() { _ = c.Close() }()
	// A done context closes the connection, which ends both directions.
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	start := time.Now()
	if err := t.exchange(c); err != nil {
		return TransferResult{}, fmt.Errorf("transfer from %s to %s after %s: %w",
			c.LocalAddr(), t.To, time.Since(start).Round(time.Millisecond), errors.Join(err, ctx.Err()))
	}
	self, err := netip.ParseAddrPort(c.LocalAddr().String())
	return TransferResult{Duration: time.Since(start), Client: plain(self)}, err
}

func (t Transfer) exchange(c net.Conn) error {
	if _, err := fmt.Fprintf(c, "%d %d %d\n", t.Up, t.Down, t.Seed); err != nil {
		return fmt.Errorf("send header: %w", err)
	}
	sent := make(chan sum, 1)
	go func() { sent <- sendRandom(c, t.Up, ^t.Seed) }()
	got := sha256.New()
	n, err := io.CopyN(got, c, t.Down)
	if err != nil {
		_ = c.Close() // stops the sender
		out := <-sent
		return fmt.Errorf("received %d of %d bytes, sent %d of %d: %w", n, t.Down, out.n, t.Up, errors.Join(err, out.err))
	}
	out := <-sent
	if out.err != nil {
		return fmt.Errorf("sent %d of %d bytes: %w", out.n, t.Up, out.err)
	}
	var theirs [2][sha256.Size]byte // of what they got, of what they sent
	for i := range theirs {
		if _, err := io.ReadFull(c, theirs[i][:]); err != nil {
			return fmt.Errorf("receive hashes: %w", err)
		}
	}
	if theirs[0] != out.hash {
		return fmt.Errorf("client to server: sent %x, server got %x", out.hash, theirs[0])
	}
	if mine := [sha256.Size]byte(got.Sum(nil)); theirs[1] != mine {
		return fmt.Errorf("server to client: sent %x, client got %x", theirs[1], mine)
	}
	return nil
}

// Conns are TCP connections to a Server's PortHash that stay open, idle between
// exchanges: the sessions that a restart in between must not hurt. Close them.
type Conns struct {
	to   netip.AddrPort
	all  []net.Conn
	seed uint64
}

// OpenConns opens n connections from the namespace, all or none.
func (ns *Namespace) OpenConns(ctx context.Context, to netip.AddrPort, n int) (*Conns, error) {
	cs := &Conns{to: to}
	d := ns.Dialer(0)
	for range n {
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connection %d to %s: %w", len(cs.all), to, err), cs.Close())
		}
		cs.all = append(cs.all, c)
	}
	return cs, nil
}

// Exchange sends and receives so many bytes over every connection, all at the
// same time, and verifies the hashes. Each failed connection is an error of its
// own in the joined one.
func (cs *Conns) Exchange(up, down int64, timeout time.Duration) error {
	cs.seed++
	errs := make([]error, len(cs.all))
	var wg sync.WaitGroup
	for i, c := range cs.all {
		wg.Go(func() {
			err := c.SetDeadline(time.Now().Add(timeout))
			if err == nil {
				err = Transfer{To: cs.to, Up: up, Down: down, Seed: cs.seed<<16 + uint64(i)}.exchange(c)
			}
			if err != nil {
				errs[i] = fmt.Errorf("connection %d, %s to %s: %w", i, c.LocalAddr(), cs.to, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Locals are the client's addresses and ports of the connections.
func (cs *Conns) Locals() []netip.AddrPort {
	out := make([]netip.AddrPort, len(cs.all))
	for i, c := range cs.all {
		out[i] = plain(c.LocalAddr().(*net.TCPAddr).AddrPort())
	}
	return out
}

// Close closes the connections.
func (cs *Conns) Close() error {
	var errs []error
	for _, c := range cs.all {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

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
	"time"
)

// A transfer is one TCP connection. The client begins with the line
// "<up> <down> <seed>\n"; then both sides send their bytes at the same time;
// then the server sends the SHA-256 of what it got and of what it sent.

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
			// The client reports what went wrong, it sees more of it.
			_ = s.serveTransfer(c)
		})
	}
}

func (s *Server) serveTransfer(c net.Conn) error {
	r := bufio.NewReaderSize(c, 1<<17)
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

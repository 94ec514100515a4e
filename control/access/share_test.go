package access

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// shares is a Share that is dialled from several addresses.
type shares struct {
	t   *testing.T
	l   net.Listener
	got chan net.Conn
}

func share(t *testing.T, all, each int) *shares {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &shares{t, Share(l, all, each), make(chan net.Conn, 10)}
	t.Cleanup(func() { _ = s.l.Close() })
	go func() {
		for {
			c, err := s.l.Accept()
			if err != nil {
				return
			}
			s.got <- c
		}
	}()
	return s
}

// dial opens a connection that is not waited for.
func (s *shares) dial(from string) net.Conn {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(s.t.Context(), "tcp", s.l.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// open opens one that must be accepted, and returns both of its ends.
func (s *shares) open(from string) (there, here net.Conn) {
	s.t.Helper()
	there = s.dial(from)
	return there, <-s.got
}

func (s *shares) closed(c net.Conn) {
	s.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("not closed: %d, %v", n, err)
	}
}

// TestShare: who has opened as many as he may gets no more until he closes one, and
// others get theirs.
func TestShare(t *testing.T) {
	s := share(t, 10, 2)
	_, first := s.open("127.0.0.2")
	_, second := s.open("127.0.0.2")
	s.closed(s.dial("127.0.0.2"))
	_, other := s.open("127.0.0.3")
	for range 2 { // once counts
		_ = first.Close()
	}
	_, third := s.open("127.0.0.2")
	s.closed(s.dial("127.0.0.2"))
	for _, c := range []net.Conn{second, other, third} {
		_ = c.Close()
	}
	if left := s.l.(*sharing); len(left.open)+len(left.has) != 0 {
		t.Errorf("%d and %d are remembered who have nothing open", len(left.open), len(left.has))
	}
}

// TestShareFull: where there is no place left the oldest of whoever has most goes, unless
// it is kept; if all are, who comes does.
func TestShareFull(t *testing.T) {
	s := share(t, 4, 3)
	lone, _ := s.open("127.0.0.2")
	kept, here := s.open("127.0.0.3")
	Keep(tls.Server(here, nil))
	second, _ := s.open("127.0.0.3")
	third, hereThird := s.open("127.0.0.3")

	_, hereFourth := s.open("127.0.0.4")
	s.closed(second)
	_, hereFifth := s.open("127.0.0.5") // all have one that is not kept: the oldest
	s.closed(lone)
	_, hereSixth := s.open("127.0.0.5")
	s.closed(third)

	for _, c := range []net.Conn{hereFourth, hereFifth, hereSixth} {
		Keep(c)
	}
	s.closed(s.dial("127.0.0.6"))
	_ = hereThird.Close() // it has made room before
	s.closed(s.dial("127.0.0.6"))
	_ = here.Close()
	s.closed(kept)
	s.open("127.0.0.6")
}

func TestPlaceOf(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1",
		"[2001:db8::1:2:3:4]:80": "2001:db8::", "[fe80::1%eth0]:80": "fe80::", "": "invalid IP",
	} {
		if got := placeOf(from).String(); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

package access

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// TestShare: who has opened as many as he may gets no more until he closes one, and
// others get theirs.
func TestShare(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	share := Share(l, 2)
	t.Cleanup(func() { _ = share.Close() })
	got := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := share.Accept()
			if err != nil {
				return
			}
			got <- c
		}
	}()
	open := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	refused := func(c net.Conn) {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("not closed: %d, %v", n, err)
		}
	}
	open("127.0.0.2")
	open("127.0.0.2")
	first, second := <-got, <-got
	refused(open("127.0.0.2"))
	open("127.0.0.3")
	other := <-got
	for range 2 { // once counts
		_ = first.Close()
	}
	open("127.0.0.2")
	third := <-got
	refused(open("127.0.0.2"))
	for _, c := range []net.Conn{second, other, third} {
		_ = c.Close()
	}
	if n := len(share.(*sharing).open); n != 0 {
		t.Errorf("%d are remembered who have nothing open", n)
	}
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

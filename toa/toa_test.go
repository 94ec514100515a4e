package toa

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// pair is a connection, the end of the listener first.
func pair(t *testing.T, l net.Listener) (accepted, dialed net.Conn) {
	t.Helper()
	dialed, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(accepted.Close(), dialed.Close()); err != nil {
			t.Error(err)
		}
	})
	return accepted, dialed
}

func listen(t *testing.T, network, address string) *Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	w := NewListener(l)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// TestAlone: where nobody answers, connections say what they say without the package.
// What they say with it is in the tests of package rs, which makes the answers.
func TestAlone(t *testing.T) {
	accepted, dialed := pair(t, listen(t, "tcp", "127.0.0.1:0"))
	if got, want := accepted.RemoteAddr().String(), dialed.LocalAddr().String(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	c := accepted.(*Conn)
	if a, err := Client(c.TCPConn); !errors.Is(err, ErrUnavailable) || a.IsValid() {
		t.Errorf("%s %v", a, err)
	}
	// It is not asked for again.
	if n := testing.AllocsPerRun(10, func() { _ = c.RemoteAddr() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestClosed: the error says so.
func TestClosed(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := dialed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Client(dialed.(*net.TCPConn)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestOtherNetworks: what is no TCP is handed on as it is.
func TestOtherNetworks(t *testing.T) {
	accepted, _ := pair(t, listen(t, "unix", filepath.Join(t.TempDir(), "s")))
	if _, wrapped := accepted.(*Conn); wrapped {
		t.Error("a Unix socket was wrapped")
	}
	if _, err := Client(accepted.(*net.UnixConn)); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

package uoa

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// TestAlone: where nobody answers, nobody is named. What it is like with answers is in the
// tests of package rs, which makes them.
func TestAlone(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		u := c.(*net.UDPConn)
		if a, err := Client(u, netip.MustParseAddrPort("10.0.1.10:20001")); !errors.Is(err, ErrUnavailable) || a.IsValid() {
			t.Errorf("%s: %v, %v", address, a, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Client(u, netip.MustParseAddrPort("10.0.1.10:20001")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ICMP protocol numbers (IANA), as icmp.ParseMessage wants them.
const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// Ping sends one echo request with size bytes of data from the namespace and
// waits for the right reply from the very address asked.
func (ns *Namespace) Ping(to netip.Addr, size int, timeout time.Duration) (time.Duration, error) {
	network, wild, proto := "ip4:icmp", "0.0.0.0", protoICMP
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if FamilyOf(to) == V6 {
		network, wild, proto = "ip6:ipv6-icmp", "::", protoICMPv6
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	err := ns.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, wild)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	defer func() { _ = c.Close() }()
	body := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(time.Now().UnixNano() & 0xffff), Data: bytes.Repeat([]byte{'l'}, size)}
	out, err := (&icmp.Message{Type: request, Body: body}).Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	start := time.Now()
	// The time runs from when the request has left: else a stall would keep it here.
	if err := errors.Join(writeTo(c, out, to), c.SetReadDeadline(time.Now().Add(timeout))); err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	in := make([]byte, size+512)
	for {
		n, from, err := c.ReadFrom(in)
		if err != nil {
			return 0, fmt.Errorf("ping %s: %w", to, err)
		}
		m, err := icmp.ParseMessage(proto, in[:n])
		if err != nil || m.Type != reply {
			continue // a raw socket sees all ICMP
		}
		e, ok := m.Body.(*icmp.Echo)
		if ok && from.String() == to.String() && e.ID == body.ID && e.Seq == body.Seq && bytes.Equal(e.Data, body.Data) {
			return time.Since(start), nil
		}
	}
}

func writeTo(c *icmp.PacketConn, b []byte, to netip.Addr) error {
	_, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()})
	return err
}

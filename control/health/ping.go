package health

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// echoes gives the checks that run at a time different identifiers: all sockets of
// the host see every answer from an address they are connected to.
var echoes atomic.Uint32

// probePing sends an echo request by a raw socket. Those for everybody
// (net.ipv4.ping_group_range) are allowed to nobody by default, root included.
func (t *Target) probePing(ctx context.Context) (string, error) {
	id := uint16(echoes.Add(1))
	c, err := t.dial(ctx, "ping", id)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // nothing is lost with it
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return "", fmt.Errorf("random numbers: %w", err)
	}
	six, seq := t.Address.Addr().Is6(), binary.BigEndian.Uint16(nonce[:])
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(id), Seq: int(seq), Data: nonce[:]}}
	want := icmp.Type(ipv4.ICMPTypeEchoReply)
	if six {
		m.Type, want = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	request, err := m.Marshal(nil) // of ICMPv6 the kernel makes the checksum (RFC 3542 section 3.1)
	if err != nil {
		return "", fmt.Errorf("echo request: %w", err)
	}
	if _, err := c.Write(request); err != nil {
		return "", err
	}
	ip, ok := c.Conn.(*net.IPConn)
	if !ok {
		return "", errors.New("no raw socket")
	}
	answer := make([]byte, 2048)
	for {
		n, _, err := ip.ReadFromIP(answer) // without the IPv4 header, unlike Read
		if err != nil {
			return "", err
		}
		got, err := icmp.ParseMessage(want.Protocol(), answer[:n])
		if err != nil || got.Type != want {
			continue
		}
		if e, ok := got.Body.(*icmp.Echo); ok && e.ID == int(id) && e.Seq == int(seq) && string(e.Data) == string(nonce[:]) {
			return "echo reply", nil
		}
	}
}

// icmpFilter is ICMP_FILTER of linux/icmp.h, which x/sys does not have.
const icmpFilter = 1

// filterEcho keeps all but echo replies from a raw socket; of errors the kernel
// tells a connected one by errno.
func filterEcho(network string, fd int) error {
	switch {
	case strings.HasPrefix(network, "ip4"):
		mask := ^uint32(1 << ipv4.ICMPTypeEchoReply)
		return os.NewSyscallError("ICMP_FILTER", unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, int(int32(mask))))
	case strings.HasPrefix(network, "ip6"):
		var f ipv6.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv6.ICMPTypeEchoReply)
		return os.NewSyscallError("ICMPV6_FILTER", unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &unix.ICMPv6Filter{Data: f.Data}))
	}
	return nil
}

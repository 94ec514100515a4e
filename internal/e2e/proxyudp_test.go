package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestProxyUDP: a server reads who its clients are from the first datagram of each,
// by HAProxy's specification, and only that one has the header.
func TestProxyUDP(t *testing.T) {
	const port, clients = 9700, 20
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 1, Queues: 2})
	rows := []struct {
		name           string
		client, server testbed.Family
		vip            int
	}{{"v4", testbed.V4, testbed.V4, 0}, {"v6", testbed.V6, testbed.V6, 0}, {"nat64", testbed.V6, testbed.V4, 1}}
	var services []testbed.Service
	for _, row := range rows {
		services = append(services, testbed.Service{Name: row.name, Family: row.server, Address: top.VIP(row.client, row.vip),
			Port: port, BackendPort: port, Protocol: "udp", Mode: fullNAT, ClientAddress: "proxy-v2"})
	}
	for _, f := range testbed.Families {
		c, err := top.Servers[0].ListenPacket("udp", netip.AddrPortFrom(top.ServerAddr(f, 0), port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		go tellWho(c)
	}
	d := program{args: []string{"--workers", "2"}}.start(t, top.LB, top.Config(services))
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			vip := netip.AddrPortFrom(top.VIP(row.client, row.vip), port)
			for i := range clients {
				c, err := top.Client.Dialer(limit).Dial("udp", vip.String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				want := fmt.Sprintf("from %s to %s, ", c.LocalAddr(), vip)
				// The first may be lost before neighbours know each other; then the header
				// goes with the next.
				for n := range 3 {
					said := fmt.Sprintf("%d", n)
					if got := ask(t, c, said); got != want+said {
						t.Fatalf("client %d, datagram %d: the server says %q, want %q", i, n, got, want+said)
					}
				}
			}
		})
	}
	d.stop()
}

// ask sends a datagram until there is an answer to it, which ends in what was said: one to
// an earlier datagram, sent twice since the first answer took long, may come before.
func ask(t *testing.T, c net.Conn, say string) string {
	t.Helper()
	b := make([]byte, 2000)
	for range 20 {
		if _, err := c.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			if got := string(b[:n]); strings.HasSuffix(got, say) {
				return got
			}
		}
	}
	t.Fatal("no answer")
	return ""
}

// tellWho answers each datagram by what the last PROXY header from its sender said,
// and by what it says itself.
func tellWho(c net.PacketConn) {
	who := map[string]string{}
	b := make([]byte, 2000)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		data := b[:n]
		if rest, ok := bytes.CutPrefix(data, []byte("\r\n\r\n\x00\r\nQUIT\n\x21")); ok && len(rest) > 3 {
			size := map[byte]int{0x12: 4, 0x22: 16}[rest[0]]
			length := int(binary.BigEndian.Uint16(rest[1:]))
			if a := rest[3:]; size > 0 && length == 2*size+4 && len(a) >= length {
				src, _ := netip.AddrFromSlice(a[:size])
				dst, _ := netip.AddrFromSlice(a[size : 2*size])
				who[from.String()] = fmt.Sprintf("from %s to %s, ",
					netip.AddrPortFrom(src, binary.BigEndian.Uint16(a[2*size:])), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(a[2*size+2:])))
				data = a[length:]
			}
		}
		_, _ = c.WriteTo(append([]byte(who[from.String()]), data...), from)
	}
}

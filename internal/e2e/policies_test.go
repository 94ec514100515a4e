package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestPoliciesOfRewriting asks real kernels what came of mss_clamp and of
// decrement_ttl: false.
func TestPoliciesOfRewriting(t *testing.T) {
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 1})
	const port, segment = 9500, 1200
	service := func(name string, client, server testbed.Family, vip int, mode, toa string) testbed.Service {
		return testbed.Service{Name: name, Family: server, Address: top.VIP(client, vip), Port: port, BackendPort: port,
			Protocol: "tcp", Mode: mode, ClientAddress: toa, Extra: "mss_clamp: 1200"}
	}
	rows := []struct {
		service testbed.Service
		client  testbed.Family
		cut     uint32 // off the client's segments
		stamps  uint32 // off both sides', where timestamps stay
	}{
		{service("toa4", testbed.V4, testbed.V4, 0, fullNAT, "toa"), testbed.V4, 8, 0},
		{service("toa6", testbed.V6, testbed.V6, 0, fullNAT, "toa"), testbed.V6, 20, 0},
		{service("nat64", testbed.V6, testbed.V4, 1, fullNAT, "toa"), testbed.V6, 20, 0},
		{service("dnat4", testbed.V4, testbed.V4, 2, dnat, ""), testbed.V4, 0, 12},
		{service("dnat6", testbed.V6, testbed.V6, 2, dnat, ""), testbed.V6, 0, 12},
	}
	var services []testbed.Service
	for _, row := range rows {
		services = append(services, row.service)
	}
	var mu sync.Mutex
	arrived := map[uint8]int{} // packets from l4fwd by TTL
	sniff(t, top.Servers[0], "s0", testbed.SnifferOptions{Direction: testbed.Incoming, Watch: func(frame []byte, _ bool) {
		if len(frame) < ethernet {
			return
		}
		if d, ok := datagramOf(frame[ethernet:]); ok && d.proto == protoTCP && d.dst.Port() == port {
			mu.Lock()
			defer mu.Unlock()
			arrived[ttlOf(frame[ethernet:])]++
		}
	}})
	accepted := make(chan uint32, 1)
	for _, f := range testbed.Families {
		l, err := top.Servers[0].Listen("tcp", netip.AddrPortFrom(top.ServerAddr(f, 0), port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- segmentOf(t, c)
				_ = c.Close()
			}
		}()
	}
	d := program{args: []string{"--workers", "1"}}.start(t, top.LB, top.Config(services, "decrement_ttl: false"))
	r := &rig{Topology: top, t: t}
	for _, f := range testbed.Families {
		for ns, to := range map[*testbed.Namespace]netip.Addr{top.Client: r.gateway(f), top.Servers[0]: top.LBServer.Addr(f)} {
			if _, err := ns.Ping(to, 56, limit); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := d.stats()
	for i, row := range rows {
		t.Run(row.service.Name, func(t *testing.T) {
			to := netip.AddrPortFrom(row.service.Address, port)
			c, err := top.Client.Dialer(limit).Dial("tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if got, want := segmentOf(t, c), segment-row.cut-row.stamps; got != want {
				t.Errorf("the client sends segments of %d bytes, want %d", got, want)
			}
			if got, want := <-accepted, uint32(segment)-row.stamps; got != want {
				t.Errorf("the server sends segments of %d bytes, want %d", got, want)
			}
			// A TTL of 1 is enough: l4fwd is no hop.
			self := netip.AddrPortFrom(top.ClientAddr(row.client, 0), uint16(21000+i))
			if err := probe(top.Client, "tcp", self, to, 1); err != nil {
				t.Errorf("with a TTL of 1: %v", err)
				return
			}
			<-accepted
		})
	}
	await(t, "packets with the TTLs that the client gave them, 64 and 1, and no other", func() error {
		mu.Lock()
		defer mu.Unlock()
		if arrived[64] == 0 || arrived[1] == 0 || len(arrived) != 2 {
			return fmt.Errorf("packets by TTL %v", arrived)
		}
		return nil
	})
	if drops := d.stats().drops(before); len(drops) > 0 {
		t.Errorf("drops %v", drops)
	}
	d.stop()
}

// ttlOf is the TTL or hop limit of an IP packet.
func ttlOf(ip []byte) uint8 {
	if ip[0]>>4 == 4 {
		return ip[8]
	}
	return ip[7]
}

// segmentOf is how many bytes of data the kernel puts into a segment of the
// connection (TCP_INFO).
func segmentOf(t *testing.T, c net.Conn) uint32 {
	info, err := tcpInfo(c)
	if err != nil {
		t.Error(err)
		return 0
	}
	return info.Snd_mss
}

// tcpInfo is what the kernel knows of a connection.
func tcpInfo(c net.Conn) (info *unix.TCPInfo, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info, errors.Join(err, failed)
}

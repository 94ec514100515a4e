package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// errorLog notes the ICMP errors that come in, and how many packets that end at the
// first hop go out: on a busy machine a SYN goes again before it is answered.
type errorLog struct {
	mu    sync.Mutex
	all   []icmpError
	short uint64
}

func (l *errorLog) watch(frame []byte, outgoing bool) {
	if len(frame) < ethernet {
		return
	}
	ip := frame[ethernet:]
	d, ok := datagramOf(ip)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if outgoing {
		ttl := ip[8]
		if ip[0]>>4 == 6 {
			ttl = ip[7]
		}
		if ttl == 1 && (d.proto == protoTCP || d.proto == protoUDP) {
			l.short++
		}
		return
	}
	if e, ok := errorOf(d); ok {
		l.all = append(l.all, e)
	}
}

// ended are the packets that went out and end at the first hop.
func (l *errorLog) ended() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.short
}

// about are the errors about packets from one end to another.
func (l *errorLog) about(src, dst netip.AddrPort) []icmpError {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []icmpError
	for _, e := range l.all {
		if e.about.src == src && e.about.dst == dst {
			out = append(out, e)
		}
	}
	return out
}

// probe sends one packet from an address and port with a TTL, as traceroute does,
// and tells what the kernel made of it: nil where it was answered.
func probe(ns *testbed.Namespace, network string, self, to netip.AddrPort, ttl int) error {
	d := ns.Dialer(limit)
	if d.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(self)); network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(self)
	}
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if to.Addr().Is4() {
				failed = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1))
				return
			}
			failed = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		})
		return errors.Join(err, failed)
	}
	c, err := d.Dial(network, to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if network == "tcp" {
		return nil
	}
	_, sent := c.Write([]byte("traceroute probe"))
	if err := errors.Join(sent, c.SetReadDeadline(time.Now().Add(limit))); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 256))
	return err
}

// TestTraceroute: l4fwd is a hop that speaks for the VIP, and so are routers
// behind it: their errors reach the client, and only the VIP is named.
func TestTraceroute(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2}, testbed.SnifferOptions{})
	r.routeServer()
	heard := &errorLog{}
	sniff(t, r.Client, "c0", testbed.SnifferOptions{Watch: heard.watch})
	all := r.allKinds(1, 0)
	for _, k := range proxyKinds[:3] { // whose probes end before a header
		s := r.service(k, "web", testbed.VIPPortHTTP, testbed.PortHTTP)
		s.Weights = []int{1, 0}
		all = append(all, s)
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(all))
	r.warmUp(1, 0)
	before := d.stats()
	from := uint16(20000) // each row has a port of its own
	for _, k := range pairKinds {
		if t.Failed() { // each failure takes its time
			break
		}
		vip := r.VIP(k.client, k.vip)
		for network, port := range map[string]uint16{"tcp": testbed.VIPPortHTTP, "udp": testbed.PortEcho} {
			if from++; network == "udp" && k.proxy != "" {
				continue
			}
			t.Run(k.String()+"/"+network, func(t *testing.T) {
				self, to := netip.AddrPortFrom(r.ClientAddr(k.client, 0), from), netip.AddrPortFrom(vip, port)
				for ttl := 1; ttl <= 2; ttl++ {
					heard.hop(t, r, network, self, to, ttl)
				}
				if err := probe(r.Client, network, self, to, 3); err != nil {
					t.Errorf("TTL 3: %v, want an answer", err)
				}
			})
		}
		t.Run(k.String()+"/port of traceroute", func(t *testing.T) {
			self := netip.AddrPortFrom(r.ClientAddr(k.client, 0), from)
			heard.hop(t, r, "udp", self, netip.AddrPortFrom(vip, 33434), 1)
		})
		t.Run(k.String()+"/ping", func(t *testing.T) {
			// l4fwd is where it goes to, so any TTL will do.
			for _, key := range []string{"net.ipv4.ip_default_ttl", "net.ipv6.conf.c0.hop_limit"} {
				if err := r.Client.Sysctl(key, "1"); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = r.Client.Sysctl(key, "64") }()
			}
			if _, err := r.Client.Ping(vip, 56, limit); err != nil {
				t.Error(err)
			}
		})
	}
	least := uint64(len(pairKinds)*2 + len(kinds)) // TTL 1 by TCP, UDP without a service, UDP
	await(t, "l4fwd to count what ends there", func() error {
		after, n := d.stats(), heard.ended()
		ended, answered := after.Verdicts["ttl_exceeded"]-before.Verdicts["ttl_exceeded"], after.Refusals-before.Refusals
		if n < least || ended != n || answered != n {
			return fmt.Errorf("%d packets, %d at least; %d counted as ttl_exceeded, %d as refusals", n, least, ended, answered)
		}
		return nil
	})
	for _, f := range testbed.Families {
		for i := range r.servers {
			if a := r.ServerAddr(f, i); r.client.Saw(a) {
				t.Errorf("the client has seen %s, a real server", a)
			}
		}
		if a := lastByte(testbed.ServerNet[f].Addr(), 254); r.client.Saw(a) {
			t.Errorf("the client has seen %s, a router behind l4fwd", a)
		}
	}
	d.stop()
}

// hop expects one time exceeded from the VIP, and the client's kernel to believe
// that it is about its packet.
func (l *errorLog) hop(t *testing.T, r *rig, network string, self, to netip.AddrPort, ttl int) {
	t.Helper()
	if err := probe(r.Client, network, self, to, ttl); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("TTL %d: %v, want %v", ttl, err, unix.EHOSTUNREACH)
		return
	}
	var all []icmpError
	await(t, fmt.Sprintf("an ICMP error about %s with TTL %d", self, ttl), func() error {
		if all = l.about(self, to); len(all) == 0 {
			return errors.New("none seen")
		}
		return nil
	})
	for _, e := range all {
		if !e.timeOut || e.from != to.Addr() || e.to != self.Addr() {
			t.Errorf("TTL %d: %+v, want time exceeded from %s", ttl, e, to.Addr())
		}
	}
}

package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Ports of servers that expect PROXY, by when they greet.
const (
	portGreetsAfter  = 9200 // having read the header
	portGreetsBefore = 9201 // at once
)

// greeting is what they say first.
const greeting = "220 at your service\n"

// greeter is a server that speaks first, as those of mail and databases do.
// Each line it gets it answers with who the header said the client is, and the
// line.
type greeter struct {
	listeners []net.Listener
	wg        sync.WaitGroup
}

// greeters listen on both ports at every address of the first real server.
func (r *rig) greeters() *greeter {
	r.t.Helper()
	g := &greeter{}
	r.t.Cleanup(g.close)
	for _, f := range testbed.Families {
		for _, port := range []uint16{portGreetsAfter, portGreetsBefore} {
			var l net.Listener
			err := r.Topology.Servers[0].Do(func() (err error) {
				var config net.ListenConfig
				config.SetMultipathTCP(false) // which takes no filter
				l, err = config.Listen(r.t.Context(), "tcp", netip.AddrPortFrom(r.ServerAddr(f, 0), port).String())
				return err
			})
			if err != nil {
				r.t.Fatal(err)
			}
			g.listeners = append(g.listeners, l)
			g.wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					g.wg.Go(func() {
						defer func() { _ = c.Close() }()
						_ = c.SetDeadline(time.Now().Add(2 * limit)) // the client tells what went wrong
						_ = greet(c, port == portGreetsBefore)
					})
				}
			})
		}
	}
	return g
}

func (g *greeter) close() {
	for _, l := range g.listeners {
		_ = l.Close()
	}
	g.wg.Wait()
}

// greet serves one connection.
func greet(c net.Conn, before bool) error {
	r := bufio.NewReader(c)
	say := func(format string, args ...any) error {
		_, err := fmt.Fprintf(c, format, args...)
		return err
	}
	if before {
		if err := say(greeting); err != nil {
			return err
		}
	}
	client, vip, err := readProxy(r)
	if err != nil {
		return say("550 %v\n", err)
	}
	if !before {
		if err := say(greeting); err != nil {
			return err
		}
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if err := say("250 %s %s %s", client, vip, line); err != nil {
			return err
		}
	}
}

// readProxy reads a PROXY header of either version, as section 2 of HAProxy's
// proxy-protocol.txt has it.
func readProxy(r *bufio.Reader) (client, server netip.AddrPort, err error) {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	head, err := r.Peek(len(signature) + 4)
	if err != nil {
		return client, server, err
	}
	if !bytes.HasPrefix(head, []byte(signature)) {
		line, err := r.ReadString('\n')
		f := strings.Split(strings.TrimSuffix(line, "\r\n"), " ")
		if err != nil || len(f) != 6 || f[0] != "PROXY" || !strings.HasSuffix(line, "\r\n") {
			return client, server, fmt.Errorf("no header: %q, %w", line, err)
		}
		client, err = netip.ParseAddrPort(net.JoinHostPort(f[2], f[4]))
		server, err2 := netip.ParseAddrPort(net.JoinHostPort(f[3], f[5]))
		if family := map[bool]string{true: "TCP4", false: "TCP6"}[client.Addr().Is4()]; f[1] != family {
			return client, server, fmt.Errorf("wrong family: %q", line)
		}
		return client, server, errors.Join(err, err2)
	}
	family, n := head[13], int(binary.BigEndian.Uint16(head[14:]))
	whole := make([]byte, len(head)+n)
	if _, err := io.ReadFull(r, whole); err != nil {
		return client, server, err
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[family]
	if b := whole[len(head):]; whole[12] == 0x21 && size > 0 && n == 2*size+4 {
		from, _ := netip.AddrFromSlice(b[:size])
		to, _ := netip.AddrFromSlice(b[size : 2*size])
		ports := b[2*size:]
		return netip.AddrPortFrom(from, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(ports[2:])), nil
	}
	return client, server, fmt.Errorf("bad header % x", whole)
}

// portRelay is where relay listens.
const portRelay = 9202

// relay takes connections with PROXY headers to the first real server's
// testbed.PortHash, which knows nothing of them. A connection whose header names
// another client's address ends at once.
func (r *rig) relay() {
	r.t.Helper()
	var wg sync.WaitGroup
	var listeners []net.Listener
	r.t.Cleanup(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
		wg.Wait()
	})
	ns := r.Topology.Servers[0]
	for _, f := range testbed.Families {
		l, err := ns.Listen("tcp", netip.AddrPortFrom(r.ServerAddr(f, 0), portRelay).String())
		if err != nil {
			r.t.Fatal(err)
		}
		listeners = append(listeners, l)
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer func() { _ = c.Close() }()
					in := bufio.NewReader(c)
					client, _, err := readProxy(in)
					if err != nil || client.Addr() != r.ClientAddr(testbed.FamilyOf(client.Addr()), 0) {
						return // the client tells what went wrong
					}
					out, err := ns.Dialer(limit).Dial("tcp", netip.AddrPortFrom(r.ServerAddr(f, 0), testbed.PortHash).String())
					if err != nil {
						return
					}
					defer func() { _ = out.Close() }()
					wg.Go(func() {
						_, _ = io.Copy(out, in)
						_ = out.(*net.TCPConn).CloseWrite()
					})
					_, _ = io.Copy(c, out)
				})
			}
		})
	}
}

// proxyLen is how long the header of a client's connection is.
func (k kind) proxyLen(client, vip netip.AddrPort) int {
	switch {
	case k.proxy == "proxy-v1":
		return len(fmt.Sprintf("PROXY TCP%d %s %s %d %d\r\n", k.client, client.Addr(), vip.Addr(), client.Port(), vip.Port()))
	case k.client == testbed.V4:
		return 16 + 12
	}
	return 16 + 36
}

// call is a client's connection to a greeter.
type call struct {
	net.Conn
	r  *bufio.Reader
	to netip.AddrPort
}

// call connects. It says nothing.
func (r *rig) call(k kind, port uint16) (*call, error) {
	to := netip.AddrPortFrom(r.VIP(k.client, k.vip), port)
	c, err := r.Client.Dialer(limit).Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return &call{c, bufio.NewReader(c), to}, c.SetDeadline(time.Now().Add(limit))
}

// greeted waits for the greeting.
func (c *call) greeted() error {
	if line, err := c.r.ReadString('\n'); err != nil || line != greeting {
		return fmt.Errorf("%s: greeted by %q, %w", c.LocalAddr(), line, err)
	}
	return nil
}

// asks says something and wants it back, with the client's own address.
func (c *call) asks(what string) error {
	if _, err := c.Write([]byte(what)); err != nil {
		return err
	}
	return c.answered(what)
}

// answered wants the answer to what has been said.
func (c *call) answered(what string) error {
	want := fmt.Sprintf("250 %s %s %s", endsOf(c.Conn).self, c.to, what)
	if line, err := c.r.ReadString('\n'); err != nil || line != want {
		return fmt.Errorf("answer %q, want %q: %w", line, want, err)
	}
	return nil
}

// talk is a whole conversation.
func (c *call) talk() error {
	err := c.greeted()
	for i := range 5 {
		if err == nil {
			err = c.asks(fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i*700)))
		}
	}
	return errors.Join(err, c.Close())
}

// each runs f n times at once for every kind with PROXY and either greeter.
func (r *rig) each(t *testing.T, n int, f func(k kind, port uint16) error) {
	t.Helper()
	var wg sync.WaitGroup
	for _, k := range proxyKinds {
		for _, port := range []uint16{portGreetsAfter, portGreetsBefore} {
			for range n {
				wg.Go(func() {
					if err := f(k, port); err != nil {
						t.Errorf("%s, port %d: %v", k, port, err)
					}
				})
			}
		}
	}
	wg.Wait()
}

// arrivals are the clients' segments with data at a real server, SYNs by
// themselves.
type arrivals struct {
	mu       sync.Mutex
	data     map[ends]int // to the greeters
	fastOpen int          // SYNs with data or with the option
}

const (
	flagSYNBit  = 0x02
	optFastOpen = 34 // RFC 7413
)

func (a *arrivals) watch(frame []byte, _ bool) {
	if len(frame) < ethernet {
		return
	}
	d, ok := datagramOf(frame[ethernet:])
	if !ok || d.proto != protoTCP || len(d.l4) < 20 || d.dst.Port() != portGreetsAfter && d.dst.Port() != portGreetsBefore {
		return
	}
	header := int(d.l4[12]>>4) * 4
	ip := 20
	if d.src.Addr().Is6() {
		ip = 40
	}
	data := d.size - ip - header
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.l4[13]&flagSYNBit != 0 {
		if data > 0 || hasOption(d.l4[20:header], optFastOpen) {
			a.fastOpen++
		}
		return
	}
	if data > 0 {
		a.data[ends{d.dst, d.src}]++
	}
}

// hasOption looks for a TCP option.
func hasOption(options []byte, kind byte) bool {
	for len(options) > 0 && options[0] != 0 {
		if options[0] == kind {
			return true
		}
		n := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 {
				return false
			}
			n = int(options[1])
		}
		options = options[min(n, len(options)):]
	}
	return false
}

// deafen has the listeners' kernel lose every segment to them but SYNs, until
// heard: the handshake's last ACK, the header with it, and what follows.
func (g *greeter) deafen(t *testing.T, deaf bool) {
	t.Helper()
	// The filter sees a segment from its TCP header on.
	lose := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: flagSYNBit, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	for _, l := range g.listeners {
		raw, err := l.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var set error
		err = raw.Control(func(fd uintptr) {
			if deaf {
				set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(lose)), Filter: &lose[0]})
			} else {
				set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			}
		})
		if err := errors.Join(err, set); err != nil {
			t.Fatal(err)
		}
	}
}

// TestProxySpeaksFirst: servers that speak first get the header all the same,
// whether they wait for it or not, from clients that wait for them; also where
// every packet that carried it is lost at first, and from clients that would put
// data on their SYN.
func TestProxySpeaksFirst(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2, Servers: 1}, testbed.SnifferOptions{})
	g := r.greeters()
	seen, sent := &arrivals{data: make(map[ends]int)}, &arrivals{data: make(map[ends]int)}
	sniff(t, r.Topology.Servers[0], "s0", testbed.SnifferOptions{Direction: testbed.Incoming, Watch: seen.watch})
	sniff(t, r.Client, "c0", testbed.SnifferOptions{Direction: testbed.Outgoing, Watch: sent.watch})
	d := r.proxied(portGreetsAfter, portGreetsBefore)
	before := d.stats()
	n := 100
	if testing.Short() {
		n = 15
	}
	t.Run("clients wait", func(t *testing.T) {
		r.each(t, n, func(k kind, port uint16) error {
			c, err := r.call(k, port)
			if err != nil {
				return err
			}
			return c.talk()
		})
	})
	t.Run("header lost", func(t *testing.T) { r.lostHeader(t, g, seen, n) })
	lossless(t, d, before)
	t.Run("fast open", func(t *testing.T) { r.fastOpen(t, seen, sent, n) })
	lossless(t, d, before)
	d.stop()
}

// lostHeader has the servers miss the handshake's end and whatever comes with it.
// Half of the clients wait, half speak at once.
func (r *rig) lostHeader(t *testing.T, g *greeter, seen *arrivals, n int) {
	seen.mu.Lock()
	clear(seen.data)
	seen.mu.Unlock()
	g.deafen(t, true)
	type caller struct {
		*call
		said string
	}
	var mu sync.Mutex
	var all []caller
	r.each(t, n, func(k kind, port uint16) error {
		c, err := r.call(k, port)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		said := ""
		if len(all)%2 == 0 {
			said = "said too early\n"
			_, err = c.Write([]byte(said))
		}
		all = append(all, caller{c, said})
		return err
	})
	start := time.Now()
	await(t, "every header to be sent in vain", func() error {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		if len(seen.data) < len(all) {
			return fmt.Errorf("%d of %d", len(seen.data), len(all))
		}
		return nil
	})
	g.deafen(t, false)
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			err := c.greeted()
			if err == nil && c.said != "" {
				err = c.answered(c.said)
			}
			if err == nil {
				err = c.asks("still the same client\n")
			}
			if err := errors.Join(err, c.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	most := 0
	seen.mu.Lock()
	defer seen.mu.Unlock()
	for _, times := range seen.data {
		most = max(most, times)
	}
	t.Logf("%d connections lost their header, all had it %s later; at most %d segments with data each",
		len(all), time.Since(start).Round(time.Millisecond), most)
}

// fastOpen has clients put their first line on the SYN without a cookie, which
// kernels can be told to allow on both sides.
func (r *rig) fastOpen(t *testing.T, seen, sent *arrivals, n int) {
	for ns, value := range map[*testbed.Namespace]string{r.Client: "5", r.Topology.Servers[0]: "515"} {
		if err := ns.Sysctl("net.ipv4.tcp_fastopen", value); err != nil {
			t.Fatal(err)
		}
	}
	r.each(t, n, func(k kind, port uint16) error {
		d := r.Client.Dialer(limit)
		const tcpFastOpenConnect = 30 // TCP_FASTOPEN_CONNECT: the SYN goes with the first write
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, tcpFastOpenConnect, 1) })
			return errors.Join(err, set)
		}
		to := netip.AddrPortFrom(r.VIP(k.client, k.vip), port)
		conn, err := d.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		c := &call{conn, bufio.NewReader(conn), to}
		const early = "with the SYN\n"
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
		if _, err := c.Write([]byte(early)); err != nil {
			return err
		}
		err = c.greeted()
		if err == nil {
			err = c.answered(early)
		}
		if err == nil {
			err = c.asks("and behind it\n")
		}
		return errors.Join(err, c.Close())
	})
	want := n * len(proxyKinds) * 2
	await(t, "all SYNs with data to be seen", func() error {
		sent.mu.Lock()
		defer sent.mu.Unlock()
		if sent.fastOpen < want {
			return fmt.Errorf("%d of %d", sent.fastOpen, want)
		}
		return nil
	})
	seen.mu.Lock()
	defer seen.mu.Unlock()
	if seen.fastOpen > 0 {
		t.Errorf("%d SYNs reached the server with data or Fast Open's option", seen.fastOpen)
	}
}

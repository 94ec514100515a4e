package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// bench is a namespace with loopback, where servers are and probes begin.
type bench struct {
	t  *testing.T
	ns *testbed.Namespace
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ns, err := testbed.NewNamespace("health")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{t, ns}
}

func (b *bench) do(f func() error) {
	b.t.Helper()
	if err := b.ns.Do(f); err != nil {
		b.t.Fatal(err)
	}
}

// hosts are loopback of both families.
var hosts = []string{"127.0.0.1", "[::1]"}

// serve runs a TCP server until the test ends.
func (b *bench) serve(host string, f func(net.Conn)) netip.AddrPort {
	return b.serveAt(host+":0", f)
}

func (b *bench) serveAt(at string, f func(net.Conn)) netip.AddrPort {
	var l net.Listener
	b.do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	b.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				f(c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// answer runs a UDP server until the test ends; f returns nil for no answer.
func (b *bench) answer(host string, f func([]byte) []byte) netip.AddrPort {
	var c net.PacketConn
	b.do(func() (err error) {
		c, err = net.ListenPacket("udp", host+":0")
		return err
	})
	b.t.Cleanup(func() { _ = c.Close() })
	go func() {
		in := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(in)
			if err != nil {
				return
			}
			if out := f(in[:n]); out != nil {
				_, _ = c.WriteTo(out, from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

// nobody is an address where nobody listens, TCP or UDP.
func (b *bench) nobody(host string) netip.AddrPort {
	var l net.Listener
	b.do(func() (err error) {
		l, err = net.Listen("tcp", host+":0")
		return err
	})
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String())
}

// deaf is an address whose SYNs are dropped: its queue is full.
func (b *bench) deaf(host string) netip.AddrPort {
	var l net.Listener
	var to netip.AddrPort
	b.do(func() (err error) {
		narrow := net.ListenConfig{}
		if l, err = narrow.Listen(b.t.Context(), "tcp", host+":0"); err != nil {
			return err
		}
		raw, err := l.(*net.TCPListener).SyscallConn()
		if err != nil {
			return err
		}
		err = errors.Join(err, raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }))
		to = netip.MustParseAddrPort(l.Addr().String())
		c, dialErr := net.DialTimeout("tcp", to.String(), 20*time.Second)
		if dialErr == nil {
			b.t.Cleanup(func() { _ = c.Close() })
		}
		return errors.Join(err, dialErr)
	})
	b.t.Cleanup(func() { _ = l.Close() })
	return to
}

// probe checks once, as an engine does.
func (b *bench) probe(t *testing.T, c Check, to netip.AddrPort) string {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second // of a busy machine; nothing here waits for it
	}
	target := &Target{Key: Key{"web", to}, Address: to, Check: &c}
	var said string
	if err := b.ns.Do(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), c.Timeout)
		defer cancel()
		found, err := target.probe(ctx)
		said = "good: " + found
		if err != nil {
			said = "bad: " + explain(err, c.Timeout)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return said
}

// expect probes, and compares by a regular expression.
func (b *bench) expect(t *testing.T, c Check, to netip.AddrPort, want string) {
	t.Helper()
	if got := b.probe(t, c, to); !regexp.MustCompile("^(?:" + want + ")$").MatchString(got) {
		t.Errorf("%v of %v: %q, want %q", c.Kind, to, got, want)
	}
}

// short is a timeout that is waited for.
const short = 100 * time.Millisecond

const tooLate = "bad: no answer within 100ms"

func TestTCP(t *testing.T) {
	b := newBench(t)
	for _, host := range hosts {
		b.expect(t, Check{Kind: TCP}, b.serve(host, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "good: connected")
		b.expect(t, Check{Kind: TCP}, b.nobody(host), "bad: connection refused")
		b.expect(t, Check{Kind: TCP, Timeout: short}, b.deaf(host), tooLate)
	}
}

// 200 checks leave no connection behind on either side.
func TestTCPLeavesNothing(t *testing.T) {
	b := newBench(t)
	to := b.serve("127.0.0.1", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	for range 200 {
		b.expect(t, Check{Kind: TCP}, to, "good: connected")
	}
	var left string
	b.do(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/tcp")
		left = string(data)
		return err
	})
	const timeWait = " 06 "
	if strings.Contains(left, timeWait) {
		t.Errorf("connections in TIME_WAIT:\n%s", left)
	}
}

func TestSource(t *testing.T) {
	b := newBench(t)
	from := make(chan string, 1)
	to := b.serve("127.0.0.1", func(c net.Conn) { from <- c.RemoteAddr().(*net.TCPAddr).IP.String() })
	b.expect(t, Check{Kind: TCP, Source: netip.MustParseAddr("127.0.0.77")}, to, "good: connected")
	if got := <-from; got != "127.0.0.77" {
		t.Errorf("came from %s", got)
	}
	b.expect(t, Check{Kind: TCP, Source: netip.MustParseAddr("192.0.2.1")}, to, "bad: cannot assign requested address")
}

func statuses(s ...[2]int) [][2]int { return s }

func TestHTTP(t *testing.T) {
	b := newBench(t)
	usual := HTTPCheck{Method: "GET", Path: "/health", Statuses: statuses([2]int{200, 399})}
	with := func(f func(*HTTPCheck)) Check {
		h := usual
		f(&h)
		return Check{Kind: HTTP, HTTP: h}
	}
	plain := Check{Kind: HTTP, HTTP: usual}
	raw := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, text)
		}
	}
	for _, host := range hosts {
		to := b.serve(host, func(c net.Conn) {
			l := &onceListener{c: make(chan net.Conn, 1), done: make(chan struct{})}
			l.c <- c
			answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Host == "missing" {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				if r.URL.Path == "/elsewhere" {
					http.Redirect(w, r, "/", http.StatusFound)
				}
				_, _ = fmt.Fprintf(w, "%s %s %s close=%v status: fine", r.Method, r.Host, r.URL, r.Close)
			})
			_ = (&http.Server{Handler: answer, ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateClosed {
					close(l.done)
				}
			}}).Serve(l)
		})
		b.expect(t, plain, to, "good: HTTP status 200")
		b.expect(t, with(func(h *HTTPCheck) { h.Host = "missing" }), to, "bad: HTTP status 503")
		b.expect(t, with(func(h *HTTPCheck) { h.Path = "/elsewhere" }), to, "good: HTTP status 302")
		b.expect(t, with(func(h *HTTPCheck) { h.Path, h.Statuses = "/elsewhere", statuses([2]int{200, 200}, [2]int{204, 299}) }), to, "bad: HTTP status 302")
		b.expect(t, with(func(h *HTTPCheck) { h.Method = "HEAD" }), to, "good: HTTP status 200")
		b.expect(t, with(func(h *HTTPCheck) {
			h.Body, h.Host = regexp.MustCompile(`^GET www\.example\.org /health close=true status: fine$`), "www.example.org"
		}), to, "good: HTTP status 200, body as expected")
		b.expect(t, with(func(h *HTTPCheck) { h.Body = regexp.MustCompile("well") }), to, "bad: HTTP status 200, but the body does not match")
		b.expect(t, with(func(h *HTTPCheck) { h.Body = regexp.MustCompile(regexp.QuoteMeta("GET " + to.String())) }), to, "good: .*")
		b.expect(t, plain, b.nobody(host), "bad: connection refused")
	}
	for _, c := range []struct{ name, text, want string }{
		{"closed at once", "", "bad: no HTTP answer: the connection was closed|bad: connection reset by peer"},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", "bad: no HTTP answer: malformed HTTP.*"},
		{"interim", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "good: HTTP status 204"},
		{"interim for ever", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), "bad: too many interim responses"},
		{"a header without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), "bad: no HTTP answer in the first 128 KiB"},
		{"a status without end", "HTTP/1.1 " + strings.Repeat("2", 1<<20), "bad: no HTTP answer in the first 128 KiB"},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "good: .*"},
		{"bad chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", "bad: .*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := plain
			if strings.Contains(c.name, "chunks") {
				check = with(func(h *HTTPCheck) { h.Body = regexp.MustCompile("^ab$") })
			}
			b.expect(t, check, b.serve("127.0.0.1", raw(c.text)), c.want)
		})
	}
	late := plain
	late.Timeout = short
	b.expect(t, late, b.serve("127.0.0.1", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), tooLate)
	b.expect(t, late, b.deaf("127.0.0.1"), tooLate)
	// Bytes that dribble in do not make the check longer.
	b.expect(t, late, b.serve("127.0.0.1", func(c net.Conn) {
		for {
			if _, err := io.WriteString(c, "H"); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}), tooLate)
	b.expect(t, late, b.serve("127.0.0.1", func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le")
		_, _ = io.Copy(io.Discard, c)
	}), tooLate)
}

// onceListener is one connection as a listener, until that is closed.
type onceListener struct {
	c    chan net.Conn
	done chan struct{}
}

func (l *onceListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, io.EOF
	}
}
func (l *onceListener) Close() error   { return nil }
func (l *onceListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestHTTPS(t *testing.T) {
	b := newBench(t)
	names := make(chan string, 10)
	var l net.Listener
	b.do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "fine")
	}))
	_ = s.Listener.Close()
	s.Listener, s.Config.ErrorLog = l, quietLog()
	s.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- h.ServerName
		return nil, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	to := netip.MustParseAddrPort(l.Addr().String())
	check := Check{Kind: HTTPS, HTTP: HTTPCheck{Method: "GET", Path: "/", Statuses: statuses([2]int{200, 200}), Body: regexp.MustCompile("fine")}}
	for _, c := range []struct {
		name, host, sni, want, sent string
		verify                      bool
	}{
		{"any certificate", "", "", "good: HTTP status 200, body as expected", "", false},
		{"the name is that of the host", "www.example.org:443", "", "good: .*", "www.example.org", false},
		{"or one of its own", "www.example.org", "sni.example.org", "good: .*", "sni.example.org", false},
		{"a certificate nobody vouches for", "example.com", "", "bad: TLS: .*certificate.*", "example.com", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			check.HTTP.Host, check.TLS = c.host, TLSCheck{Name: c.sni, Verify: c.verify}
			b.expect(t, check, to, c.want)
			if got := <-names; got != c.sent {
				t.Errorf("asked for %q, want %q", got, c.sent)
			}
		})
	}
	b.expect(t, check, b.serve("127.0.0.1", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\n\r\n") }), "bad: TLS: .*")
	check.Timeout = short
	b.expect(t, check, b.serve("127.0.0.1", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), tooLate)
}

func TestUDP(t *testing.T) {
	b := newBench(t)
	for _, host := range hosts {
		echo := b.answer(host, func(q []byte) []byte { return append([]byte("you said "), q...) })
		silent := b.answer(host, func([]byte) []byte { return nil })
		hello, hi := UDPCheck{Send: []byte("hello")}, UDPCheck{Send: []byte("hello"), Expect: []byte("said hello")}
		b.expect(t, Check{Kind: UDP, UDP: hello}, echo, "good: answered")
		b.expect(t, Check{Kind: UDP, UDP: hi}, echo, "good: answered as expected")
		b.expect(t, Check{Kind: UDP, UDP: UDPCheck{Expect: []byte("x")}, Timeout: time.Second}, echo, "bad: what was answered is not what is expected")
		long := b.answer(host, func([]byte) []byte {
			return slices.Concat(make([]byte, maxDatagram-5), []byte("first"), make([]byte, 1000), []byte("last"))
		})
		b.expect(t, Check{Kind: UDP, UDP: UDPCheck{Expect: []byte("first")}}, long, "good: answered as expected")
		b.expect(t, Check{Kind: UDP, UDP: UDPCheck{Expect: []byte("last")}, Timeout: time.Second}, long, "bad: what was answered is not what is expected")
		b.expect(t, Check{Kind: UDP, UDP: hello, Timeout: short}, silent, "good: nobody complained")
		b.expect(t, Check{Kind: UDP, UDP: hi, Timeout: short}, silent, tooLate)
		b.expect(t, Check{Kind: UDP, UDP: hello}, b.nobody(host), "bad: connection refused")
		b.expect(t, Check{Kind: UDP, UDP: hi}, b.nobody(host), "bad: connection refused")
	}
}

// dnsServer answers as it is told.
func dnsServer(code dnsmessage.RCode, change func(*dnsmessage.Message)) func([]byte) []byte {
	return func(q []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(q) != nil {
			return nil
		}
		m.Header.Response, m.Header.RCode = true, code
		if change != nil {
			change(&m)
		}
		out, _ := m.Pack()
		return out
	}
}

func TestDNS(t *testing.T) {
	b := newBench(t)
	check := Check{Kind: DNS, DNS: DNSCheck{Name: "www.Example.org.", Type: uint16(dnsmessage.TypeAAAA)}}
	late := check
	late.Timeout = short
	for _, host := range hosts {
		b.expect(t, check, b.answer(host, dnsServer(0, nil)), "good: DNS response code NOERROR")
		b.expect(t, check, b.answer(host, dnsServer(dnsmessage.RCodeServerFailure, nil)), "bad: DNS response code SERVFAIL")
		b.expect(t, check, b.nobody(host), "bad: connection refused")
		b.expect(t, late, b.answer(host, func([]byte) []byte { return nil }), tooLate)
	}
	nx := check
	nx.DNS.RCode = 3
	b.expect(t, nx, b.answer("127.0.0.1", dnsServer(dnsmessage.RCodeNameError, nil)), "good: DNS response code NXDOMAIN")
	b.expect(t, nx, b.answer("127.0.0.1", dnsServer(0, nil)), "bad: DNS response code NOERROR")
	b.expect(t, check, b.answer("127.0.0.1", dnsServer(11, nil)), "bad: DNS response code 11")
	b.expect(t, check, b.answer("127.0.0.1", dnsServer(dnsmessage.RCodeRefused, func(m *dnsmessage.Message) { m.Questions = nil })), "bad: DNS response code REFUSED")
	for name, change := range map[string]func(*dnsmessage.Message){
		"another id":       func(m *dnsmessage.Message) { m.ID++ },
		"a question":       func(m *dnsmessage.Message) { m.Response = false },
		"another question": func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeA },
		"no question":      func(m *dnsmessage.Message) { m.Questions = nil },
	} {
		t.Run(name, func(t *testing.T) { b.expect(t, late, b.answer("127.0.0.1", dnsServer(0, change)), tooLate) })
	}
	overTCP := check
	overTCP.DNS.TCP = true
	to := b.serve("127.0.0.1", func(c net.Conn) {
		q, err := overTCP.DNS.read(c)
		if err != nil {
			return
		}
		out := dnsServer(0, nil)(q)
		_, _ = c.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
	})
	b.expect(t, overTCP, to, "good: DNS response code NOERROR")
	b.expect(t, overTCP, b.serve("127.0.0.1", func(c net.Conn) { _, _ = c.Write([]byte{0}) }), "bad: the connection was closed|bad: connection reset by peer")
}

func TestPing(t *testing.T) {
	b := newBench(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(host), 80)
		b.expect(t, Check{Kind: Ping}, to, "good: echo reply")
	}
	b.expect(t, Check{Kind: Ping}, netip.MustParseAddrPort("192.0.2.1:80"), "bad: network is unreachable")
	for _, s := range []struct{ key, value string }{{"net.ipv4.icmp_echo_ignore_all", "1"}, {"net.ipv6.icmp.echo_ignore_all", "1"}} {
		if err := b.ns.Sysctl(s.key, s.value); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(host), 80)
		b.expect(t, Check{Kind: Ping, Timeout: short}, to, tooLate)
	}
}

// When the engine ends nobody waits for a backend that does not answer.
func TestEndsWhenTold(t *testing.T) {
	b := newBench(t)
	if err := b.ns.Sysctl("net.ipv4.icmp_echo_ignore_all", "1"); err != nil {
		t.Fatal(err)
	}
	hung := b.serve("127.0.0.1", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	silent := b.answer("127.0.0.1", func([]byte) []byte { return nil })
	for _, row := range []struct {
		check Check
		to    netip.AddrPort
	}{
		{Check{Kind: TCP}, b.deaf("127.0.0.1")},
		{Check{Kind: HTTP, HTTP: HTTPCheck{Method: "GET", Path: "/"}}, hung},
		{Check{Kind: HTTPS, HTTP: HTTPCheck{Method: "GET", Path: "/"}}, hung},
		{Check{Kind: UDP}, silent},
		{Check{Kind: DNS, DNS: DNSCheck{Name: ".", Type: 2}}, silent},
		{Check{Kind: DNS, DNS: DNSCheck{Name: ".", Type: 2, TCP: true}}, hung},
		{Check{Kind: Ping}, hung},
		{Check{Kind: Exec, Exec: []string{"sleep", "1000"}}, hung},
	} {
		target := &Target{Address: row.to, Check: &row.check}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		late := time.AfterFunc(50*time.Millisecond, cancel)
		began := time.Now()
		b.do(func() error {
			_, _ = target.probe(ctx)
			return nil
		})
		if took := time.Since(began); took < 50*time.Millisecond || took > 20*time.Second {
			t.Errorf("%v ended after %v", row.check.Kind, took)
		}
		late.Stop()
		cancel()
	}
}

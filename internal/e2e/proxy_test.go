package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// portProxied is where servers that expect PROXY listen.
const portProxied = 8090

// proxied starts l4fwd with a service of every kind with PROXY on the port, and
// TOA's for warmUp. Nothing may be lost until the end of the test.
func (r *rig) proxied(ports ...uint16) *daemon {
	r.t.Helper()
	all := append(r.services(kinds[0]), r.services(kinds[1])...)
	for _, k := range proxyKinds {
		for _, port := range ports {
			all = append(all, r.service(k, fmt.Sprint(port), port, port))
		}
	}
	d := program{args: []string{"--workers", "2"}}.start(r.t, r.LB, r.Config(all))
	r.warmUp()
	return d
}

// lossless fails the test if l4fwd has dropped a packet.
func lossless(t *testing.T, d *daemon, before stats) {
	t.Helper()
	if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
		t.Errorf("drops (-want +got)\n%s", diff)
	}
}

// TestProxyNginx: nginx is told the client's address and port of each of many
// connections by curl, and what goes through arrives whole.
func TestProxyNginx(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2, Servers: 1}, testbed.SnifferOptions{Every: 20})
	var listen []netip.AddrPort
	for _, f := range testbed.Families {
		listen = append(listen, netip.AddrPortFrom(r.ServerAddr(f, 0), portProxied))
	}
	n, err := testbed.StartProxiedNginx(t.Context(), r.Topology.Servers[0], t.TempDir(), listen...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	d := r.proxied(portProxied)
	before := d.stats()
	for _, k := range proxyKinds {
		t.Run(k.String(), func(t *testing.T) {
			p := proxyTest{t, r, n, k, netip.AddrPortFrom(r.VIP(k.client, k.vip), portProxied)}
			t.Run("connections", func(t *testing.T) { p.t = t; p.connections() })
			t.Run("keep-alive", func(t *testing.T) { p.t = t; p.keepAlive() })
			t.Run("pipelining", func(t *testing.T) { p.t = t; p.pipelining() })
			t.Run("bodies", func(t *testing.T) { p.t = t; p.bodies() })
		})
	}
	lossless(t, d, before)
	d.stop()
}

// proxyTest is one kind's.
type proxyTest struct {
	t  *testing.T
	r  *rig
	n  *testbed.ProxiedNginx
	k  kind
	to netip.AddrPort
}

// url is a path that nobody else asks for.
func (p proxyTest) url(name string) (path, url string) {
	path = "/" + strings.ReplaceAll(p.k.String(), "/", "-") + "-" + name
	return path, "http://" + p.to.String() + path
}

// curl returns by path what the client's own address was.
func (p proxyTest) curl(args ...string) map[string]netip.AddrPort {
	p.t.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil {
		p.t.Fatalf("curl is not installed (apt-get install curl): %v", err)
	}
	const format = `%{url_effective} %{local_ip} %{local_port} %{http_code} %{errormsg}\n`
	args = append([]string{"-sS", "--max-time", "60", "-w", format}, args...)
	out, err := p.r.Client.Command(p.t.Context(), curl, args...).Output()
	if err != nil {
		p.t.Fatal(err)
	}
	self := make(map[string]netip.AddrPort)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[3][0] != '2' {
			p.t.Fatalf("curl says %q", line)
		}
		addr, err := netip.ParseAddr(f[1])
		port, err2 := strconv.ParseUint(f[2], 10, 16)
		if err := errors.Join(err, err2); err != nil {
			p.t.Fatalf("curl says %q: %v", line, err)
		}
		self[strings.TrimPrefix(f[0], "http://"+p.to.String())] = netip.AddrPortFrom(addr, uint16(port))
	}
	return self
}

// logged waits until nginx has logged a request for each of the paths, and
// compares whom it was told.
func (p proxyTest) logged(want map[string]netip.AddrPort) (connections map[uint64]int) {
	p.t.Helper()
	var got map[string]netip.AddrPort
	await(p.t, "nginx to log all requests", func() error {
		all, err := p.n.Requests()
		if err != nil {
			p.t.Fatal(err)
		}
		got, connections = make(map[string]netip.AddrPort), make(map[uint64]int)
		for _, q := range all {
			if _, ours := want[q.Path]; !ours {
				continue
			}
			if _, twice := got[q.Path]; twice || q.Server != p.to {
				p.t.Fatalf("logged twice, or not for %s: %+v", p.to, q)
			}
			got[q.Path] = q.Client
			connections[q.Connection]++
		}
		if len(got) < len(want) {
			return fmt.Errorf("%d of %d", len(got), len(want))
		}
		return nil
	})
	wrong := 0
	for path, self := range want {
		if got[path] == self {
			continue
		}
		if wrong++; wrong < 5 {
			p.t.Errorf("%s: nginx was told %s, the client is %s", path, got[path], self)
		}
	}
	if wrong > 0 {
		p.t.Errorf("%d of %d wrong", wrong, len(want))
	}
	return connections
}

// connections makes one connection a request, many at the same time.
func (p proxyTest) connections() {
	n := 1000
	if testing.Short() {
		n = 100
	}
	_, url := p.url("c")
	self := p.curl("-o", "/dev/null", "-Z", "--parallel-max", "50", "-H", "Connection: close", fmt.Sprintf("%s[1-%d]", url, n))
	if len(self) != n {
		p.t.Errorf("%d answers, want %d", len(self), n)
	}
	if conns := p.logged(self); len(conns) != n {
		p.t.Errorf("%d connections, want %d", len(conns), n)
	}
	clients := make(map[netip.AddrPort]bool)
	for _, a := range self {
		clients[a] = true
	}
	p.t.Logf("%d connections from %d different ports, nginx was told each", n, len(clients))
}

// keepAlive makes many requests on one connection.
func (p proxyTest) keepAlive() {
	_, url := p.url("k")
	self := p.curl("-o", "/dev/null", fmt.Sprintf("%s[1-%d]", url, 100))
	if conns := p.logged(self); len(conns) != 1 || len(self) != 100 {
		p.t.Errorf("%d requests on %d connections, want 100 on one", len(self), len(conns))
	}
}

// pipelining asks many times before it looks at an answer. The paths are of
// different lengths, so that segments end anywhere.
func (p proxyTest) pipelining() {
	c, err := p.r.Client.Dialer(limit).Dial("tcp", p.to.String())
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		p.t.Fatal(err)
	}
	var ask bytes.Buffer
	want := make(map[string]netip.AddrPort)
	var paths []string
	for i := range 200 {
		path, _ := p.url("p" + strings.Repeat("x", i) + fmt.Sprint(i))
		paths = append(paths, path)
		want[path] = endsOf(c).self
		last := ""
		if i == 199 {
			last = "Connection: close\r\n"
		}
		fmt.Fprintf(&ask, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, last)
	}
	if _, err := c.Write(ask.Bytes()); err != nil {
		p.t.Fatal(err)
	}
	answers, err := io.ReadAll(c)
	if err = errors.Join(err, c.Close()); err != nil { // nginx lingers until the client closes
		p.t.Fatal(err)
	}
	at := 0
	for _, path := range paths { // each body is the path
		i := bytes.Index(answers[at:], []byte("\r\n\r\n"+path))
		if i < 0 {
			p.t.Fatalf("no answer to %s in its turn", path)
		}
		at += i + 4 + len(path)
	}
	if conns := p.logged(want); len(conns) != 1 {
		p.t.Errorf("%d connections", len(conns))
	}
}

// bodies fetches a large file and stores one.
func (p proxyTest) bodies() {
	size := 64 << 20
	if testing.Short() {
		size = 4 << 20
	}
	// Not a multiple of anything.
	data := make([]byte, size+len(p.k.String())*7+1)
	_, _ = rand.NewChaCha8([32]byte{byte(p.k.vip)}).Read(data) // never fails
	name, _ := p.url("body")
	source := p.n.File("files" + name)
	if err := os.WriteFile(source, data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	fetched := p.n.File("fetched-" + name[1:])
	start := time.Now()
	base := "http://" + p.to.String()
	p.curl("-o", fetched, base+"/files"+name)
	p.curl("-o", "/dev/null", "-T", source, base+"/up"+name)
	p.t.Logf("%d bytes down and up in %s", len(data), time.Since(start).Round(time.Millisecond))
	for _, file := range []string{fetched, p.n.File("up" + name)} {
		if got, want := digest(p.t, file), sha256.Sum256(data); got != want {
			p.t.Errorf("%s: SHA-256 %x, want %x", file, got, want)
		}
	}
}

// digest is a file's SHA-256.
func digest(t *testing.T, file string) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, bufio.NewReader(f)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

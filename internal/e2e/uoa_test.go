package e2e

import (
	"errors"
	"fmt"
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

// uoaRow is a service with UOA.
type uoaRow struct {
	name, form     string
	client, server testbed.Family
	vip            int
	shown          bool // a server with `rs uoa` sees the client
}

var uoaRows = []uoaRow{
	{"v4 separate", "separate", testbed.V4, testbed.V4, 0, true},
	{"v4 protocol", "protocol", testbed.V4, testbed.V4, 0, true},
	{"v4 option", "option", testbed.V4, testbed.V4, 0, true},
	{"v6 separate", "separate", testbed.V6, testbed.V6, 0, true},
	{"v6 protocol", "protocol", testbed.V6, testbed.V6, 0, true},
	{"NAT64 separate", "separate", testbed.V6, testbed.V4, 1, false},
}

// TestUOA: an nginx that knows nothing of UOA sees every UDP client's own address and
// port, with `rs uoa` beside it, and answers there; without, it sees local addresses and,
// but for the protocol form, loses nothing.
func TestUOA(t *testing.T) {
	const first = 9800
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 2, Queues: 2, ClientAddrs: 20})
	var services []testbed.Service
	var ports []uint16
	for i, row := range uoaRows {
		for s, weights := range [][]int{{1, 0}, {0, 1}} {
			port := uint16(first + 10*s + i)
			services = append(services, testbed.Service{Name: fmt.Sprintf("%s-%d", strings.ReplaceAll(row.name, " ", "-"), s),
				Family: row.server, Address: top.VIP(row.client, row.vip), Port: port, BackendPort: port, Protocol: "udp", Mode: fullNAT,
				ClientAddress: "uoa", Extra: "uoa_form: " + row.form, Weights: weights})
			ports = append(ports, port)
		}
	}
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	var groups [2]*testbed.Cgroup
	for i, ns := range top.Servers {
		if groups[i], err = testbed.NewCgroup(ns.Role()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := groups[i].Close(); err != nil {
				t.Error(err)
			}
		})
		nginx, err := testbed.StartUDPNginx(t.Context(), ns, groups[i], t.TempDir(), ports...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nginx.Kill)
	}
	var from []string
	for _, f := range testbed.Families {
		from = append(from, "--from", top.LocalAddr(f, 0).String()+"-"+top.LocalAddr(f, 3).String())
	}
	rs, err := top.Servers[0].StartProcess(t.Context(), testbed.ProcessOptions{
		Path: path, Args: append([]string{"rs", "uoa", "--dev", "s0", "--cgroup", groups[0].Path}, from...), Ready: "ready", Prepare: asNobody,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := program{args: []string{"--workers", "2"}}.start(t, top.LB, top.Config(services))
	n := 2000
	if testing.Short() {
		n = 200
	}
	for i, row := range uoaRows {
		t.Run(row.name, func(t *testing.T) {
			m := uoaMeeting{t: t, top: top, row: row}
			m.vip = netip.AddrPortFrom(top.VIP(row.client, row.vip), uint16(first+i))
			m.many(n)
			if row.client == testbed.V4 {
				m.forge()
			}
			m.vip = netip.AddrPortFrom(m.vip.Addr(), uint16(first+10+i))
			m.unaware()
		})
	}
	if err := rs.Terminate(limit); err != nil {
		t.Error(err)
	}
	if out := rs.Output(); !strings.Contains(out, `"refused": 0`) || !strings.Contains(out, `"malformed": 0`) || !strings.Contains(out, `"ambiguous": 0`) {
		t.Errorf("rs uoa says\n%s", out)
	}
	d.stop()
}

// uoaMeeting is clients of one service.
type uoaMeeting struct {
	t   *testing.T
	top *testbed.Topology
	row uoaRow
	vip netip.AddrPort
}

// dial is a client's socket.
func (m *uoaMeeting) dial(i int) (c net.Conn, self string, err error) {
	err = m.top.Client.Do(func() error {
		from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(m.top.ClientAddr(m.row.client, i%m.top.Options.ClientAddrs), 0))
		c, err = (&net.Dialer{LocalAddr: from}).Dial("udp", m.vip.String())
		return err
	})
	if err != nil {
		return nil, "", err
	}
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return c, fmt.Sprintf("%s %d", a.Addr(), a.Port()), nil
}

// local reports whether what a server saw is a local address of l4fwd's.
func (m *uoaMeeting) local(seen string) bool {
	addr, _, _ := strings.Cut(seen, " ")
	a, err := netip.ParseAddr(addr)
	return err == nil && m.top.IsLocal(a)
}

// right reports whether a server with `rs uoa` saw the client as it should.
func (m *uoaMeeting) right(seen, self string) bool {
	if m.row.shown {
		return seen == self
	}
	return m.local(seen)
}

// many has n clients, each of which asks as often as it takes for one datagram to come
// after those with UOA.
func (m *uoaMeeting) many(n int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	wrong, lost := 0, 0
	begin := time.Now()
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				c, self, err := m.dial(i)
				if err != nil {
					m.t.Error(err)
					return
				}
				for k := range 5 {
					seen, tries, err := said(c, fmt.Sprint("datagram ", k), time.Second)
					mu.Lock()
					lost += tries - 1
					if err != nil || !m.right(seen, self) {
						if wrong++; wrong < 4 {
							m.t.Errorf("%s, datagram %d: the server saw %q, %v", self, k, seen, err)
						}
					}
					mu.Unlock()
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	m.t.Logf("%d clients, 5 datagrams each, in %s: %d wrong, %d sent again", n, time.Since(begin).Round(time.Millisecond), wrong, lost)
}

// forge has a client call itself something else, by the IPv4 option.
func (m *uoaMeeting) forge() {
	c, self, err := m.dial(0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	asked := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, "\x1f\x08\x00\x63\xcb\x00\x71\x09")
	})
	if err = errors.Join(asked, err); err != nil {
		m.t.Fatal(err)
	}
	for k := range 5 {
		if seen, _, err := said(c, "forged", time.Second); err != nil || seen != self {
			m.t.Errorf("with a forged option, datagram %d: %s is %q, %v", k, self, seen, err)
		}
	}
}

// unaware asks the server without `rs uoa`: after the first client, before which
// neighbours may not know each other, nothing is lost unless it has UOA within protocol 248.
func (m *uoaMeeting) unaware() {
	clients, wait := 20, limit // what takes so long is lost
	if m.row.form == "protocol" {
		clients, wait = 2, 300*time.Millisecond // it is lost anyway
	}
	for i := range clients {
		c, self, err := m.dial(i)
		if err != nil {
			m.t.Fatal(err)
		}
		for k := range 3 {
			seen, tries, err := said(c, "unaware", wait)
			right := tries == 1 || i == 0 || m.row.form == "protocol"
			if m.row.form == "protocol" && k == 0 {
				right = tries >= 4
			}
			if err != nil || !m.local(seen) || !right {
				m.t.Errorf("%s, datagram %d: after %d tries the server saw %q, %v", self, k, tries, seen, err)
			}
		}
		_ = c.Close()
	}
}

// said sends a datagram until there is an answer, for which it waits so long, and tells how
// often. That a server refuses something is no answer.
func said(c net.Conn, say string, wait time.Duration) (answer string, tries int, err error) {
	b := make([]byte, 2000)
	for tries = 1; tries <= 20; tries++ {
		if _, err := c.Write([]byte(say)); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return "", tries, err
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if n, err := c.Read(b); err == nil {
			return string(b[:n]), tries, nil
		}
	}
	return "", tries, errors.New("no answer")
}

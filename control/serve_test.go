package control

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

const webAt = "127.0.0.1:9480"

// TestWeb: the status page is served on the host, with what the daemon knows.
func TestWeb(t *testing.T) {
	const requests = 5
	w := newWorld(t, testbed.TopologyOptions{})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "wrr", 1, 0), append(small, "web_listen: "+webAt)...))
	w.ask(w.VIP(testbed.V4, 0), requests)
	if _, err := w.pageAt(webAt, "/"); err != nil {
		t.Error(err)
	}
	type answer struct {
		Status   admin.Status `json:"status"`
		Services []struct {
			Name  string `json:"name"`
			Flows uint64 `json:"flows"`
			Bytes uint64 `json:"bytes_to"`
		} `json:"services"`
		NICs []struct {
			Name string `json:"name"`
			Up   bool   `json:"up"`
		} `json:"nics"`
	}
	var got answer
	body, err := w.pageAt(webAt, "/api/overview")
	if err == nil {
		err = json.Unmarshal([]byte(body), &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	flows := uint64(0)
	for _, s := range got.Services {
		if s.Name == "web-full-nat-v4-0" && s.Bytes > 0 {
			flows = s.Flows
		}
	}
	if flows != requests || len(got.NICs) == 0 || !got.NICs[0].Up {
		t.Errorf("%d flows, want %d: %s", flows, requests, body)
	}
	if got.Status.PID != os.Getpid() || got.Status.Services != len(got.Services) {
		t.Errorf("%d services, status %+v", len(got.Services), got.Status)
	}
	d.end()
	if _, err := w.pageAt(webAt, "/"); err == nil {
		t.Error("a page after the end")
	}
	w.clean()
}

// TestOpenConnections: metrics and page give nobody more connections than his share,
// whatever he leaves open, and others theirs.
func TestOpenConnections(t *testing.T) {
	for name, start := range map[string]func(*Daemon, netip.AddrPort, *undo) error{
		"metrics": func(d *Daemon, at netip.AddrPort, down *undo) error {
			d.cfg.MetricsListen = at
			return d.startMetrics(t.Context(), down)
		},
		"page": func(d *Daemon, at netip.AddrPort, down *undo) error {
			d.cfg.WebListen = at
			return d.startWeb(t.Context(), down)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			to := l.Addr().String()
			check(t, l.Close()) // nobody else takes the port so soon
			d, err := New(config.Defaults(), Options{})
			if err != nil {
				t.Fatal(err)
			}
			var down undo
			check(t, start(d, netip.MustParseAddrPort(to), &down))
			t.Cleanup(func() { check(t, down.run()) })
			dial := func(from string) net.Conn {
				t.Helper()
				c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(t.Context(), "tcp", to)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			// answered reports whether a request gets an answer.
			answered := func(c net.Conn) bool {
				t.Helper()
				check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
				_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")) // it may be closed
				_, err := c.Read(make([]byte, 1))
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("neither answered nor closed")
				}
				return err == nil
			}
			var mine []net.Conn
			for range openShare {
				mine = append(mine, dial("127.0.0.2"))
			}
			if answered(dial("127.0.0.2")) {
				t.Error("one more than its share")
			}
			if !answered(mine[openShare-1]) || !answered(dial("127.0.0.3")) {
				t.Error("others are kept out")
			}
		})
	}
}

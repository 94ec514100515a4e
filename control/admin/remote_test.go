package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

const token = "correct-horse-battery"

// remote is a Remote that is served, at an address.
type remote struct {
	*Remote
	addr, ca string
	logs     *observer.ObservedLogs
}

func serveRemote(t *testing.T, f *fake, pace time.Duration, more ...func(*Server)) *remote {
	t.Helper()
	dir := t.TempDir()
	cert, key, err := testbed.Certificate(dir, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	log := zap.New(core)
	guard, pair := access.NewGuard(file, log), access.NewCertificate(cert, key, log)
	for _, s := range []interface {
		Read() (bool, func(), error)
	}{guard, pair} {
		_, use, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		use()
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(f, log)
	for _, m := range more {
		m(s)
	}
	r := &remote{NewRemote(s, guard, pair.Config()), l.Addr().String(), cert, logs}
	r.http.ReadHeaderTimeout = pace
	done := make(chan error, 1)
	go func() { done <- r.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(r.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *remote) client(t *testing.T, o RemoteOptions) *Client {
	t.Helper()
	c, err := NewRemoteClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestRemote: by network there is all that the socket has, for who has the token, from
// the server that the certificate is of.
func TestRemote(t *testing.T) {
	r := serveRemote(t, &fake{status: Status{PID: 7}}, time.Minute)
	good := RemoteOptions{Server: "https://" + r.addr, Token: token, CA: r.ca}
	c := r.client(t, good)
	if s, err := c.Status(t.Context()); err != nil || s.PID != 7 {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := c.Order(t.Context(), Order{Action: Drain, Backend: "10.0.0.1:80"}); err != nil {
		t.Error(err)
	}
	said := r.logs.FilterMessage("a command by network").All()
	if len(said) != 1 || said[0].ContextMap()["request"] != "/v1/order" || !strings.HasPrefix(said[0].ContextMap()["from"].(string), "127.0.0.1:") {
		t.Errorf("logged: %v", said)
	}
	other, _, err := testbed.Certificate(t.TempDir(), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*RemoteOptions)
		want   string
	}{
		"another's certificate":    {func(o *RemoteOptions) { o.CA = other }, "certificate signed by unknown authority"},
		"the system's authorities": {func(o *RemoteOptions) { o.CA = "" }, "certificate signed by unknown authority"},
		"another name":             {func(o *RemoteOptions) { o.Server = strings.Replace(o.Server, "127.0.0.1", "localhost", 1) }, "match localhost"},
		"wrong token":              {func(o *RemoteOptions) { o.Token = "correct-horse-batterie" }, "wrong token"},
		"no token":                 {func(o *RemoteOptions) { o.Token = "" }, "no token"},
	} {
		o := good
		tt.change(&o)
		if _, err := r.client(t, o).Status(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, server := range []string{"http://" + r.addr, r.addr, "https://", "https://u:p@" + r.addr, "https://" + r.addr + "/x", "https://" + r.addr + "?a=b", "::"} {
		if _, err := NewRemoteClient(RemoteOptions{Server: server}); err == nil || !strings.Contains(err.Error(), "https://HOST:PORT") {
			t.Errorf("%s: %v", server, err)
		}
	}
	for file, want := range map[string]string{"/nowhere": "no such file", os.Args[0]: "has no certificate"} {
		if _, err := NewRemoteClient(RemoteOptions{Server: good.Server, CA: file}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	res, err := http.Get("http://" + r.addr + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %s %v", res.Status, err)
	}
}

// TestRemoteFull: who has the token gets in however many strangers have connections open,
// and what he has asked for goes on while more of them come.
func TestRemoteFull(t *testing.T) {
	more := make(chan struct{})
	r := serveRemote(t, &fake{status: Status{PID: 7}}, time.Minute, func(s *Server) {
		HandleOutput(s, "POST /v1/watch", "text/plain", func(ctx context.Context, _ struct{}, out *Output) error {
			_, err := fmt.Fprintln(out, "begun")
			if err = errors.Join(err, out.Flush()); err != nil {
				return err
			}
			select {
			case <-more:
			case <-ctx.Done():
			}
			_, err = fmt.Fprintln(out, "ended")
			return err
		})
	})
	stranger := func(from net.IP) {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}).DialContext(t.Context(), "tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	for i := range remoteConns {
		stranger(net.IPv4(127, 0, 1, byte(i/remoteShare)))
	}
	c := r.client(t, RemoteOptions{Server: "https://" + r.addr, Token: token, CA: r.ca})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // strangers may stay for longer
	defer cancel()
	in, err := c.Stream(ctx, http.MethodPost, "/v1/watch", struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * remoteConns { // each from an address of its own, so that all have one
		stranger(net.IPv4(127, 0, 2+byte(i/128), byte(i%128)))
	}
	if s, err := c.Status(ctx); err != nil || s.PID != 7 {
		t.Errorf("%+v %v", s, err)
	}
	close(more)
	all, err := io.ReadAll(in)
	if err = errors.Join(err, in.Close()); err != nil || string(all) != "begun\nended\n" {
		t.Errorf("%q %v", all, err)
	}
}

// TestRemoteRedirect: the token goes nowhere else.
func TestRemoteRedirect(t *testing.T) {
	r := serveRemote(t, &fake{}, time.Minute, func(s *Server) {
		s.mux.Handle("GET /v1/elsewhere", http.RedirectHandler("/v1/status", http.StatusFound))
	})
	c := r.client(t, RemoteOptions{Server: "https://" + r.addr, Token: token, CA: r.ca})
	var got *Error
	if _, err := call[Status](t.Context(), c, http.MethodGet, "/v1/elsewhere", nil); !errors.As(err, &got) || got.Status != http.StatusFound {
		t.Errorf("%v", err)
	}
}

// TestRemoteStream: an answer comes bit by bit, and its end is noticed.
func TestRemoteStream(t *testing.T) {
	gone := make(chan struct{})
	r := serveRemote(t, &fake{}, time.Minute, func(s *Server) {
		HandleOutput(s, "POST /v1/bits", "text/plain", func(ctx context.Context, _ struct{}, out *Output) error {
			defer close(gone)
			for i := 0; ; i++ {
				if _, err := fmt.Fprintln(out, i); err != nil {
					return err
				}
				if err := out.Flush(); err != nil {
					return err
				}
				if i == 1 {
					<-ctx.Done()
					return ctx.Err()
				}
			}
		})
	})
	in, err := r.client(t, RemoteOptions{Server: "https://" + r.addr, Token: token, CA: r.ca}).Stream(t.Context(), http.MethodPost, "/v1/bits", struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(in)
	for _, want := range []string{"0", "1"} {
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("%q, want %s: %v", lines.Text(), want, lines.Err())
		}
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the server writes on")
	}
}

// TestRemoteSlow: who says nothing, or too slowly, or too much, is sent away.
func TestRemoteSlow(t *testing.T) {
	const pace = 3 * time.Second // a handshake on a busy machine takes less
	r := serveRemote(t, &fake{}, pace)
	for name, tt := range map[string]struct {
		secure bool
		say    string
		want   string // of the answer
	}{
		"no handshake":   {false, "", ""},
		"half of one":    {false, "\x16\x03\x01\x02\x00", ""},
		"no request":     {true, "", ""},
		"half a head":    {true, "GET /v1/status HTTP/1.1\r\nHost: l4fwd\r\nX-A: ", ""},
		"a stranger's":   {true, "POST /v1/order HTTP/1.1\r\nHost: l4fwd\r\nContent-Length: 100000\r\n\r\n{", "HTTP/1.1 401 Unauthorized"},
		"a long head":    {true, "GET / HTTP/1.1\r\nHost: l4fwd\r\nX-A: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"a stranger's 2": {true, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 "}, // HTTP/2, which is refused in one way or another
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c net.Conn
			c, err := net.Dial("tcp", r.addr)
			if err != nil {
				t.Fatal(err)
			}
			if tt.secure {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			defer func() { _ = c.Close() }()
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if tc, ok := c.(*tls.Conn); ok {
				if err := tc.Handshake(); err != nil {
					t.Fatal(err)
				}
			}
			_, _ = io.WriteString(c, tt.say) // it may be sent away before
			got, err := io.ReadAll(c)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() || !strings.HasPrefix(string(got), tt.want) {
				t.Errorf("%q %v", got, err)
			}
		})
	}
}

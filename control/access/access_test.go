package access

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

const token = "correct-horse-battery"

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadToken(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name, text string
		mode       os.FileMode
		want       string
		open       bool
		wrong      string
	}{
		{"one line", token + "\n", 0o600, token, false, ""},
		{"without its end", token, 0o640, token, false, ""},
		{"everybody's", " " + token + "\r\n", 0o644, token, true, ""},
		{"everybody writes", token, 0o602, token, true, ""},
		{"empty", "\n", 0o600, "", false, "expected one line"},
		{"short", "123456789012345", 0o600, "", false, "expected one line"},
		{"long", strings.Repeat("x", 513), 0o600, "", false, "expected one line"},
		{"two lines", token + "\n" + token, 0o600, "", false, "expected one line"},
		{"no text", token + "\x00", 0o600, "", false, "expected one line"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, open, err := ReadToken(write(t, filepath.Join(dir, tt.name), tt.text, tt.mode))
			if got != tt.want || open != tt.open || (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%q %v %v", got, open, err)
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
	for _, path := range []string{dir, filepath.Join(dir, "none")} {
		if _, _, err := ReadToken(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// guarding is a Guard with a clock of its own.
type guarding struct {
	*Guard
	at   time.Time
	logs *observer.ObservedLogs
}

func newGuard(t *testing.T, path string) *guarding {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	g := &guarding{Guard: NewGuard(path, zap.New(core)), at: time.Unix(1e9, 0), logs: logs}
	g.now = func() time.Time { return g.at }
	return g
}

func (g *guarding) read(t *testing.T) (changed bool) {
	t.Helper()
	changed, use, err := g.Read()
	if err != nil {
		t.Fatal(err)
	}
	use()
	return changed
}

// status is what a request with a header from an address comes to; 200 is let in.
func (g *guarding) status(from, header string) int {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.RemoteAddr = from
	if header != "" {
		r.Header.Set("Authorization", header)
	}
	no := g.Check(r)
	if no == nil {
		return http.StatusOK
	}
	return no.Status
}

const here, there = "192.0.2.1:1000", "[2001:db8::1]:1000"

func TestGuard(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "token"), token, 0o644)
	g := newGuard(t, path)
	if g.Ready() || g.status(here, "Bearer "+token) != http.StatusUnauthorized {
		t.Error("somebody is let in before there is a token")
	}
	if !g.read(t) || g.read(t) || !g.Ready() {
		t.Error("what has changed is told wrongly")
	}
	if n := g.logs.FilterMessage("others can read or change a token").Len(); n != 2 {
		t.Errorf("%d warnings of an open file", n)
	}
	for header, want := range map[string]int{
		"Bearer " + token: 200, "bearer " + token: 200, "": 401, "Bearer": 401, "Bearer ": 401, token: 401, "Basic " + token: 401,
		"Bearer " + token + "x": 401, "Bearer " + token[1:]: 401, "Bearer  " + token: 401,
	} {
		if got := g.status(there, header); got != want {
			t.Errorf("%q: %d, want %d", header, got, want)
		}
	}
	if g.Wrong() != 4 {
		t.Errorf("%d wrong tokens", g.Wrong())
	}
	write(t, path, "another-of-the-kind", 0o600)
	if !g.read(t) || g.status(here, "Bearer "+token) != 401 || g.status(here, "Bearer another-of-the-kind") != 200 {
		t.Error("the old token holds")
	}
	write(t, path, "bad", 0o600)
	if _, _, err := g.Read(); err == nil || g.status(here, "Bearer another-of-the-kind") != 200 {
		t.Errorf("a bad file: %v", err)
	}
}

// TestGuesses: whoever guesses has to wait, even with the right one, and nobody else has.
func TestGuesses(t *testing.T) {
	g := newGuard(t, write(t, filepath.Join(t.TempDir(), "token"), token, 0o600))
	g.read(t)
	for i := range guesses {
		if got := g.status(fmt.Sprintf("[2001:db8::%d]:9", i), "Bearer wrong"); got != 401 {
			t.Errorf("guess %d: %d", i, got)
		}
	}
	for _, tt := range []struct {
		from, header string
		wait         time.Duration
		want         int
	}{
		{there, "Bearer wrong", 0, 429}, {there, "Bearer " + token, 0, 429}, {there, "", 0, 401}, {here, "Bearer " + token, 0, 200},
		{"[2001:db8:0:1::1]:9", "Bearer " + token, 0, 200}, {there, "Bearer wrong", pause, 401}, {there, "Bearer " + token, 0, 429},
		{there, "Bearer " + token, pause, 200}, {there, "Bearer wrong", guesses * pause, 401}, {there, "Bearer wrong", 0, 401},
	} {
		g.at = g.at.Add(tt.wait)
		if got := g.status(tt.from, tt.header); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
	if n := g.logs.FilterMessage("wrong token").Len(); n != 2 {
		t.Errorf("%d lines of the log, want one each 10 s", n)
	}
	for _, e := range g.logs.All() {
		if strings.Contains(fmt.Sprint(e), "Bearer") || strings.Contains(fmt.Sprint(e), token) {
			t.Errorf("a token in the log: %v", e)
		}
	}
}

func TestHosts(t *testing.T) {
	h := NewHosts([]string{"lb1.example.org"})
	h.own = "lb1.corp.example"
	for host, want := range map[string]bool{
		"127.0.0.1:9480": true, "192.0.2.1": true, "[::1]:9480": true, "[2001:db8::1]": true, "::1": true, "localhost:9480": true, "LocalHost": true,
		"lb1": true, "lb1.:9480": true, "app.localhost:1": true, "lb1.example.org": true, "LB1.Example.Org.:9480": true, "lb1.corp.example:80": true, "": true,
		"evil.example": false, "lb1.example.org.evil.example": false, "127.0.0.1.evil.example:9480": false, "xlb1.example.org": false,
		"localhost.evil.example": false, "evil.localhost.": true, "1.2.3": false, "127.0.0.1.": true, "[evil.example]": false, "evil.example:1:2": false,
		"[fe80::1%eth0]:9480": true, "[fe80::1%evil.example]": false, "::%evil.example": false,
	} {
		if got := h.Knows(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	h.Set(nil)
	if h.Knows("lb1.example.org") {
		t.Error("a name of before is known")
	}
}

func FuzzHosts(f *testing.F) {
	for _, s := range []string{"", "a.b:1", "[::1]:2", "[", ":", "a..", "::", "%zz.example"} {
		f.Add(s)
	}
	h := NewHosts([]string{"lb1.example.org"})
	f.Fuzz(func(t *testing.T, host string) {
		// No name that the DNS has is known, whatever is around it.
		if h.Knows(host + ".evil.example") {
			t.Errorf("%q", host)
		}
		h.Knows(host)
	})
}

// TestHandler: a browser is told what to do, and others are served where they may be.
func TestHandler(t *testing.T) {
	h := NewHosts(nil)
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("page")) })
	ask := func(h http.Handler, host string, header ...string) string {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = host
		for _, k := range header {
			r.Header.Set(k, "Mozilla/5.0")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return fmt.Sprint(w.Code, " ", w.Body)
	}
	const evil = `e<b>vil".example:9480`
	refused := "421 This is not served by the name \"e<b>vil\\\".example\". If it is this host's, add it to web_hosts in l4fwd's configuration.\n"
	all, some := h.Handler(next, nil), h.Handler(next, Browser)
	var none *Hosts
	got := []string{ask(all, "lb1"), ask(all, evil), ask(some, evil), ask(some, evil, "User-Agent"), ask(some, evil, "Accept-Language"), ask(none.Handler(next, nil), evil)}
	if diff := cmp.Diff([]string{"200 page", refused, "200 page", refused, refused, "200 page"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestCertificate: handshakes have the one that was read last, and none before.
func TestCertificate(t *testing.T) {
	dir, addr := t.TempDir(), netip.MustParseAddr("127.0.0.1")
	cert, key, err := testbed.Certificate(dir, addr)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	c := NewCertificate(cert, key, zap.New(core))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error)
	go func() { done <- s.Serve(tls.NewListener(l, c.Config())) }()
	defer func() { _, _ = s.Close(), <-done }()
	serial := func(version uint16) string {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
		if err != nil {
			return "none"
		}
		defer func() { _ = conn.Close() }()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	if got := serial(0); got != "none" {
		t.Errorf("before: %s", got)
	}
	read := func() (changed bool) {
		changed, use, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		use()
		return changed
	}
	if !read() || read() {
		t.Error("what has changed is told wrongly")
	}
	first := serial(0)
	if got := serial(tls.VersionTLS12); first == "none" || got != "none" {
		t.Errorf("%s, by TLS 1.2 %s", first, got)
	}
	if _, _, err := testbed.Certificate(dir, addr); err != nil {
		t.Fatal(err)
	}
	if !read() || serial(0) == first {
		t.Error("the old one is served")
	}
	const outdated = "no client will take a certificate that is not valid at this time"
	if n := logs.FilterMessage(outdated).Len(); n != 0 {
		t.Errorf("%d warnings of a good one", n)
	}
	synctest.Test(t, func(*testing.T) { read() }) // in the year 2000
	if n := logs.FilterMessage(outdated).Len(); n != 1 {
		t.Errorf("%d warnings of one that is not valid yet", n)
	}
	write(t, key, "no key", 0o644)
	if _, _, err := c.Read(); err == nil || !strings.Contains(err.Error(), key) || logs.FilterMessage("others can read or change a key").Len() != 1 {
		t.Errorf("a bad key: %v", err)
	}
}

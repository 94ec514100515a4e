package control

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestGates: a button does what it says, for who has the token; what a file holds anew is
// in force after a reload, and a reload that cannot read it changes nothing.
func TestGates(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	file := filepath.Join(t.TempDir(), "web.token")
	token := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	token("the-token-of-before")
	text := w.Config(testbed.Services(0, "full-nat", "none", "rr"), append(small, "web_listen: "+webAt, "web_token_file: "+file)...)
	d := w.run(text)
	at := &http.Transport{DialContext: w.LB.Dialer(5 * time.Second).DialContext}
	defer at.CloseIdleConnections()
	name := d.cfg.Services[0].Name
	backend := name + "/" + d.cfg.Services[0].Backends[0].Address.String()
	press := func(token string, action admin.Action) int {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+webAt+"/api/order",
			bytes.NewBufferString(`{"action": "`+string(action)+`", "backend": "`+backend+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+token)
		r, err := (&http.Client{Transport: at}).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, r.Body)
		check(t, errors.Join(err, r.Body.Close()))
		return r.StatusCode
	}
	state := func(want admin.BackendState) {
		t.Helper()
		all, err := d.Backends(t.Context(), name)
		if err != nil || all[0].State != want {
			t.Errorf("%+v, want %s: %v", all[0], want, err)
		}
	}
	if got := press("the-token-of-after", admin.Drain); got != http.StatusUnauthorized {
		t.Errorf("a wrong token: %d", got)
	}
	state(admin.BackendUp)
	if got := press("the-token-of-before", admin.Drain); got != http.StatusOK {
		t.Errorf("the token: %d", got)
	}
	state(admin.BackendDrained)
	if n := w.ask(w.VIP(testbed.V4, 0), 6).ByServer["rs1"]; n != 0 {
		t.Errorf("%d requests to a drained backend", n)
	}
	token("short")
	if _, err := d.Reload(t.Context(), d.cfg, false); !errors.Is(err, admin.ErrConflict) || !strings.Contains(err.Error(), "web_token_file") {
		t.Errorf("a bad file: %v", err)
	}
	if got := press("the-token-of-before", admin.Enable); got != http.StatusOK {
		t.Errorf("after a reload that failed: %d", got)
	}
	token("the-token-of-after")
	for _, dry := range []bool{true, false} {
		r, err := d.Reload(t.Context(), d.cfg, dry)
		if err != nil || !slices.Equal(r.Changes, []string{"web_token_file: the file has changed"}) {
			t.Errorf("%q %v", r.Changes, err)
		}
	}
	if got := press("the-token-of-before", admin.Drain); got != http.StatusUnauthorized {
		t.Errorf("the token of before: %d", got)
	}
	if got := press("the-token-of-after", admin.Drain); got != http.StatusOK {
		t.Errorf("the token of after: %d", got)
	}
	state(admin.BackendDrained)
	by := func(host string) int {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+webAt, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = host
		r, err := (&http.Client{Transport: at}).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		check(t, r.Body.Close())
		return r.StatusCode
	}
	if got := by("lb9.example.org"); got != http.StatusMisdirectedRequest {
		t.Errorf("by another's name: %d", got)
	}
	d.reload(text + "web_hosts: lb9.example.org\n")
	if got := by("lb9.example.org"); got != http.StatusOK {
		t.Errorf("by its name: %d", got)
	}
	d.end()
	w.clean()
}

// TestGatesShut: what cannot be read at start keeps people out, ends nothing, and lets
// them in once a reload can read it.
func TestGatesShut(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	dir := t.TempDir()
	files := []string{"admin_tls_cert: " + dir + "/cert.pem", "admin_tls_key: " + dir + "/key.pem", "admin_token_file: " + dir + "/token"}
	d := w.run(w.Config(testbed.Services(0, "full-nat", "none", "rr", 1, 0), append(append(small, "admin_listen: 127.0.0.1:9443"), files...)...))
	d.awaitN("nobody is let in by it until a reload can read it", 2)
	conn, err := w.LB.Dialer(5*time.Second).Dial("tcp", "127.0.0.1:9443")
	if err != nil {
		t.Fatal(err)
	}
	check(t, conn.Close())
	if _, err := d.Reload(t.Context(), d.cfg, false); err == nil || !strings.Contains(err.Error(), "admin_tls_cert") || !strings.Contains(err.Error(), "admin_token_file") {
		t.Errorf("a reload: %v", err)
	}
	if _, _, err := testbed.Certificate(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/token", []byte("correct-horse-battery"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := d.Reload(t.Context(), d.cfg, false); err != nil || len(r.Changes) != 2 || !d.gates.admin.Ready() {
		t.Errorf("%q %v", r.Changes, err)
	}
	d.end()
	w.clean()
}

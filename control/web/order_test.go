package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
)

const token = "correct-horse-battery"

// staff is an Orderer that notes what it is told.
type staff struct {
	told  []admin.Order
	fails error
}

func (s *staff) Order(_ context.Context, o admin.Order) ([]admin.BackendInfo, error) {
	if s.fails == nil {
		s.told = append(s.told, o)
	}
	return []admin.BackendInfo{{Service: "web", State: admin.BackendDrained}}, s.fails
}

// withButtons is a page with buttons, and what it logs.
func withButtons(t *testing.T, source Source, orders Orderer) (*Server, *observer.ObservedLogs) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	guard := access.NewGuard(file, zap.New(core))
	s := New(source, Options{Orders: orders, Guard: guard, Log: zap.New(core), Hosts: access.NewHosts(nil)})
	if decoded[overview](t, ask(s, http.MethodGet, "/api/overview")).Buttons {
		t.Error("there are buttons before there is a token")
	}
	s.last = nil
	_, use, err := guard.Read()
	if err != nil {
		t.Fatal(err)
	}
	use()
	return s, logs
}

// press sends what a button does.
func press(s *Server, authorization, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/api/order", strings.NewReader(body))
	r.Host = "127.0.0.1:9480"
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, r)
	return w
}

const drain = `{"action": "drain", "backend": "web/10.0.0.1:80"}`

// TestNoButtons: without a token's file nothing can be changed by the page.
func TestNoButtons(t *testing.T) {
	s := New(&site{}, Options{})
	if w := press(s, "Bearer "+token, drain); w.Code != http.StatusNotFound {
		t.Errorf("%d", w.Code)
	}
	if decoded[overview](t, ask(s, http.MethodGet, "/api/overview")).Buttons {
		t.Error("the page would show buttons")
	}
}

func TestOrder(t *testing.T) {
	src, orders := &site{}, &staff{}
	s, logs := withButtons(t, src, orders)
	if !decoded[overview](t, ask(s, http.MethodGet, "/api/overview")).Buttons {
		t.Error("the page would show no buttons")
	}
	asked := src.asked.Load()
	w := press(s, "Bearer "+token, drain)
	got := decoded[[]admin.BackendInfo](t, w)
	if diff := cmp.Diff([]admin.Order{{Action: admin.Drain, Backend: "web/10.0.0.1:80"}}, orders.told); diff != "" || got[0].State != admin.BackendDrained {
		t.Errorf("%s %+v", diff, got)
	}
	if ask(s, http.MethodGet, "/api/overview"); src.asked.Load() != asked+1 {
		t.Error("the next poll does not see what the button did")
	}
	want := map[string]any{"action": "drain", "backend": "web/10.0.0.1:80", "weight": uint32(0), "from": "192.0.2.1:1234"}
	if diff := cmp.Diff(want, logs.FilterMessage("a button was pressed").All()[0].ContextMap()); diff != "" {
		t.Errorf("logged: %s", diff)
	}
	if w.Header().Get("Content-Security-Policy") != policy || w.Header().Get("Set-Cookie") != "" {
		t.Errorf("headers %v", w.Header())
	}
	for kind, status := range map[error]int{admin.ErrInvalid: 400, admin.ErrNotFound: 404, admin.ErrConflict: 409, errors.New("broken"): 503} {
		orders.fails = admin.Refusal(kind, errors.New("not that one"))
		if w := press(s, "Bearer "+token, drain); w.Code != status || w.Body.String() != "not that one\n" {
			t.Errorf("%v: %d %s", kind, w.Code, w.Body)
		}
	}
	if n := logs.FilterMessage("a button was pressed in vain").Len(); n != 4 {
		t.Errorf("%d of 4 logged", n)
	}
}

// TestOrderRefused: nothing happens without the token in its place, by a name that is not
// the host's, or for what is no order.
func TestOrderRefused(t *testing.T) {
	orders := &staff{}
	s, _ := withButtons(t, &site{}, orders)
	right := "Bearer " + token
	for name, tt := range map[string]struct {
		authorization, body string
		change              func(*http.Request)
		want                int
	}{
		"no token":       {"", drain, nil, 401},
		"wrong token":    {right + "x", drain, nil, 401},
		"in the address": {"", drain, func(r *http.Request) { r.URL.RawQuery = "token=" + token }, 401},
		"in a cookie":    {"", drain, func(r *http.Request) { r.AddCookie(&http.Cookie{Name: "token", Value: token}) }, 401},
		"another's name": {right, drain, func(r *http.Request) { r.Host = "evil.example:9480" }, 421},
		"another's page": {right, drain, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		"another origin": {right, drain, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		"by GET":         {right, "", func(r *http.Request) { r.Method = http.MethodGet }, 405},
		"no JSON":        {right, "action=drain", nil, 400},
		"another key":    {right, `{"action": "drain", "backend": "a", "force": true}`, nil, 400},
		"too long":       {right, `{"backend": "` + strings.Repeat("x", maxOrder) + `"}`, nil, 400},
	} {
		if w := press(s, tt.authorization, tt.body, func(r *http.Request) {
			if tt.change != nil {
				tt.change(r)
			}
		}); w.Code != tt.want {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	// What a browser asks before another's page may send the header is not granted.
	w := press(s, "", "", func(r *http.Request) {
		r.Method, r.Header = http.MethodOptions, http.Header{"Origin": {"http://evil.example"}}
	})
	for k := range w.Header() {
		if strings.HasPrefix(k, "Access-Control") {
			t.Errorf("%s: %s", k, w.Header().Get(k))
		}
	}
	if w.Code/100 == 2 || len(orders.told) > 0 {
		t.Errorf("%d, told %v", w.Code, orders.told)
	}
	for i := range 20 {
		if w = press(s, "Bearer wrong", drain); w.Code == http.StatusTooManyRequests {
			break
		}
		if i == 19 {
			t.Error("one may guess for ever")
		}
	}
	if w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "too many wrong tokens") {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
}

// TestOtherNames: no part of the page is served by a name that is not the host's.
func TestOtherNames(t *testing.T) {
	s, _ := withButtons(t, &site{}, &staff{})
	for _, path := range []string{"/", "/page.js", "/style.css", "/api/overview", "/api/backends", "/nothing"} {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, nil)
		r.Host = "evil.example"
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, r)
		if w.Code != http.StatusMisdirectedRequest || w.Header().Get("Content-Security-Policy") != policy {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// FuzzOrder: whatever is sent, no panic, and only what is an order is given on.
func FuzzOrder(f *testing.F) {
	for _, b := range []string{drain, `{}`, `null`, `[]`, `{"weight": -1}`, `{"action": 7}`, "\x00", ""} {
		f.Add(b)
	}
	file := filepath.Join(f.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		f.Fatal(err)
	}
	guard := access.NewGuard(file, zap.NewNop())
	_, use, err := guard.Read()
	if err != nil {
		f.Fatal(err)
	}
	use()
	f.Fuzz(func(t *testing.T, body string) {
		orders := &staff{}
		w := press(New(&site{}, Options{Orders: orders, Guard: guard}), "Bearer "+token, body)
		if (w.Code == http.StatusOK) != (len(orders.told) == 1) || w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Errorf("%d, told %v: %s", w.Code, orders.told, w.Body)
		}
		if w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()) {
			t.Error(fmt.Sprint("no JSON: ", w.Body))
		}
	})
}

package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/health"
)

// fake is a daemon that answers what it is told to.
type fake struct {
	status Status
	stats  Stats
	err    error
	health map[string][]CheckedBackend // by service
}

func (f *fake) Status(context.Context) (Status, error) { return f.status, f.err }
func (f *fake) ReloadFile(_ context.Context, q ReloadRequest) (ReloadReport, error) {
	return ReloadReport{DryRun: q.DryRun, Changes: []string{"a → b"}}, f.err
}
func (f *fake) Services(context.Context) ([]ServiceInfo, error) { return nil, f.err }
func (f *fake) Backends(_ context.Context, service string) ([]BackendInfo, error) {
	return []BackendInfo{{Service: service}}, f.err
}
func (f *fake) Order(_ context.Context, o Order) ([]BackendInfo, error) {
	return []BackendInfo{{Service: o.Backend, Weight: o.Weight, Ordered: &Ordered{Action: o.Action}}}, f.err
}
func (f *fake) Stats(context.Context) (Stats, error) { return f.stats, f.err }

func (f *fake) Health(_ context.Context, service string) ([]CheckedBackend, error) {
	return f.health[service], f.err
}

// serve has f answer at a socket, whose path it returns.
func serve(t *testing.T, f *fake, more ...func(*Server)) string {
	t.Helper()
	path := filepath.Join(socketDir(t), "below", "a.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(f, zap.NewNop())
	for _, m := range more {
		m(s)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-done); err != nil {
			t.Error(err)
		}
	})
	return path
}

// socketDir is a directory with a short name, as a socket needs.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestAnswers(t *testing.T) {
	f := &fake{
		status: Status{PID: 7, Started: time.Unix(1e9, 0).UTC(), Config: "/etc/l4fwd.yaml", Reloads: 3, Backends: 9},
		stats: Stats{
			Flows: 5, Verdicts: map[string]uint64{"forwarded": 1 << 60},
			Services: []ServiceStats{{Name: "web", Backends: []BackendStats{{Address: netip.MustParseAddrPort("[2001:db8::1]:80"), Active: -1}}}},
		},
	}
	c := NewClient(serve(t, f))
	defer c.Close()
	status, err := c.Status(t.Context())
	if diff := cmp.Diff(f.status, status); err != nil || diff != "" {
		t.Error(err, diff)
	}
	stats, err := c.Stats(t.Context())
	if diff := cmp.Diff(f.stats, stats, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestBackends(t *testing.T) {
	c := NewClient(serve(t, &fake{}))
	defer c.Close()
	got, err := c.Backends(t.Context(), "a&b=c d")
	if err != nil || len(got) != 1 || got[0].Service != "a&b=c d" {
		t.Error(got, err)
	}
	got, err = c.Order(t.Context(), Order{Action: Weigh, Backend: "web/10.0.0.1:80", Weight: 7})
	if err != nil || len(got) != 1 || got[0].Service != "web/10.0.0.1:80" || got[0].Weight != 7 || got[0].Ordered.Action != Weigh {
		t.Error(got, err)
	}
	if all, err := c.Services(t.Context()); all != nil || err != nil {
		t.Error(all, err)
	}
}

func TestReload(t *testing.T) {
	c := NewClient(serve(t, &fake{}))
	defer c.Close()
	r, err := c.Reload(t.Context(), ReloadRequest{DryRun: true})
	if diff := cmp.Diff(ReloadReport{DryRun: true, Changes: []string{"a → b"}}, r); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestHealthByService(t *testing.T) {
	at := time.Unix(1e9, 0).UTC()
	one := CheckedBackend{
		Service: "a&b", Address: netip.MustParseAddrPort("[2001:db8::1]:80"),
		Health:  BackendHealth{State: health.Down, Since: at, Reason: "refused", Percent: 100, Checks: 9, Failed: 3},
		History: []health.Change{{At: at, From: health.Up, To: health.Down, Reason: "refused"}},
	}
	f := &fake{health: map[string][]CheckedBackend{"a&b": {one}, "": {one, one}}}
	c := NewClient(serve(t, f))
	defer c.Close()
	for service, want := range f.health {
		got, err := c.Health(t.Context(), service)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
}

func TestErrors(t *testing.T) {
	f := &fake{}
	c := NewClient(serve(t, f))
	defer c.Close()
	for kind, status := range map[error]int{
		ErrInvalid: http.StatusBadRequest, ErrNotFound: http.StatusNotFound, ErrConflict: http.StatusConflict,
		errors.New("broken"): http.StatusInternalServerError,
	} {
		f.err = Refusal(kind, fmt.Errorf("line one\nline two: %w", fs.ErrExist))
		_, err := c.Status(t.Context())
		var got *Error
		if !errors.As(err, &got) || *got != (Error{status, "line one\nline two: file already exists"}) {
			t.Errorf("%v: %#v", kind, err)
		}
		if known := status != http.StatusInternalServerError; errors.Is(err, kind) != known {
			t.Errorf("%v is %v: %v", err, kind, !known)
		}
	}
	if _, err := call[Status](t.Context(), c, http.MethodGet, "/v1/nothing", nil); err == nil || err.Error() != "404 Not Found" {
		t.Errorf("what nobody knows: %v", err)
	}
}

// TestNoAnswer: a daemon that is stopped is not waited for without end.
func TestNoAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path) // whose backlog takes the question
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c := NewClient(path)
	defer c.Close()
	c.patience = 10 * time.Millisecond
	want := "l4fwd at " + path + " has not answered for 10ms: is it stopped, or its machine overloaded?"
	if _, err := c.Status(t.Context()); err == nil || err.Error() != want {
		t.Error(err)
	}
}

// TestRequests: what is no request is refused before anybody is asked, whatever it is.
func TestRequests(t *testing.T) {
	type question struct {
		Text string `json:"text"`
	}
	var asked []string
	c := NewClient(serve(t, &fake{}, func(s *Server) {
		post(s, "/v1/echo", func(_ context.Context, q question) (question, error) {
			asked = append(asked, q.Text)
			return q, nil
		})
	}))
	defer c.Close()
	a, err := call[question](t.Context(), c, http.MethodPost, "/v1/echo", question{"hello"})
	if err != nil || a.Text != "hello" {
		t.Error(a, err)
	}
	for name, q := range map[string]any{
		"not the type": []int{1}, "another key": map[string]int{"number": 1}, "too long": question{strings.Repeat("x", maxBody)},
	} {
		if _, err := call[question](t.Context(), c, http.MethodPost, "/v1/echo", q); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff([]string{"hello"}, asked); diff != "" {
		t.Error(diff)
	}
}

// TestSocket: it is its owner's only, takes the place of a dead one and not of a live
// one, and is gone in the end, unless it is another's by then.
func TestSocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "a.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Lstat(path); err != nil || i.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%v %v", i.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) > 0 {
		t.Errorf("left behind: %v %v", all, err)
	}
	c := NewClient(path)
	defer c.Close()
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is l4fwd running") {
		t.Errorf("without a daemon: %v", err)
	}
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first took the second's socket along: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// What is no socket, and so not what a daemon has left behind, stays as it is.
func TestListenLeavesFilesAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keep")
	link := file + ".link"
	if err := errors.Join(os.WriteFile(file, []byte("precious"), 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "which is no socket") {
			t.Errorf("%s: %v", path, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("%s: %q %v", path, b, err)
		}
	}
	if all, err := os.ReadDir(filepath.Dir(file)); err != nil || len(all) != 2 {
		t.Errorf("left behind: %v %v", all, err)
	}
}

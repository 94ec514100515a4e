package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/metrics"
	"github.com/l4fwd/l4fwd/control/web"
)

// debugClient asks a daemon that does not run, which debug needs no more than that.
func debugClient(t *testing.T) (*Daemon, *admin.Client) {
	t.Helper()
	d, err := New(config.Defaults(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "l4fwd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "admin.sock")
	l, err := admin.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := admin.New(d, zap.NewNop())
	admin.HandleOutput(s, "POST "+admin.DebugPath, admin.DebugFormat, d.debug)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := admin.NewClient(socket)
	t.Cleanup(func() {
		c.Close()
		check(t, errors.Join(s.Shutdown(context.Background()), <-done))
	})
	return d, c
}

// TestDebug: Go's own tools read what comes.
func TestDebug(t *testing.T) {
	_, c := debugClient(t)
	for _, look := range []struct {
		q    admin.DebugRequest
		tool []string // that reads it; none: people
		want string
	}{
		{admin.DebugRequest{What: admin.DebugProfile, Duration: 300 * time.Millisecond}, []string{"pprof", "-raw"}, "cpu/nanoseconds"},
		{admin.DebugRequest{What: admin.DebugTrace, Duration: 100 * time.Millisecond}, []string{"trace", "-d=parsed"}, "StateTransition"},
		{admin.DebugRequest{What: admin.DebugHeap}, []string{"pprof", "-raw"}, "inuse_space/bytes"},
		{admin.DebugRequest{What: admin.DebugGoroutine}, nil, "(*Daemon).debug"},
	} {
		in, err := c.Debug(t.Context(), look.q)
		if err != nil {
			t.Errorf("%s: %v", look.q.What, err)
			continue
		}
		got, err := io.ReadAll(in)
		check(t, errors.Join(err, in.Close()))
		if look.tool != nil {
			file := filepath.Join(t.TempDir(), look.q.What)
			check(t, os.WriteFile(file, got, 0o600))
			if got, err = exec.CommandContext(t.Context(), "go", append(append([]string{"tool"}, look.tool...), file)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v", look.q.What, err)
			}
		}
		if !bytes.Contains(got, []byte(look.want)) {
			t.Errorf("%s: no %s in %.300s", look.q.What, look.want, got)
		}
	}
}

// TestDebugOneAtATime: a second one is refused, what makes no sense is, too, and a client
// that leaves ends what it asked for.
func TestDebugOneAtATime(t *testing.T) {
	d, c := debugClient(t)
	refused := func(q admin.DebugRequest, want error) {
		t.Helper()
		in, err := c.Debug(t.Context(), q)
		if !errors.Is(err, want) {
			t.Errorf("%+v: %v, want %v", q, err, want)
		}
		if err == nil {
			check(t, in.Close())
		}
	}
	refused(admin.DebugRequest{What: "colour"}, admin.ErrInvalid)
	refused(admin.DebugRequest{What: admin.DebugProfile}, admin.ErrInvalid)
	refused(admin.DebugRequest{What: admin.DebugTrace, Duration: -time.Second}, admin.ErrInvalid)
	refused(admin.DebugRequest{What: admin.DebugTrace, Duration: admin.DebugMax + 1}, admin.ErrInvalid)
	for _, what := range []string{admin.DebugProfile, admin.DebugTrace} {
		ctx, leave := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := c.Debug(ctx, admin.DebugRequest{What: what, Duration: admin.DebugMax})
			gone <- err
		}()
		eventually(t, what+" begins", d.debugging.Load)
		refused(admin.DebugRequest{What: admin.DebugHeap}, admin.ErrConflict)
		leave()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
		eventually(t, what+" ends", func() bool { return !d.debugging.Load() })
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestDebugEnds: when there is too much of it, or the daemon ends, what there is by then
// is all.
func TestDebugEnds(t *testing.T) {
	start := func(w io.Writer) error {
		_, err := w.Write(make([]byte, 11))
		return err
	}
	gone, running := make(chan struct{}), make(chan struct{})
	close(gone)
	for _, c := range []struct {
		most int
		d    *Daemon
	}{{10, &Daemon{gone: running}}, {11, &Daemon{gone: gone}}} {
		b, stopped := &debugBuffer{full: make(chan struct{}), most: c.most}, false
		stop := func() {
			stopped = true
			check(t, start(b))
		}
		if err := c.d.debugFor(t.Context(), time.Hour, b, start, stop); err != nil || !stopped || b.Len() != 22 {
			t.Errorf("%v, stopped %v, %d bytes", err, stopped, b.Len())
		}
	}
}

// TestDebugNowhereElse: what listens on the network says nothing of the process, and
// nothing has put itself on the default mux.
func TestDebugNowhereElse(t *testing.T) {
	d, _ := debugClient(t)
	serve := map[string]server{
		"metrics": metrics.New(d.sample, nil, zap.NewNop()), "page": web.New(d, web.Options{}),
	}
	for name, s := range serve {
		l := httptest.NewUnstartedServer(nil).Listener
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine", admin.DebugPath} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				r, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, strings.NewReader(`{"what":"goroutine"}`))
				if err != nil {
					t.Fatal(err)
				}
				a, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				check(t, a.Body.Close())
				if a.StatusCode != http.StatusNotFound && a.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("%s: %s %s: %s", name, method, path, a.Status)
				}
			}
		}
		check(t, errors.Join(s.Shutdown(t.Context()), <-done))
	}
	r := httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil)
	if _, pattern := http.DefaultServeMux.Handler(r); pattern != "" {
		t.Errorf("the default mux has %q", pattern)
	}
}

package metrics

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(testbed.Guard(m)) }

// served is a server on a port of its own, and how to ask it.
type served struct {
	*Server
	t    *testing.T
	url  string
	done chan error
}

func serve(t *testing.T, source func(context.Context) (*Sample, error)) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Server: New(source, nil, nil), t: t, url: "http://" + l.Addr().String(), done: make(chan error, 1)}
	go func() { s.done <- s.Serve(l) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-s.done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// get asks for a page, compressed or not, and returns its text.
func (s *served) get(path string, zipped bool) (status int, text string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	if zipped {
		req.Header.Set("Accept-Encoding", "gzip")
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err = errors.Join(err, r.Body.Close()); err != nil {
		s.t.Fatal(err)
	}
	if zipped {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			s.t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			s.t.Fatal(err)
		}
	}
	if r.StatusCode == http.StatusOK && strings.HasPrefix(path, "/metrics") && r.Header.Get("Content-Type") != contentType {
		s.t.Errorf("%s: %s", path, r.Header.Get("Content-Type"))
	}
	return r.StatusCode, string(b)
}

func TestPages(t *testing.T) {
	s := serve(t, func(context.Context) (*Sample, error) { return sampleOf(2, 2, 2, nil), nil })
	for _, c := range []struct {
		path   string
		zipped bool
		status int
		has    string
	}{
		{"/", false, 200, `href="/metrics/detail"`},
		{"/metrics", false, 200, "\nl4fwd_flows_opened_total 0\n"},
		{"/metrics", true, 200, "\nl4fwd_flows_opened_total 0\n"},
		{"/metrics/detail", true, 200, "\nl4fwd_service_flows{service=\"service-1\"} 0\n"},
		{"/metrics/other", false, 404, "not found"},
		{"/debug/pprof/", false, 404, "not found"},
	} {
		if status, text := s.get(c.path, c.zipped); status != c.status || !strings.Contains(text, c.has) {
			t.Errorf("%s: %d\n%s", c.path, status, text)
		}
	}
	r, err := http.Post(s.url+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Body.Close(); err != nil || r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v %v", r.Status, err)
	}
}

// TestOneSampleASecond: however many ask, the forwarder is asked once a second, and an
// error is not kept.
func TestOneSampleASecond(t *testing.T) {
	asked, broken := 0, errors.New("no answer")
	var fail error
	s := serve(t, func(context.Context) (*Sample, error) {
		asked++
		return &Sample{}, fail
	})
	now := time.Unix(1000, 0)
	s.now = func() time.Time { return now }
	for _, step := range []struct {
		later  time.Duration
		fail   error
		status int
		asked  int
	}{
		{0, broken, 503, 1}, {0, broken, 503, 2}, {0, nil, 200, 3}, {0, nil, 200, 3}, {999 * time.Millisecond, broken, 200, 3},
		{time.Millisecond, broken, 503, 4}, {0, nil, 200, 5}, {time.Hour, nil, 200, 6},
	} {
		now, fail = now.Add(step.later), step.fail
		if status, text := s.get("/metrics", false); status != step.status || asked != step.asked {
			t.Errorf("%+v: %d, asked %d times: %.100s", step, status, asked, text)
		}
	}
}

// TestManyReaders: those beyond the last place wait for one, and are told to come again if
// there is none in time.
func TestManyReaders(t *testing.T) {
	began, goOn := make(chan struct{}, 1), make(chan struct{})
	s := serve(t, func(context.Context) (*Sample, error) {
		began <- struct{}{}
		<-goOn
		return &Sample{}, nil
	})
	s.readers.patience = 10 * time.Millisecond
	var all sync.WaitGroup
	read := func() {
		all.Go(func() {
			if status, _ := s.get("/metrics", false); status != 200 {
				t.Errorf("status %d", status)
			}
		})
	}
	for range atATime {
		read()
	}
	<-began
	for len(s.readers.places) < atATime {
		time.Sleep(time.Millisecond)
	}
	if status, _ := s.get("/metrics", false); status != 503 {
		t.Errorf("one more: status %d", status)
	}
	s.readers.patience = time.Minute
	read()
	close(goOn)
	all.Wait()
}

// TestStalledReaders: those who do not read what they have asked for keep nobody else from
// it, however many they are.
func TestStalledReaders(t *testing.T) {
	sample := sampleOf(2000, 10, 2, nil) // far more than what connections hold
	s := serve(t, func(context.Context) (*Sample, error) { return sample, nil })
	stalled := func() (n int) {
		s.readers.mu.Lock()
		defer s.readers.mu.Unlock()
		for x := range s.readers.all {
			if x.slowness() > slow {
				n++
			}
		}
		return n
	}
	for _, n := range []int{2, atATime} {
		for stalled() < n {
			c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			if _, err := io.WriteString(c, "GET /metrics/detail HTTP/1.1\r\nHost: l4fwd\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			for now := stalled(); stalled() == now; {
				time.Sleep(slow / 10)
			}
		}
		for _, path := range []string{"/metrics", "/metrics/detail"} {
			if status, text := s.get(path, true); status != 200 || !strings.Contains(text, "l4fwd_") {
				t.Errorf("beside %d who do not read, %s: %d", n, path, status)
			}
		}
	}
}

// TestShutdownWaits: when Shutdown has returned nobody is asked for a sample, even if
// somebody was when it began and the time ran out.
func TestShutdownWaits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	began, asking := make(chan struct{}), false
	s := New(func(ctx context.Context) (*Sample, error) {
		asking = true
		close(began)
		<-ctx.Done() // the reader is cut off
		asking = false
		return nil, ctx.Err()
	}, nil, nil)
	served, read := make(chan error, 1), make(chan struct{})
	go func() { served <- s.Serve(l) }()
	go func() {
		defer close(read)
		if r, err := http.Get("http://" + l.Addr().String() + "/metrics"); err == nil {
			_ = r.Body.Close()
		}
	}()
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) || asking {
		t.Errorf("%v, asking %v", err, asking)
	}
	<-read
	http.DefaultClient.CloseIdleConnections()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

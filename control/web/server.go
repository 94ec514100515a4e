package web

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
)

const (
	keep     = time.Second      // how long a snapshot is as good as a new one
	patience = 5 * time.Second  // with whoever is to give a new one
	slowest  = 30 * time.Second // for an answer to be read
	atATime  = 16               // answers made
)

// policy lets the page use what is served beside it, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

//go:embed page
var page embed.FS

// files are all that is served as it is.
var files = []struct{ path, name, kind string }{
	{"/{$}", "page/index.html", "text/html; charset=utf-8"},
	{"/style.css", "page/style.css", "text/css; charset=utf-8"},
	{"/page.js", "page/page.js", "text/javascript; charset=utf-8"},
	{"/orders.js", "page/orders.js", "text/javascript; charset=utf-8"},
	{"/icon.svg", "page/icon.svg", "image/svg+xml"},
}

// Source is who knows what the page shows, as admin.Daemon has it. Its methods are
// called from any goroutine.
type Source interface {
	Status(context.Context) (admin.Status, error)
	Stats(context.Context) (admin.Stats, error)
	Services(context.Context) ([]admin.ServiceInfo, error)
	Backends(ctx context.Context, service string) ([]admin.BackendInfo, error)
	Health(ctx context.Context, service string) ([]admin.CheckedBackend, error)
}

// Server serves the page. Make one with New.
type Server struct {
	source  Source
	log     *zap.Logger
	http    http.Server
	history history
	life    context.Context // ends with Shutdown
	end     context.CancelFunc
	turns   chan struct{} // whoever makes an answer has one of atATime
	guard   *access.Guard // of the buttons, nil if there are none
	noting  sync.WaitGroup

	mu    sync.Mutex // held while a snapshot is taken, so that all others wait for that one
	last  *snapshot
	taken time.Time
}

// Options of New. The zero value is a page that changes nothing, under any name.
type Options struct {
	Hosts  *access.Hosts // the names that the page is found by; nil: all
	Orders Orderer       // who carries out what buttons say; nil: there are none
	Guard  *access.Guard // who may press them, not nil with Orders
	Log    *zap.Logger   // nil: silent
}

// New returns a server that nothing listens for yet.
func New(source Source, o Options) *Server {
	log := o.Log
	if log == nil {
		log = zap.NewNop()
	}
	s := &Server{source: source, log: log, turns: make(chan struct{}, atATime)}
	s.life, s.end = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	for _, f := range files {
		mux.HandleFunc("GET "+f.path, func(w http.ResponseWriter, _ *http.Request) {
			b, err := page.ReadFile(f.name)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			s.send(w, f.kind, b)
		})
	}
	mux.HandleFunc("GET /api/overview", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(n *snapshot) any { return s.overview(n, r.URL.Query().Get("find")) })
	})
	mux.HandleFunc("GET /api/backends", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(n *snapshot) any { return n.backendsOf(r.URL.Query()["service"]) })
	})
	if o.Orders != nil {
		s.buttons(mux, o.Orders, o.Guard)
	}
	s.http = http.Server{
		Handler: guarded(o.Hosts.Handler(mux, nil)), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: slowest + patience, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: zap.NewStdLog(log), BaseContext: func(net.Listener) context.Context { return s.life },
	}
	return s
}

// Serve answers on l until Shutdown, and closes it. It may be called once.
func (s *Server) Serve(l net.Listener) error {
	s.noting.Go(s.note)
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown ends Serve. Answers that are being written when ctx is done are cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.noting.Wait()
	return err
}

// note keeps the history until Shutdown.
func (s *Server) note() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(s.life, patience)
		stats, err := s.source.Stats(ctx)
		cancel()
		if err != nil {
			s.log.Debug("history", zap.Error(err)) // a gap in the graphs
		} else {
			s.history.add(time.Now(), &stats)
		}
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
	}
}

// guarded sends what a browser must know with every answer.
func guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
		} {
			w.Header().Set(k, v)
		}
		h.ServeHTTP(w, r)
	})
}

// mostUnread is how large an answer may wait in memory without a turn until it is read.
const mostUnread = 256 << 10

// answer sends what of makes of a snapshot. It has a turn while that is made and no longer,
// or those who do not read theirs would keep all others out; but a large one keeps it, or
// they would fill the memory.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, of func(*snapshot) any) {
	select {
	case s.turns <- struct{}{}:
	default:
		http.Error(w, "too many at a time", http.StatusServiceUnavailable)
		return
	}
	back := sync.OnceFunc(func() { <-s.turns })
	defer back()
	b, status, err := s.make(r.Context(), of)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	if len(b) <= mostUnread {
		back()
	}
	s.send(w, "application/json", b)
}

// make makes an answer.
func (s *Server) make(ctx context.Context, of func(*snapshot) any) (b []byte, status int, err error) {
	n, err := s.snapshot(ctx)
	if err != nil {
		return nil, http.StatusServiceUnavailable, err
	}
	b, err = json.Marshal(of(n))
	return b, http.StatusInternalServerError, err
}

func (s *Server) send(w http.ResponseWriter, kind string, b []byte) {
	w.Header().Set("Content-Type", kind)
	if _, err := w.Write(b); err != nil {
		s.log.Debug("answer", zap.Error(err)) // whoever asked is gone
	}
}

// snapshot is the last one, or a new one if that is too old.
func (s *Server) snapshot(ctx context.Context) (*snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.taken) < keep {
		return s.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n, err := take(ctx, s.source)
	if err != nil {
		return nil, err
	}
	s.last, s.taken = n, time.Now()
	return n, nil
}

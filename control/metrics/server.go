package metrics

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/access"
)

const (
	keep     = time.Second      // how long a sample is as good as a new one
	patience = 5 * time.Second  // with whoever is to give a new one
	slowest  = 30 * time.Second // for a page to be read
	chunk    = 64 << 10         // bytes of a page that are written at a time
)

// contentType is that of Prometheus' text format.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// Server serves the pages. Make one with New.
type Server struct {
	source  func(context.Context) (*Sample, error)
	log     *zap.Logger
	http    http.Server
	readers *readers

	mu    sync.Mutex // held while a sample is taken, so that all others wait for that one
	last  *Sample
	taken time.Time
	now   func() time.Time
}

// New returns a server that asks source for samples, one at a time. Browsers are answered
// by names that hosts knows, everybody else by any. log may be nil.
func New(source func(context.Context) (*Sample, error), hosts *access.Hosts, log *zap.Logger) *Server {
	if log == nil {
		log = zap.NewNop()
	}
	s := &Server{source: source, log: log, readers: newReaders(), now: time.Now}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, totals) })
	mux.HandleFunc("GET /metrics/detail", func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, detail) })
	mux.HandleFunc("GET /{$}", front)
	s.http = http.Server{
		Handler: hosts.Handler(mux, access.Browser), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: slowest + patience, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: zap.NewStdLog(log),
	}
	return s
}

// Serve answers on l until Shutdown, and closes it.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown ends Serve. Pages that are being written when ctx is done are cut off. No
// sample is asked for any more once it has returned.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	for range atATime { // and their handlers have ended
		s.readers.places <- struct{}{}
	}
	return err
}

// sample is the last one, or a new one if that is too old.
func (s *Server) sample(ctx context.Context) (*Sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && s.now().Sub(s.taken) < keep {
		return s.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last, err := s.source(ctx)
	if err != nil {
		return nil, err
	}
	s.last, s.taken = last, s.now()
	return last, nil
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, families []family) {
	to := s.readers.enter(r.Context(), w)
	if to == nil {
		http.Error(w, "too many at a time", http.StatusServiceUnavailable)
		return
	}
	defer to.leave()
	sample, err := s.sample(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Vary", "Accept-Encoding")
	zipped := strings.Contains(r.Header.Get("Accept-Encoding"), "gzip")
	if zipped {
		w.Header().Set("Content-Encoding", "gzip")
	}
	s.note(to.work(func() error { return write(to, zipped, families, sample) }))
}

// write writes a page in chunks.
func write(to io.Writer, zipped bool, families []family, s *Sample) error {
	if !zipped {
		return newWriter(to).page(families, s)
	}
	out := bufio.NewWriterSize(to, chunk)
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err == nil {
		err = newWriter(z).page(families, s)
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = out.Flush()
	}
	return err
}

// note says that a page was not read to its end, which is the reader's business.
func (s *Server) note(err error) {
	if err != nil {
		s.log.Debug("metrics", zap.Error(err))
	}
}

// front is for who looks by hand.
func front(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, `<!doctype html><title>l4fwd</title><h1>l4fwd</h1><p><a href="/metrics">totals</a>, <a href="/metrics/detail">detail</a></p>`)
}

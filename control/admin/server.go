package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Daemon is who carries out what is asked for. Its methods are called from any
// goroutine. Errors reach the client as text; those that wrap ErrInvalid, ErrNotFound or
// ErrConflict with a status that says so.
type Daemon interface {
	Status(context.Context) (Status, error)
	Stats(context.Context) (Stats, error)
	ReloadFile(context.Context, ReloadRequest) (ReloadReport, error)
	Services(context.Context) ([]ServiceInfo, error)
	Backends(ctx context.Context, service string) ([]BackendInfo, error)
	Order(context.Context, Order) ([]BackendInfo, error)
	// Health is of one service, or of all if that is "".
	Health(ctx context.Context, service string) ([]CheckedBackend, error)
}

// Errors of a Daemon that are not its own failures.
var (
	ErrInvalid  = errors.New("invalid request")
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("not possible now")
)

// Refusal makes err one of the errors above without a word about it in the text.
func Refusal(kind, err error) error { return &refusal{kind, err} }

type refusal struct{ kind, err error }

func (r *refusal) Error() string   { return r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{r.kind, r.err} }

// maxBody bounds a request, in bytes.
const maxBody = 1 << 20

// Server answers requests. Make one with New.
type Server struct {
	http http.Server
	mux  *http.ServeMux
	log  *zap.Logger
}

// New returns a server that nothing listens for yet.
func New(d Daemon, log *zap.Logger) *Server {
	s := &Server{mux: http.NewServeMux(), log: log}
	s.http = http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(log)}
	get(s, "/v1/status", d.Status)
	get(s, "/v1/stats", d.Stats)
	post(s, "/v1/reload", d.ReloadFile)
	get(s, "/v1/services", d.Services)
	s.mux.HandleFunc("GET /v1/backends", func(w http.ResponseWriter, r *http.Request) {
		a, err := d.Backends(r.Context(), r.URL.Query().Get("service"))
		s.reply(w, r, a, err)
	})
	post(s, "/v1/order", d.Order)
	s.health(d)
	return s
}

// Serve answers what comes to l until Shutdown, which is no error.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// Shutdown takes no request any more and waits for those that run, until ctx is done;
// then it ends them.
func (s *Server) Shutdown(ctx context.Context) error { return shutdown(ctx, &s.http) }

func shutdown(ctx context.Context, s *http.Server) error {
	err := s.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.Close())
	}
	return err
}

// get adds a request without a body.
func get[A any](s *Server, path string, f func(context.Context) (A, error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		a, err := f(r.Context())
		s.reply(w, r, a, err)
	})
}

// post adds a request with a body.
func post[Q, A any](s *Server, path string, f func(context.Context, Q) (A, error)) {
	s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		q, err := request[Q](w, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		a, err := f(r.Context(), q)
		s.reply(w, r, a, err)
	})
}

// request is what the body asks for; no body is the zero value. It has a minute to come.
func request[Q any](w http.ResponseWriter, r *http.Request) (q Q, err error) {
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Now().Add(stuck)); err != nil {
		return q, fmt.Errorf("request: %w", err)
	}
	defer func() { err = errors.Join(err, c.SetReadDeadline(time.Time{})) }() // or it would end a long answer
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	in.DisallowUnknownFields()
	if err := in.Decode(&q); err != nil && !errors.Is(err, io.EOF) {
		return q, Refusal(ErrInvalid, fmt.Errorf("request: %w", err))
	}
	return q, nil
}

func (s *Server) reply(w http.ResponseWriter, r *http.Request, a any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.write(w, http.StatusOK, a)
}

// failure is the answer to what failed.
type failure struct {
	Error string `json:"error"`
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, ErrInvalid):
		status = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, ErrConflict):
		status = http.StatusConflict
	}
	s.log.Debug("request failed", zap.String("request", r.Method+" "+r.URL.Path), zap.Error(err))
	s.write(w, status, failure{err.Error()})
}

func (s *Server) write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error": "the answer is no JSON"}`)
		s.log.Error("answer", zap.Error(err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(b, '\n')); err != nil {
		s.log.Debug("answer", zap.Error(err)) // whoever asked is gone
	}
}

package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// stuck is how long a client may take to read before it is given up.
const stuck = time.Minute

// Output is an answer that comes bit by bit. It fails once the client has gone, or has
// not read for a minute.
type Output struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

var _ io.Writer = (*Output)(nil)

// Write sends more; the first call makes the request one that has succeeded.
func (o *Output) Write(b []byte) (int, error) {
	o.begun = true
	if err := o.control.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
		return 0, fmt.Errorf("answer: %w", err)
	}
	n, err := o.w.Write(b)
	if err != nil {
		err = fmt.Errorf("answer: %w", err)
	}
	return n, err
}

// Flush sends what has been written.
func (o *Output) Flush() error {
	if err := o.control.Flush(); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// HandleOutput adds a request beyond those of New that is answered bit by bit, in a format of its own. An
// error of f before it has written anything reaches the client as those of a Daemon do;
// later ones break the answer off. pattern is as http.ServeMux has it. Before Serve.
func HandleOutput[Q any](s *Server, pattern, format string, f func(context.Context, Q, *Output) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		q, err := request[Q](w, r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		out := &Output{w: w, control: http.NewResponseController(w)}
		w.Header().Set("Content-Type", format)
		err = f(r.Context(), q, out)
		switch {
		case err == nil:
		case !out.begun:
			s.fail(w, r, err)
		default:
			s.log.Debug("answer broken off", zap.String("request", r.Method+" "+r.URL.Path), zap.Error(err))
			panic(http.ErrAbortHandler)
		}
	})
}

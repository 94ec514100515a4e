package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
)

// Orderer carries out what a button says, as admin.Daemon does.
type Orderer interface {
	Order(context.Context, admin.Order) ([]admin.BackendInfo, error)
}

// maxOrder bounds what a button sends, in bytes.
const maxOrder = 4 << 10

// buttons adds what changes something. A browser sends the header with the token only
// because the page's own script says so, for another's page cannot ask for it without
// being allowed to first, which nothing here does: there is no request to forge. What a
// browser says to come from elsewhere is refused nevertheless.
func (s *Server) buttons(mux *http.ServeMux, o Orderer, guard *access.Guard) {
	s.guard = guard
	elsewhere := http.NewCrossOriginProtection()
	mux.HandleFunc("POST /api/order", func(w http.ResponseWriter, r *http.Request) {
		if err := elsewhere.Check(r); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if no := guard.Check(r); no != nil {
			no.Head(w.Header())
			http.Error(w, no.Text, no.Status)
			return
		}
		s.order(w, r, o)
	})
}

// order does what a button says, and answers with the backends as they are then.
func (s *Server) order(w http.ResponseWriter, r *http.Request, by Orderer) {
	var o admin.Order
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder))
	in.DisallowUnknownFields()
	if err := in.Decode(&o); err != nil {
		http.Error(w, fmt.Sprintf("order: %v", err), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	backends, err := by.Order(ctx, o)
	fields := []zap.Field{zap.String("action", string(o.Action)), zap.String("backend", o.Backend), zap.Uint32("weight", o.Weight), zap.String("from", r.RemoteAddr)}
	if err != nil {
		s.log.Warn("a button was pressed in vain", append(fields, zap.Error(err))...)
		http.Error(w, err.Error(), status(err))
		return
	}
	s.log.Info("a button was pressed", fields...)
	s.mu.Lock()
	s.last = nil // the next to ask sees it
	s.mu.Unlock()
	b, err := json.Marshal(backends)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.send(w, "application/json", b)
}

func status(err error) int {
	switch {
	case errors.Is(err, admin.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, admin.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, admin.ErrConflict):
		return http.StatusConflict
	}
	return http.StatusServiceUnavailable
}

package admin

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/l4fwd/l4fwd/control/health"
)

// CheckedBackend is what is known of a real server that is checked.
type CheckedBackend struct {
	Service string         `json:"service"`
	Address netip.AddrPort `json:"address"`
	Health  BackendHealth  `json:"health"`
	// History is the last changes of its state, oldest first, 32 at most.
	History []health.Change `json:"history"`
}

// Health asks for the backends that are checked, in the order of the configuration; of
// one service, or of all if that is "".
func (c *Client) Health(ctx context.Context, service string) ([]CheckedBackend, error) {
	return call[[]CheckedBackend](ctx, c, http.MethodGet, "/v1/health?"+url.Values{"service": {service}}.Encode(), nil)
}

// health answers that.
func (s *Server) health(d Daemon) {
	s.mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, r *http.Request) {
		a, err := d.Health(r.Context(), r.URL.Query().Get("service"))
		s.reply(w, r, a, err)
	})
}

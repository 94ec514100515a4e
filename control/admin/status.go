package admin

import (
	"context"
	"net/http"
	"time"
)

// Status is who the daemon is and what it is doing.
type Status struct {
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Config  string    `json:"config"` // the file, "" if there is none
	// Loaded is when the configuration in force was read, Reloads how many there were
	// since the start.
	Loaded   time.Time `json:"loaded"`
	Reloads  int       `json:"reloads"`
	Workers  int       `json:"workers"`
	Services int       `json:"services"`
	Backends int       `json:"backends"`
}

// Status asks who the daemon is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Stats asks for the statistics.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return call[Stats](ctx, c, http.MethodGet, "/v1/stats", nil)
}

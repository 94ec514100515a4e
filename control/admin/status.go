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
	Config  string    `json:"config"` // the file, by its path from /; "" if there is none
	// Loaded is when the configuration in force was read, Reloads how many there were
	// since the start.
	Loaded   time.Time `json:"loaded"`
	Reloads  int       `json:"reloads"`
	Workers  int       `json:"workers"`
	Services int       `json:"services"`
	Backends int       `json:"backends"`
	// Discovery is nil where only the file says what is served.
	Discovery *DiscoveryStatus `json:"discovery,omitempty"`
}

// DiscoveryStatus is how following etcd goes.
type DiscoveryStatus struct {
	Endpoints []string  `json:"endpoints"`
	Prefix    string    `json:"prefix"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`    // it is connected, or not
	Revision  int64     `json:"revision"` // of etcd, last seen; 0: it has never answered
	InForce   int64     `json:"in_force"` // of what is in force
	// Recalled says that it is what was in force when l4fwd ended the last time.
	Recalled bool `json:"recalled"`
	Services int  `json:"services"` // of etcd, in force
	Backends int  `json:"backends"`
	// Refused is how many documents are not in force as they are, Problems why, the first
	// hundred.
	Refused  int      `json:"refused"`
	Problems []string `json:"problems,omitempty"`
	// Refusal is why nothing newer is in force, "" if nothing keeps it from that.
	Refusal string `json:"refusal,omitempty"`
	// RefusedSince is since when there has been something refused, zero if nothing is.
	RefusedSince time.Time `json:"refused_since,omitzero"`
	Error        string    `json:"error,omitempty"` // the last one of the connection
	ErrorAt      time.Time `json:"error_at,omitzero"`
}

// Status asks who the daemon is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Stats asks for the statistics.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return call[Stats](ctx, c, http.MethodGet, "/v1/stats", nil)
}

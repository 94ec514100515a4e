package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// Where flows are asked for and ended, by POST.
const (
	FlowsPath     = "/v1/flows"
	KillFlowsPath = "/v1/flows/kill"
)

// FlowsFormat is the media type of the answer: JSON objects, one a line.
const FlowsFormat = "application/x-ndjson"

// FlowFilter is which flows are meant: those that all of it fits. The zero value fits
// all. An end of a flow is named as address, prefix, address:port, or :port.
type FlowFilter struct {
	Service  string   `json:"service,omitempty"`  // its name
	Client   string   `json:"client,omitempty"`   // an end, as above
	VIP      string   `json:"vip,omitempty"`      // another
	Local    string   `json:"local,omitempty"`    // l4fwd's, towards the backend; Full-NAT only
	Backend  string   `json:"backend,omitempty"`  // the real server's
	Protocol string   `json:"protocol,omitempty"` // tcp or udp
	Mode     string   `json:"mode,omitempty"`     // as Flow has it
	States   []string `json:"states,omitempty"`   // one of these, as Flow has it
	// Times in nanoseconds, 0: whatever it is.
	MinAge  time.Duration `json:"min_age,omitempty"`
	MaxAge  time.Duration `json:"max_age,omitempty"`
	MinIdle time.Duration `json:"min_idle,omitempty"`
	MaxIdle time.Duration `json:"max_idle,omitempty"`
	// Both directions together.
	MinPackets uint64 `json:"min_packets,omitempty"`
	MinBytes   uint64 `json:"min_bytes,omitempty"`
	MaxBytes   uint64 `json:"max_bytes,omitempty"` // 0: whatever it is
}

// FlowsRequest asks for flows.
type FlowsRequest struct {
	FlowFilter
	Limit int  `json:"limit,omitempty"` // so many at most; 0: all
	Count bool `json:"count,omitempty"` // only how many, a FlowCount
}

// FlowCount is how many flows there are.
type FlowCount struct {
	Flows uint64 `json:"flows"`
}

// Flow is a flow as it was a moment ago.
type Flow struct {
	Service  string         `json:"service"`
	Protocol string         `json:"protocol"`
	Mode     string         `json:"mode"`
	State    string         `json:"state"`
	Client   netip.AddrPort `json:"client"`
	VIP      netip.AddrPort `json:"vip"`
	// Local is l4fwd's end towards the backend, nil but in Full-NAT.
	Local   *netip.AddrPort `json:"local,omitempty"`
	Backend netip.AddrPort  `json:"backend"`
	Worker  int             `json:"worker"`
	// Seconds since it began, since its last packet, and until it expires without
	// another.
	Age  float64 `json:"age"`
	Idle float64 `json:"idle"`
	Left float64 `json:"left"`
	// To the backend and from it, as received; packets modulo 2^32.
	PacketsTo   uint32 `json:"packets_to"`
	PacketsFrom uint32 `json:"packets_from"`
	BytesTo     uint64 `json:"bytes_to"`
	BytesFrom   uint64 `json:"bytes_from"`
}

// KillFlowsRequest asks to end flows.
type KillFlowsRequest struct {
	FlowFilter
	All bool `json:"all,omitempty"` // a filter that fits all is meant
}

// KilledFlows is what came of it.
type KilledFlows struct {
	Ended  uint64 `json:"ended"`
	Resets uint64 `json:"resets"` // RSTs sent, one to each end of a TCP connection
}

// Flows has f called with each flow that fits, in no order, as they come, until ctx is
// done, or f fails, whose error it returns.
func (c *Client) Flows(ctx context.Context, q FlowsRequest, f func(*Flow) error) (err error) {
	q.Count = false
	in, err := c.Stream(ctx, http.MethodPost, FlowsPath, q)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it has been read, or nobody wants the rest
	for d := json.NewDecoder(in); ; {
		var one Flow
		switch err := d.Decode(&one); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("flows: %w", err)
		}
		if err := f(&one); err != nil {
			return err
		}
	}
}

// CountFlows returns how many flows fit.
func (c *Client) CountFlows(ctx context.Context, filter FlowFilter) (FlowCount, error) {
	return call[FlowCount](ctx, c, http.MethodPost, FlowsPath, FlowsRequest{FlowFilter: filter, Count: true})
}

// KillFlows ends the flows that fit. If ctx is done before all are, some have been.
func (c *Client) KillFlows(ctx context.Context, q KillFlowsRequest) (KilledFlows, error) {
	return call[KilledFlows](ctx, c, http.MethodPost, KillFlowsPath, q)
}

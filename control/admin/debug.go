package admin

import (
	"context"
	"io"
	"net/http"
	"time"
)

// DebugPath is where the daemon is asked about its own process, by POST.
const DebugPath = "/v1/debug"

// DebugFormat is the media type of the answer.
const DebugFormat = "application/octet-stream"

// What a DebugRequest can ask for.
const (
	DebugProfile   = "profile"   // CPU, for go tool pprof
	DebugTrace     = "trace"     // execution trace, for go tool trace
	DebugHeap      = "heap"      // memory of the Go heap, for go tool pprof
	DebugGoroutine = "goroutine" // stacks, as text
)

// DebugMax bounds how long a profile or a trace takes.
const DebugMax = 5 * time.Minute

// DebugRequest asks for one look at the daemon's process.
type DebugRequest struct {
	What string `json:"what"`
	// Duration is of a profile or a trace, more than 0 and at most DebugMax; of no
	// meaning for the rest. In nanoseconds.
	Duration time.Duration `json:"duration,omitempty"`
}

// Debug asks for it and returns what go tool pprof, go tool trace or people read, once
// it is complete. The daemon gives up when ctx is done. The caller closes it.
func (c *Client) Debug(ctx context.Context, q DebugRequest) (io.ReadCloser, error) {
	return c.Stream(ctx, http.MethodPost, DebugPath, q)
}

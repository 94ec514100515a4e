package admin

import (
	"context"
	"io"
	"net/http"
	"time"
)

// CapturePath is where captures are asked for, by POST.
const CapturePath = "/v1/capture"

// CaptureFormat is the media type of the answer.
const CaptureFormat = "application/x-pcapng"

// CaptureRequest is what packets are captured. The zero value is all of them, as
// received and as sent, whole, without an end.
type CaptureRequest struct {
	Filter  string `json:"filter,omitempty"`  // pcap-filter(7)
	Point   string `json:"point,omitempty"`   // rx, tx or both; "": both
	Service string `json:"service,omitempty"` // its name
	Backend string `json:"backend,omitempty"` // address, or address:port
	// Drops leaves only what is dropped, Reason only what is dropped for one reason.
	Drops   bool   `json:"drops,omitempty"`
	Reason  string `json:"reason,omitempty"`
	SnapLen int    `json:"snaplen,omitempty"` // bytes of each frame; 0: all
	Count   uint64 `json:"count,omitempty"`   // of frames, then it ends; 0: never
	// Duration is after what it ends, 0: never; in nanoseconds.
	Duration time.Duration `json:"duration,omitempty"`
}

// Capture asks for packets: a pcapng file that grows until the capture ends by itself,
// or ctx is done. The caller closes it.
func (c *Client) Capture(ctx context.Context, q CaptureRequest) (io.ReadCloser, error) {
	return c.Stream(ctx, http.MethodPost, CapturePath, q)
}

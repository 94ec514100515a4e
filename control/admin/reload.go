package admin

import (
	"context"
	"net/http"
)

// ReloadRequest asks the daemon to read its file again.
type ReloadRequest struct {
	DryRun bool `json:"dry_run"` // only say what would change
}

// ReloadReport is what a reload has changed, or would.
type ReloadReport struct {
	DryRun bool `json:"dry_run"`
	// Changes in words, as config.Diff has them.
	Changes []string `json:"changes"`
	// Warnings are of what is probably not meant, or costs flows.
	Warnings []string `json:"warnings"`
	Seconds  float64  `json:"seconds"` // that the change took, reading the file not counted
}

// Reload has the daemon read its file again. A file that is not valid changes nothing, and
// the error, an ErrInvalid, names all that is wrong with it.
func (c *Client) Reload(ctx context.Context, q ReloadRequest) (ReloadReport, error) {
	return call[ReloadReport](ctx, c, http.MethodPost, "/v1/reload", q)
}

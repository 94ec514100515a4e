package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Client asks a daemon. It may be used by several goroutines at once.
type Client struct {
	base  string // of URLs
	at    string // for people
	token string // "" for none
	http  http.Client

	patience time.Duration // with a question
}

// NewClient returns a client of the daemon that listens at a socket. Nothing is opened
// before the first request.
func NewClient(path string) *Client {
	c := &Client{base: "http://l4fwd", at: path, patience: answerTime}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	return c
}

// Close gives back idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is the daemon's answer to what it would or could not do.
type Error struct {
	Status int // of HTTP
	Text   string
}

// Error is the daemon's own words.
func (e *Error) Error() string { return e.Text }

// Is tells which of ErrInvalid, ErrNotFound and ErrConflict it was.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrInvalid:
		return e.Status == http.StatusBadRequest
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrConflict:
		return e.Status == http.StatusConflict
	}
	return false
}

// answerTime is how long a question may take. What changes something may take longer.
const answerTime = 30 * time.Second

// call asks and decodes the answer; q is nil for a request without a body.
func call[A any](ctx context.Context, c *Client, method, path string, q any) (a A, err error) {
	if method == http.MethodGet {
		late := fmt.Errorf("l4fwd at %s has not answered for %v: is it stopped, or its machine overloaded?", c.at, c.patience)
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, c.patience, late)
		defer cancel()
		defer func() {
			if err != nil && errors.Is(context.Cause(ctx), late) {
				err = late
			}
		}()
	}
	body, err := c.Stream(ctx, method, path, q)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := json.NewDecoder(body).Decode(&a); err != nil {
		return a, fmt.Errorf("answer to %s %s: %w", method, path, err)
	}
	return a, nil
}

// Stream asks and returns the answer as it comes, which the caller closes. q is encoded
// as JSON, nil is a request without a body. An answer that is none but an error is one,
// of type *Error.
func (c *Client) Stream(ctx context.Context, method, path string, q any) (io.ReadCloser, error) {
	var in io.Reader
	if q != nil {
		b, err := json.Marshal(q)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	var f failure
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		f.Error = res.Status // no daemon of ours, or one that does not know the request
	}
	if cerr := res.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	return nil, &Error{res.StatusCode, f.Error}
}

// explain says what it means that a request did not get through.
func (c *Client) explain(err error) error {
	switch {
	case c.token != "":
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: is l4fwd running, and is admin_socket this one? (%w)", c.at, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is its owner's only: run this as the user that l4fwd runs as (%w)", c.at, err)
	}
	return fmt.Errorf("asking l4fwd at %s: %w", c.at, err)
}

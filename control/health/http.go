package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
)

const (
	// maxBody is how much of a body is looked at.
	maxBody = 64 << 10
	// maxAnswer bounds all that is read of an answer, headers included.
	maxAnswer = maxBody + 64<<10
	// maxInterim is how many interim responses (RFC 9110 section 15.2) are read over.
	maxInterim = 8
)

// probeHTTP asks once, with HTTP/1.1 and no connection kept. Redirections are not
// followed: they are statuses like others.
func (t *Target) probeHTTP(ctx context.Context) (string, error) {
	c, err := t.dial(ctx, "tcp", 0)
	if err != nil {
		return "", err
	}
	// The socket itself, or TLS would wait to say goodbye.
	defer c.Close() //nolint:errcheck // reset either way
	check := &t.Check.HTTP
	host := check.Host
	if host == "" {
		host = t.Address.String()
	}
	var conn io.ReadWriter = c
	if t.Check.Kind == HTTPS {
		secure := tls.Client(c, t.tlsConfig())
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: l4fwd\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		check.Method, check.Path, host); err != nil {
		return "", err
	}
	found, err := check.judge(conn)
	if err != nil && ctx.Err() != nil {
		return "", os.ErrDeadlineExceeded // half an answer is none in time, whatever it looks like
	}
	return found, err
}

// reading is what reads an answer, and is used again: its buffer is most of the memory
// that a check takes.
type reading struct {
	limited io.LimitedReader
	in      *bufio.Reader
}

var readings = sync.Pool{New: func() any {
	r := new(reading)
	r.in = bufio.NewReader(&r.limited)
	return r
}}

// judge reads an answer.
func (h *HTTPCheck) judge(conn io.Reader) (string, error) {
	r := readings.Get().(*reading)
	defer readings.Put(r)
	r.limited = io.LimitedReader{R: conn, N: maxAnswer}
	r.in.Reset(&r.limited)
	defer func() { r.limited.R = nil }()
	found, err := h.read(r.in)
	if errors.Is(err, errClosed) && r.limited.N == 0 {
		return "", fmt.Errorf("no HTTP answer in the first %d KiB", maxAnswer>>10)
	}
	return found, err
}

// read is judge from a reader that is bounded.
func (h *HTTPCheck) read(in *bufio.Reader) (string, error) {
	for range maxInterim {
		r, err := http.ReadResponse(in, &http.Request{Method: h.Method})
		if err != nil {
			return "", fmt.Errorf("no HTTP answer: %w", unexpectedEnd(err))
		}
		if r.StatusCode >= 100 && r.StatusCode < 200 && r.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		found := fmt.Sprintf("HTTP status %d", r.StatusCode)
		if !slices.ContainsFunc(h.Statuses, func(s [2]int) bool { return s[0] <= r.StatusCode && r.StatusCode <= s[1] }) {
			return "", errors.New(found)
		}
		if h.Body == nil {
			return found, nil
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		switch {
		case h.Body.Match(body):
			return found + ", body as expected", nil
		case err != nil:
			return "", fmt.Errorf("%s, reading its body: %w", found, err)
		}
		return "", fmt.Errorf("%s, but the body does not match", found)
	}
	return "", errors.New("too many interim responses")
}

// errClosed says that more should have come.
var errClosed = errors.New("the connection was closed")

// unexpectedEnd gives the end of a connection a name.
func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errClosed
	}
	return err
}

func (t *Target) tlsConfig() *tls.Config {
	name := t.Check.TLS.Name
	if name == "" {
		name = t.Check.HTTP.Host
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		name = strings.Trim(name, "[]")
	}
	if name == "" {
		name = t.Address.Addr().String() // compared, but never sent
	}
	return &tls.Config{
		ServerName:         name,
		InsecureSkipVerify: !t.Check.TLS.Verify,
	}
}

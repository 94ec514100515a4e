package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/access"
)

// Bounds of what strangers can make a Remote do.
const (
	remoteConns   = 128              // open at a time; see access.Share
	remoteShare   = 16               // of them, from one address
	remoteHead    = 16 << 10         // bytes of a request without its body
	remoteIdle    = time.Minute      // between two requests
	remoteGoodbye = time.Second      // for what is refused to be sent to its end
	remotePace    = 10 * time.Second // for a handshake, and for a request's head
)

// Remote takes a Server's requests by network: over TLS, from whoever has the token. It
// speaks HTTP/1.1 only, so that a bound on connections is one on requests. Make one with
// NewRemote.
type Remote struct {
	http http.Server
	tls  *tls.Config
}

// connKey finds a request's connection, a net.Conn, in its context.
type connKey struct{}

// NewRemote returns a Remote that nothing listens for yet. Whatever changes something is
// logged with the address that it came from.
func NewRemote(s *Server, guard *access.Guard, c *tls.Config) *Remote {
	r := &Remote{tls: c}
	r.http = http.Server{
		ReadHeaderTimeout: remotePace, IdleTimeout: remoteIdle, MaxHeaderBytes: remoteHead,
		ErrorLog:    log.New(strangers{s.log}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if no := guard.Check(q); no != nil {
				// Its body is not waited for.
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(remoteGoodbye))
				w.Header().Set("Connection", "close")
				no.Head(w.Header())
				s.write(w, no.Status, failure{no.Text})
				return
			}
			conn, _ := q.Context().Value(connKey{}).(net.Conn)
			access.Keep(conn)
			if q.Method != http.MethodGet {
				s.log.Info("a command by network", zap.String("request", q.URL.Path), zap.String("from", q.RemoteAddr))
			}
			s.mux.ServeHTTP(w, q)
		}),
	}
	return r
}

// Serve answers what comes to l until Shutdown, which is no error.
func (r *Remote) Serve(l net.Listener) error {
	if err := r.http.Serve(tls.NewListener(access.Share(l, remoteConns, remoteShare), r.tls)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("commands by network: %w", err)
	}
	return nil
}

// Shutdown is Server.Shutdown.
func (r *Remote) Shutdown(ctx context.Context) error { return shutdown(ctx, &r.http) }

// strangers writes what net/http has to say to the log: handshakes that fail are no news.
type strangers struct{ log *zap.Logger }

func (s strangers) Write(b []byte) (int, error) {
	level := zap.WarnLevel
	if bytes.Contains(b, []byte("TLS handshake error")) {
		level = zap.DebugLevel
	}
	s.log.Log(level, string(bytes.TrimSpace(b)))
	return len(b), nil
}

// RemoteOptions are where and how a client by network asks.
type RemoteOptions struct {
	Server string // https://HOST:PORT
	Token  string
	CA     string // file of PEM that the server's certificate must come from; "": the system's
}

// NewRemoteClient returns a client of a daemon with admin_listen. Nothing is opened before
// the first request. The token goes to that server only: redirects and proxies are not
// followed.
func NewRemoteClient(o RemoteOptions) (*Client, error) {
	u, err := url.Parse(o.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("server %q: expected https://HOST:PORT", o.Server)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if o.CA != "" {
		b, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("certificate authority: %s has no certificate as PEM", o.CA)
		}
	}
	out := &Client{base: "https://" + u.Host, at: u.Host, token: o.Token, patience: answerTime}
	out.http.Transport = &http.Transport{
		DialContext:     (&net.Dialer{Timeout: remotePace}).DialContext,
		TLSClientConfig: c, TLSHandshakeTimeout: remotePace,
	}
	out.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return out, nil
}

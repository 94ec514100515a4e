package control

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/metrics"
	"github.com/l4fwd/l4fwd/control/web"
)

// Bounds of what strangers can open: a connection costs tens of kilobytes, and
// hundreds while an answer is not read. A browser has six
// at most, a Prometheus one for each page; who comes by a proxy, or ssh -L, has its address.
const (
	openConns = 128 // at a time, see access.Share
	openShare = 32  // of them, from one address
)

// goodbye is how long requests may take to end when the daemon does.
const goodbye = time.Second

// startMetrics serves metrics.
func (d *Daemon) startMetrics(ctx context.Context, down *undo) error {
	if at := d.cfg.MetricsListen; at.IsValid() {
		d.serveAt(ctx, down, at, open{metrics.New(d.sample, d.gates.hosts, d.log.Named("metrics"))}, "no metrics will be served", "no more metrics are served")
	}
	return nil
}

// startWeb serves the status page.
func (d *Daemon) startWeb(ctx context.Context, down *undo) error {
	if at := d.cfg.WebListen; at.IsValid() {
		d.serveAt(ctx, down, at, open{web.New(d, d.webOptions())}, "no status page will be served", "the status page is served no more")
	}
	return nil
}

var _ web.Source = (*Daemon)(nil)

// server is what serve needs of one: Shutdown ends Serve, at the latest when its context
// is done.
type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// open is a server that answers whoever reaches its port.
type open struct{ server }

// Serve bounds connections, as admin.Remote does itself.
func (o open) Serve(l net.Listener) error {
	return o.server.Serve(access.Share(l, openConns, openShare))
}

// serveAt has s answer at an address of the host's. Without it l4fwd forwards all the same,
// so that failure is no end: that nobody answers is what readers notice by themselves.
// never and ended are what is logged then.
func (d *Daemon) serveAt(ctx context.Context, down *undo, at netip.AddrPort, s server, never, ended string) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", at.String())
	if err != nil {
		d.log.Warn(never, zap.Error(err))
		return
	}
	d.serve(down, l, s, ended)
}

// serve has s answer at l until the daemon ends; ended is logged if it does before.
func (d *Daemon) serve(down *undo, l net.Listener, s server, ended string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); err != nil {
			d.log.Error(ended, zap.Error(err))
		}
	}()
	down.add(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		err := s.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = nil // somebody was still reading; Shutdown has ended that
		}
		<-done
		return err
	})
}

package control

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/connlog"
	"github.com/l4fwd/l4fwd/dataplane"
)

// connLog is the connection log, once a service has wanted one; then it stays.
type connLog struct {
	*connlog.Log
	end  context.CancelFunc
	done chan struct{}
}

// connLogOptions is what c says of it; ok is whether a service wants it.
func connLogOptions(c *config.Config) (o connlog.Options, ok bool) {
	o = connlog.Options{Path: c.ConnectionLogFile, Size: int64(c.ConnectionLogSize) << 20, Keep: c.ConnectionLogKeep}
	return o, slices.ContainsFunc(c.Services, func(s config.Service) bool { return s.ConnectionLog != 0 })
}

// connLogSlots is the size of a worker's ring, 2.5 MiB: the flows that end in a hundredth of
// a second if it does nothing else.
const connLogSlots = 1 << 14

// startConnLog comes before the workers run, so that it ends after them and has what they
// say at last.
func (d *Daemon) startConnLog(_ context.Context, down *undo) error {
	down.add(func() error {
		if d.connLog == nil {
			return nil
		}
		d.connLog.end()
		select {
		case <-d.connLog.done:
		case <-time.After(goodbye):
			d.log.Error("the connection log takes too long to be written: its end is lost", zap.String("file", d.cfg.ConnectionLogFile))
		}
		return nil
	})
	return d.logConnections(func(f func(*dataplane.Worker)) error {
		for _, w := range d.dp.Workers {
			f(w)
		}
		return nil
	})
}

// logConnections does what the configuration says of the connection log; tell runs a
// function on all workers.
func (d *Daemon) logConnections(tell func(func(*dataplane.Worker)) error) error {
	o, wanted := connLogOptions(d.cfg)
	switch {
	case d.connLog != nil:
		d.connLog.Set(o)
		return nil
	case !wanted:
		return nil
	}
	from := connlog.Source{Clock: d.clock, Modes: flowModes, Protocols: flowProtocols}
	for range d.dp.Workers {
		from.Flows = append(from.Flows, dataplane.NewFlowLog(connLogSlots))
	}
	if err := tell(func(w *dataplane.Worker) { w.LogFlows(from.Flows[w.ID()]) }); err != nil {
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	l := &connLog{Log: connlog.New(from, o, d.log.Named("connections")), end: end, done: make(chan struct{})}
	d.connLog = l
	go func() {
		defer close(l.done)
		if err := guarded("the connection log", func() error { return l.Run(ctx) }); err != nil {
			d.log.Error("connections are logged no more", zap.Error(err))
		}
	}()
	return nil
}

// connLogStats are what has become of the flows that have ended; nil without a log. lost
// are those that found no room on the way to it.
func (d *Daemon) connLogStats(lost uint64) *admin.ConnectionLogStats {
	if d.connLog == nil {
		return nil
	}
	written, failed := d.connLog.Counts()
	return &admin.ConnectionLogStats{Written: written, Lost: lost + failed}
}

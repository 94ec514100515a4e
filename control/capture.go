package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/capture"
	"github.com/l4fwd/l4fwd/control/capture/filter"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/cbpf"
	"github.com/l4fwd/l4fwd/packet"
)

var errCapturing = admin.Refusal(admin.ErrConflict, errors.New("another capture is running, and there is one at a time"))

// captureMemory is what a worker's ring may take, in bytes; captureFrame is what a frame
// in it takes beside its data.
const (
	captureMemory = 16 << 20
	captureFrame  = 320
)

// capture writes what packets the workers see, until ctx is done, the daemon ends, or as
// long as was asked for. From any goroutine.
func (d *Daemon) capture(ctx context.Context, q admin.CaptureRequest, out *admin.Output) error {
	o, err := tapOptions(&q)
	if err != nil {
		return admin.Refusal(admin.ErrInvalid, err)
	}
	if err := d.beginCapture(ctx); err != nil {
		return err
	}
	defer func() { <-d.capturing }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if q.Duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, q.Duration)
		defer cancel()
	}
	go func() {
		select {
		case <-d.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	s := capture.Session{Filter: q.Filter, Comment: captureComment(&q), Count: q.Count}
	if err := d.tap(ctx, &q, o, &s); err != nil {
		return err
	}
	err = s.Run(ctx, out, out.Flush)
	// Also where the client has gone. It can only fail if the daemon ends.
	untap := func() { _ = d.onWorkers(context.Background(), func(w *dataplane.Worker) { w.Tap(nil) }) }
	if lost := d.onLoop(context.Background(), untap); lost != nil && !errors.Is(lost, errNotRunning) {
		err = errors.Join(err, lost)
	}
	return err
}

// captureEnds is how long a capture waits for the one before, whose reader may have gone
// without that being known here: a busy daemon hears of the new one as soon as of that.
const captureEnds = 2 * time.Second

// beginCapture waits for a capture's turn. Whoever gets it takes one out of capturing.
func (d *Daemon) beginCapture(ctx context.Context) error {
	late := time.NewTimer(captureEnds)
	defer late.Stop()
	select {
	case d.capturing <- struct{}{}:
		return nil
	case <-d.gone:
		return errNotRunning
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return errCapturing
	}
}

// tap gives every worker its ring, of as many frames as there is memory for.
func (d *Daemon) tap(ctx context.Context, q *admin.CaptureRequest, o dataplane.TapOptions, s *capture.Session) error {
	var err error
	lost := d.onLoop(ctx, func() {
		known := q.Service == "" || slices.ContainsFunc(d.names, func(n serviceNames) bool { return n.name == q.Service })
		if !known {
			err = admin.Refusal(admin.ErrNotFound, fmt.Errorf("there is no service %q", q.Service))
			return
		}
		if frame := d.umem.FrameSize(); o.SnapLen == 0 || o.SnapLen > frame {
			o.SnapLen = frame
		}
		for o.Frames = 1; 2*o.Frames*(o.SnapLen+captureFrame) <= captureMemory && o.Frames < 1<<15; {
			o.Frames *= 2
		}
		o.Clock, s.SnapLen = d.clock, o.SnapLen
		s.Epoch = time.Now().UnixNano() - d.clock()
		for _, l := range d.links {
			s.NICs = append(s.NICs, l.name)
		}
		for range d.dp.Workers {
			s.Taps = append(s.Taps, dataplane.NewTap(o))
		}
		if err = d.onWorkers(ctx, func(w *dataplane.Worker) { w.Tap(s.Taps[w.ID()]) }); err != nil {
			_ = d.onWorkers(context.Background(), func(w *dataplane.Worker) { w.Tap(nil) }) // which cannot fail without a limit
		}
	})
	return errors.Join(lost, err)
}

// tapOptions is what the workers are told of a request, as far as it says.
func tapOptions(q *admin.CaptureRequest) (o dataplane.TapOptions, err error) {
	points := map[string]dataplane.TapPoint{
		"": dataplane.TapRX | dataplane.TapTX, "both": dataplane.TapRX | dataplane.TapTX, "rx": dataplane.TapRX, "tx": dataplane.TapTX,
	}
	var ok bool
	if o.Points, ok = points[q.Point]; !ok {
		return o, fmt.Errorf("point %q: want rx, tx or both", q.Point)
	}
	if q.Drops || q.Reason != "" {
		if o.Points == dataplane.TapTX {
			return o, errors.New("what is dropped is not sent: want point rx or both")
		}
		if o.Verdicts, err = drops(q.Reason); err != nil {
			return o, err
		}
	}
	if q.Filter != "" {
		code, err := filter.Compile(q.Filter)
		if err == nil {
			o.Filter, err = cbpf.New(code)
		}
		if err != nil {
			return o, err
		}
	}
	if o.Service = q.Service; q.Backend != "" {
		if o.Backend, err = backendOf(q.Backend); err != nil {
			return o, err
		}
	}
	if q.SnapLen < 0 || q.Duration < 0 {
		return o, errors.New("snaplen and duration cannot be negative")
	}
	o.SnapLen = q.SnapLen
	return o, nil
}

// drops are the verdicts that drop, or the one of that name.
func drops(reason string) (*[dataplane.NumVerdicts]bool, error) {
	var all [dataplane.NumVerdicts]bool
	found := false
	for v := range dataplane.NumVerdicts {
		all[v] = v.IsDrop() && (reason == "" || v.String() == reason)
		found = found || all[v]
	}
	if !found {
		return nil, fmt.Errorf("reason %q is none that packets are dropped for: docs/drops.md has them all", reason)
	}
	return &all, nil
}

// backendOf reads an address, with a port or without.
func backendOf(s string) (e conntrack.Endpoint, err error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return conntrack.Endpoint{Addr: packet.AddrFrom(a)}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return e, fmt.Errorf("backend %q: want an address, or an address and a port", s)
	}
	return conntrack.Endpoint{Addr: packet.AddrFrom(ap.Addr()), Port: ap.Port()}, nil
}

// captureComment says in the file what the filter does not.
func captureComment(q *admin.CaptureRequest) string {
	s := "captured by l4fwd"
	for _, part := range []struct{ name, value string }{
		{"service", q.Service}, {"backend", q.Backend}, {"reason", q.Reason}, {"point", q.Point},
	} {
		if part.value != "" {
			s += ", " + part.name + " " + part.value
		}
	}
	if q.Drops {
		s += ", drops only"
	}
	return s
}

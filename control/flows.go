package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/dataplane"
)

// killPause is how long to wait for a worker that has no RSTs to spare.
const killPause = 2 * time.Millisecond

// walkPause keeps a walk from taking more than a tenth of a worker's time: what a slice
// costs it is some 9 microseconds.
const walkPause = 100 * time.Microsecond

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// flows writes the flows that fit, a line each, or how many there are. From any
// goroutine but that of Run: the workers are asked here, a slice at a time, between
// two bursts each.
func (d *Daemon) flows(ctx context.Context, q admin.FlowsRequest, out *admin.Output) error {
	f, err := d.flowFilter(ctx, &q.FlowFilter)
	if err != nil {
		return err
	}
	if q.Limit < 0 {
		return admin.Refusal(admin.ErrInvalid, errors.New("limit cannot be negative"))
	}
	buffer := bufio.NewWriterSize(out, 1<<16)
	lines := json.NewEncoder(buffer)
	var n uint64
	err = d.walk(ctx, func(worker int, s *dataplane.FlowSlice) error {
		for i := range s.N {
			one := s.Flow(i)
			if !f.fits(&one) {
				continue
			}
			if n++; !q.Count {
				if err := lines.Encode(flowOf(worker, &one)); err != nil {
					return err
				}
			}
			if q.Limit > 0 && n == uint64(q.Limit) {
				return errEnough
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if q.Count {
		if err := lines.Encode(admin.FlowCount{Flows: n}); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

// killFlows ends the flows that fit. As flows.
func (d *Daemon) killFlows(ctx context.Context, q admin.KillFlowsRequest, out *admin.Output) error {
	f, err := d.flowFilter(ctx, &q.FlowFilter)
	if err != nil {
		return err
	}
	if !q.All && f.fitsAll() {
		return admin.Refusal(admin.ErrInvalid, errors.New("that would be all flows: if they are meant, say so by --yes"))
	}
	var total admin.KilledFlows
	err = d.walk(ctx, func(worker int, s *dataplane.FlowSlice) error {
		var which []int
		for i := range s.N {
			if one := s.Flow(i); f.fits(&one) {
				which = append(which, i)
			}
		}
		return d.end(ctx, worker, s, which, &total)
	})
	if err != nil {
		return fmt.Errorf("%w; %d flows have been ended before that", err, total.Ended)
	}
	return json.NewEncoder(out).Encode(total)
}

// end has a worker end flows of a slice, a few at a time.
func (d *Daemon) end(ctx context.Context, worker int, s *dataplane.FlowSlice, which []int, total *admin.KilledFlows) error {
	for len(which) > 0 {
		var done, ended, resets int
		err := d.onWorker(ctx, worker, func(w *dataplane.Worker) { done, ended, resets = w.EndFlows(s, which) })
		if err != nil {
			return err
		}
		which = which[done:]
		total.Ended += uint64(ended)
		total.Resets += uint64(resets)
		if done > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(killPause):
		}
	}
	return nil
}

// walk shows f all flows, slice by slice, until it fails.
func (d *Daemon) walk(ctx context.Context, f func(worker int, s *dataplane.FlowSlice) error) error {
	for i := range d.dp.Workers {
		for s := new(dataplane.FlowSlice); !s.Done; {
			if err := d.onWorker(ctx, i, func(w *dataplane.Worker) { w.CopyFlows(s) }); err != nil {
				return err
			}
			if err := f(i, s); err != nil {
				return err
			}
			time.Sleep(walkPause)
		}
	}
	return nil
}

// flowFilter reads a filter and sees that the service it names is one: a slip there
// would look like a service without flows. One that is gone may have some still.
func (d *Daemon) flowFilter(ctx context.Context, q *admin.FlowFilter) (*flowFilter, error) {
	f, err := readFlowFilter(q)
	if err != nil {
		return nil, admin.Refusal(admin.ErrInvalid, err)
	}
	if q.Service == "" {
		return f, nil
	}
	known := false
	err = d.onLoop(ctx, func() {
		known = slices.ContainsFunc(d.names, func(n serviceNames) bool { return n.name == q.Service }) ||
			slices.ContainsFunc(d.leavers, func(l leaver) bool { return l.service != nil && l.service.Name == q.Service })
	})
	if err == nil && !known {
		err = admin.Refusal(admin.ErrNotFound, fmt.Errorf("there is no service %q", q.Service))
	}
	return f, err
}

// flowOf is how a flow is shown.
func flowOf(worker int, w *dataplane.Flow) admin.Flow {
	f := admin.Flow{
		Service: w.Service, Protocol: flowProtocols[w.Client.Proto], Mode: flowModes[w.Mode], State: w.State.String(),
		Client: addrPort(&w.Client), VIP: addrPort(&w.VIP), Backend: addrPort(&w.Backend), Worker: worker,
		Age: w.Age.Seconds(), Idle: w.Idle.Seconds(), Left: w.Left.Seconds(),
		PacketsTo: w.Packets[conntrack.Forward], PacketsFrom: w.Packets[conntrack.Reply],
		BytesTo: w.Bytes[conntrack.Forward], BytesFrom: w.Bytes[conntrack.Reply],
	}
	if w.Mode == conntrack.FullNAT {
		local := addrPort(&w.Local)
		f.Local = &local
	}
	return f
}

func addrPort(e *conntrack.Endpoint) netip.AddrPort {
	return netip.AddrPortFrom(e.Addr.Netip(), e.Port)
}

package bench

import (
	"context"
	"errors"
	"runtime"

	"github.com/l4fwd/l4fwd/bench/cpu"
)

// beside goes over the lane loop by loop, each time with the worker and then with
// the limit. It returns how many heap objects there had been at the start, and
// the worker's nanoseconds.
func (m *meter) beside(ctx context.Context, lane *lane) (before uint64, nanos int64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l, err := newLimit(m.o.MaxFlows, max(m.r.flows(), 1), m.o.FrameSize)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	l.feed(lane.frames) // warms caches up
	busy := cpu.NewThread()
	m.rounds, m.limits = make([]float64, 0, m.o.Loops), make([]float64, 0, m.o.Loops)
	before = allocated()
	n := float64(len(lane.frames))
	for m.until = 2; m.until <= m.o.Loops; m.until++ {
		from := busy.Now()
		m.drive(ctx, 0, lane)
		took := busy.Since(from)
		if ctx.Err() != nil {
			return before, nanos, ctx.Err()
		}
		from = busy.Now()
		l.feed(lane.frames)
		m.limits = append(m.limits, float64(busy.Since(from))/n)
		m.rounds = append(m.rounds, float64(took)/n)
		nanos += took
	}
	return before, nanos, nil
}

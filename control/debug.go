package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/pprof"
	"runtime/trace"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
)

// Go's own packages for this, and not net/http/pprof, whose handlers stand on the
// default mux of everything else that is served.

var errDebugging = admin.Refusal(admin.ErrConflict, errors.New("another look at the process is going on, and there is one at a time"))

// debugMemory is from how many bytes on a trace ends early: it is kept until it is
// complete, since its writer in Go's runtime must not wait for whoever asked.
const debugMemory = 64 << 20

// debug looks at the daemon's own process. From any goroutine.
func (d *Daemon) debug(ctx context.Context, q admin.DebugRequest, out *admin.Output) error {
	if (q.What == admin.DebugProfile || q.What == admin.DebugTrace) && (q.Duration <= 0 || q.Duration > admin.DebugMax) {
		return admin.Refusal(admin.ErrInvalid, fmt.Errorf("%v: want more than 0s and at most %v", q.Duration, admin.DebugMax))
	}
	if !d.debugging.CompareAndSwap(false, true) {
		return errDebugging
	}
	defer d.debugging.Store(false)
	b := &debugBuffer{full: make(chan struct{}), most: debugMemory}
	var err error
	switch q.What {
	case admin.DebugProfile:
		err = d.debugFor(ctx, q.Duration, b, pprof.StartCPUProfile, pprof.StopCPUProfile)
	case admin.DebugTrace:
		err = d.debugFor(ctx, q.Duration, b, trace.Start, trace.Stop)
	case admin.DebugHeap:
		err = pprof.Lookup("heap").WriteTo(b, 0)
	case admin.DebugGoroutine:
		// 1, since 2 holds all threads up, the workers among them, while it writes.
		err = pprof.Lookup("goroutine").WriteTo(b, 1)
	default:
		return admin.Refusal(admin.ErrInvalid, fmt.Errorf("%q: want %s, %s, %s or %s", q.What,
			admin.DebugProfile, admin.DebugTrace, admin.DebugHeap, admin.DebugGoroutine))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", q.What, err)
	}
	_, err = out.Write(b.Bytes())
	return err
}

// debugFor lets something run for a while. It is stopped when ctx is done, which is an
// error, and, without one, when the daemon ends or the buffer is full.
func (d *Daemon) debugFor(ctx context.Context, span time.Duration, b *debugBuffer, start func(io.Writer) error, stop func()) error {
	if err := start(b); err != nil {
		return admin.Refusal(admin.ErrConflict, err) // it runs already, started elsewhere in the process
	}
	enough := time.NewTimer(span)
	defer enough.Stop()
	defer stop() // it returns when all has been written
	select {
	case <-enough.C:
	case <-b.full:
	case <-d.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// debugBuffer closes full once it holds more than most bytes. It takes more all the same:
// what is written is of use as a whole.
type debugBuffer struct {
	bytes.Buffer
	full   chan struct{}
	most   int
	closed bool
}

func (b *debugBuffer) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	if b.Len() > b.most && !b.closed {
		b.closed = true
		close(b.full)
	}
	return n, err
}

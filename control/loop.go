package control

import (
	"context"
	"errors"
)

// errNotRunning is what onLoop and all that need it say outside of Run.
var errNotRunning = errors.New("the daemon does not run")

// onLoop runs f on the goroutine of Run, to which the daemon's state belongs, between
// two other things that it does, and waits until it is done. With an error f has not run
// and will not. From any goroutine but that one, which would wait for itself.
//
// While f runs nobody looks after NICs: what waits for a server, a disk or a person is
// for the caller to do before or after.
func (d *Daemon) onLoop(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case d.jobs <- func() {
		defer close(done)
		f()
	}:
	case <-d.gone:
		return errNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done // the loop has taken it, and runs it at once
	return nil
}

package health

import "context"

// job is a check to be made.
type job struct {
	*entry
	target Target
}

// maxIdle is how many goroutines wait for another check at a time. A new one has to make
// its stack larger, several times, before it is large enough for a check, which is a
// twentieth of what one costs.
const maxIdle = 64

// begin has a check made, by a goroutine that has made one before if there is any that
// waits, and if it need not end first, see Options.Enter.
func (e *Engine) begin(ctx context.Context, j job) {
	select {
	case e.idle <- j:
	default:
		e.jobs.Go(func() { e.work(ctx, j) })
	}
}

// work makes a check, and others while there is room among those that wait.
func (e *Engine) work(ctx context.Context, j job) {
	for {
		e.check(ctx, j.entry, &j.target)
		if !e.mayWait() {
			return
		}
		select {
		case j = <-e.idle:
		case <-ctx.Done():
			return
		}
		e.mu.Lock()
		e.waiting--
		e.mu.Unlock()
	}
}

// mayWait counts the caller among those that wait, if it may be one.
func (e *Engine) mayWait() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.opt.Enter != nil || e.waiting >= maxIdle {
		return false
	}
	e.waiting++
	return true
}

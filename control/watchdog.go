package control

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/internal/sdnotify"
)

// watchdog is when to tell the service manager that all is well: twice as often as
// it asks for. nil, which is never, if it does not ask.
func watchdog() (<-chan time.Time, func()) {
	period := sdnotify.Watchdog() / 2
	if period <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(period)
	return t.C, t.Stop
}

// vouch tells the service manager that the loop lives, which calls this, and all
// workers do. If one does not answer nothing is said, and in the end the manager ends
// the process: a bound socket whose worker hangs is a service nobody forwards.
func (d *Daemon) vouch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statsPatience)
	defer cancel()
	err := d.onWorkers(ctx, func(*dataplane.Worker) {})
	if err == nil {
		err = sdnotify.Send("WATCHDOG=1")
	}
	if err != nil {
		d.log.Error("the service manager is not told that all is well", zap.Error(err))
	}
}

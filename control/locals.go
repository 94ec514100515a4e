package control

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/dataplane"
)

// Local addresses that are no more keep their ids, of which there are 65,536, for as long
// as flows use them. To see that none does, all flows have to be looked at: only when there
// are many such addresses, and again when there are others, or after a while.
const (
	manyLeft  = 1024
	tidyAgain = time.Minute
)

// tidying is the last such look.
type tidying struct {
	runs  bool
	build uint64 // of the registry, when it began
	over  time.Time
}

// tidyLocals lets ids of local addresses go to others that no flow has any more.
func (d *Daemon) tidyLocals(ctx context.Context, now time.Time) {
	n, build := d.registry.LeftLocals()
	if n < manyLeft || d.tidied.runs || d.tidied.build == build && now.Sub(d.tidied.over) < tidyAgain {
		return
	}
	d.tidied.runs, d.tidied.build = true, build
	d.beside.Go(func() {
		var used dataplane.LocalIDs
		err := d.walk(ctx, func(_ int, s *dataplane.FlowSlice) error {
			s.Locals(&used)
			return nil
		})
		_ = d.onLoop(ctx, func() { // or the daemon ends
			d.tidied.runs, d.tidied.over = false, time.Now()
			if err != nil {
				d.log.Debug("local addresses keep their ids", zap.Error(err))
				return
			}
			d.log.Debug("local addresses that are no more are forgotten", zap.Int("of", n), zap.Int("forgotten", d.registry.ForgetLocals(&used, build)))
		})
	})
}

package control

import (
	"context"
	"net/netip"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/control/plan"
)

// startPathMTU listens for what routers say of tunnels' packets, if there are tunnels.
// Without it l4fwd knows the next hops' MTUs only, so that a failure is no end.
func (d *Daemon) startPathMTU(_ context.Context, down *undo) error {
	ends := plan.TunnelEnds(d.cfg)
	if len(ends) == 0 {
		return nil
	}
	l, err := pathmtu.Listen(ends, func(end netip.Addr, mtu int) {
		if d.follower.Limit(end, mtu) {
			d.log.Info("the way to a backend is narrower than the next hop", zap.Stringer("backend", end), zap.Int("mtu", mtu))
		}
	})
	if err != nil {
		d.log.Warn("path MTUs of tunnels will not be learned", zap.Error(err))
		return nil
	}
	down.add(l.Close)
	return nil
}

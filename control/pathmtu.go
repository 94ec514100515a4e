package control

import (
	"context"
	"net/netip"
	"reflect"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/control/plan"
)

// startPathMTU listens for what routers say of tunnels' packets, if there are tunnels.
func (d *Daemon) startPathMTU(_ context.Context, down *undo) error {
	d.listenPathMTU()
	down.add(d.closePathMTU)
	return nil
}

// listenPathMTU listens for the tunnels that there are now. Without it l4fwd knows the
// next hops' MTUs only, so that a failure is no end.
func (d *Daemon) listenPathMTU() {
	ends := plan.TunnelEnds(d.effective())
	if reflect.DeepEqual(ends, d.tunnelEnds) {
		return
	}
	if err := d.closePathMTU(); err != nil {
		d.log.Debug("path MTUs", zap.Error(err))
	}
	d.tunnelEnds = ends
	if len(ends) == 0 {
		return
	}
	l, err := pathmtu.Listen(ends, func(end netip.Addr, mtu int) {
		if d.follower.Limit(end, mtu) {
			d.log.Info("the way to a backend is narrower than the next hop", zap.Stringer("backend", end), zap.Int("mtu", mtu))
		}
	})
	if err != nil {
		d.log.Warn("path MTUs of tunnels will not be learned", zap.Error(err))
		return
	}
	d.pathMTU = l
}

func (d *Daemon) closePathMTU() error {
	l := d.pathMTU
	if d.pathMTU = nil; l == nil {
		return nil
	}
	return l.Close()
}

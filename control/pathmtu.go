package control

import (
	"context"
	"reflect"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
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
	ends := plan.TunnelEnds(d.services())
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
	l, err := pathmtu.Listen(ends, d.hearPathMTU)
	if err != nil {
		d.log.Warn("path MTUs of tunnels will not be learned", zap.Error(err))
		return
	}
	d.pathMTU = l
}

// hearPathMTU believes what a router is said to have said, unless it quotes a packet that
// no flow has sent, as one that somebody makes up does (RFC 5927).
func (d *Daemon) hearPathMTU(r pathmtu.Report) {
	if r.Quote.Src.IsValid() && !d.hasSent(&r) {
		d.log.Debug("the way to a backend: an ICMP error about no flow", zap.Stringer("backend", r.Dst), zap.Int("mtu", r.MTU))
		return
	}
	if d.follower.Limit(r.Dst, r.MTU) {
		d.log.Info("the way to a backend is narrower than the next hop", zap.Stringer("backend", r.Dst), zap.Int("mtu", r.MTU))
	}
}

// Who sends many such errors must not keep workers busy: of more than these in a second
// the rest is not believed. A flow that goes on to be too big makes others.
const maxQuotes = 200

// quotePatience is how long workers have for an answer.
const quotePatience = 100 * time.Millisecond

// hasSent reports whether a worker has a flow that may have sent what r quotes.
func (d *Daemon) hasSent(r *pathmtu.Report) (sent bool) {
	dp := d.workers.Load()
	if dp == nil || !d.quotes.allow(time.Now()) {
		return false
	}
	q := &r.Quote
	tuple := packet.Tuple{
		Src: packet.AddrFrom(q.Src.Addr()), SrcPort: q.Src.Port(),
		Dst: packet.AddrFrom(q.Dst.Addr()), DstPort: q.Dst.Port(), Proto: q.Proto,
	}
	backend := packet.AddrFrom(r.Dst)
	ctx, cancel := context.WithTimeout(context.Background(), quotePatience)
	defer cancel()
	for _, w := range dp.Workers {
		var has bool
		if err := w.Do(ctx, func(w *dataplane.Worker) { has = w.HasSent(&tuple, q.Seq, backend) }); err == nil && has {
			return true
		}
	}
	return false
}

// perSecond lets maxQuotes through in each second. May be called by anyone.
type perSecond struct {
	mu     sync.Mutex
	second int64
	n      int
}

func (p *perSecond) allow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := now.Unix(); s != p.second {
		p.second, p.n = s, 0
	}
	p.n++
	return p.n <= maxQuotes
}

func (d *Daemon) closePathMTU() error {
	l := d.pathMTU
	if d.pathMTU = nil; l == nil {
		return nil
	}
	return l.Close()
}

package peers

import (
	"context"

	"github.com/l4fwd/l4fwd/bench/rings"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// bareLoop is the least that can be done over l4fwd's rings, on a thread of this
// process. It stops at no packet, so that clients address the server.
type bareLoop struct{ loop *rings.Bare }

func (b *bareLoop) start(ctx context.Context, n *network, t traffic) (err error) {
	o := rings.BareOptions{
		NS: n.balancer, In: n.l0, Out: n.l1, To: n.s0.MAC, CPU: n.cpus.Forward, Poll: n.now.Near == NearPolled,
	}
	if t == tcp {
		o.Back = n.c0.MAC
	}
	if err := deferNAPI(ctx, n, o.Poll); err != nil {
		return err
	}
	b.loop, err = rings.StartBare(ctx, o)
	return err
}

// deferNAPI has the balancer's devices leave NAPI to whoever polls them, as
// `l4fwd run` does with busy_poll, or takes that back.
func deferNAPI(ctx context.Context, n *network, polled bool) error {
	irqs, flush := "0", "0"
	if polled {
		irqs, flush = "2", "200000"
	}
	for _, d := range []*testbed.Device{n.l0, n.l1} {
		if err := setSysfs(ctx, d, "napi_defer_hard_irqs", irqs); err != nil {
			return err
		}
		if err := setSysfs(ctx, d, "gro_flush_timeout", flush); err != nil {
			return err
		}
	}
	return nil
}

func (b *bareLoop) stop() error {
	if b.loop == nil {
		return nil
	}
	loop := b.loop
	b.loop = nil
	return loop.Stop()
}

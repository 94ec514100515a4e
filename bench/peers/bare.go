package peers

import (
	"context"

	"github.com/l4fwd/l4fwd/bench/rings"
)

// bareLoop is the least that can be done over l4fwd's rings, on a thread of this
// process. It stops at no packet, so that clients address the server.
type bareLoop struct{ loop *rings.Bare }

func (b *bareLoop) start(ctx context.Context, n *network, t traffic) (err error) {
	o := rings.BareOptions{NS: n.balancer, In: n.l0, Out: n.l1, To: n.s0.MAC, CPU: n.cpus.Forward}
	if t == tcp {
		o.Back = n.c0.MAC
	}
	b.loop, err = rings.StartBare(ctx, o)
	return err
}

func (b *bareLoop) stop() error {
	if b.loop == nil {
		return nil
	}
	loop := b.loop
	b.loop = nil
	return loop.Stop()
}

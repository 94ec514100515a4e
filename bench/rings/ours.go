package rings

import (
	"context"
	"errors"
	"fmt"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// ours is dataplane/afxdp, used as a worker does.
type ours struct {
	u       *afxdp.UMEM
	s       *afxdp.Socket
	prog    *xdp.Program
	ifindex int
	pool    []uint64
	desc    [burst]unix.XDPDesc
	addr    [burst]uint64
}

// openOurs opens the rings; the XDP program that brings packets is asavie's, the
// same as on the other side.
func openOurs(ctx context.Context, ifindex int) (_ *ours, err error) {
	o := &ours{ifindex: ifindex}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	if o.u, err = afxdp.NewUMEM(afxdp.UMEMOptions{Frames: frames}); err != nil {
		return nil, err
	}
	o.s, err = o.u.Open(ctx, ifindex, 0, afxdp.SocketOptions{RX: ring, TX: ring, Fill: ring, Completion: ring, ZeroCopy: afxdp.ZeroCopyOff})
	if err != nil {
		return nil, err
	}
	for i := range frames {
		o.pool = append(o.pool, uint64(i*o.u.FrameSize()))
	}
	for o.s.FillFree() >= burst {
		o.refill(burst)
	}
	if o.prog, err = attach(ifindex, o.s.FD()); err != nil {
		return nil, err
	}
	return o, nil
}

// attach brings an interface's packets to a socket.
func attach(ifindex, fd int) (*xdp.Program, error) {
	p, err := xdp.NewProgram(1)
	if err != nil {
		return nil, fmt.Errorf("XDP program: %w", err)
	}
	if err := p.Register(0, fd); err != nil {
		return nil, errors.Join(fmt.Errorf("XDP program: %w", err), p.Close())
	}
	if err := p.Attach(ifindex); err != nil {
		return nil, errors.Join(fmt.Errorf("XDP program: %w", err), p.Close())
	}
	return p, nil
}

func (o *ours) refill(n int) {
	give := o.pool[len(o.pool)-n:]
	o.pool = o.pool[:len(o.pool)-o.s.Fill(give)]
}

func (o *ours) receive() (total int) {
	for {
		n := o.s.Receive(o.desc[:])
		if n == 0 {
			return total
		}
		for i := range n {
			o.pool = append(o.pool, o.desc[i].Addr&^uint64(o.u.FrameSize()-1))
		}
		o.refill(n)
		total += n
	}
}

func (o *ours) transmit(n int) error {
	back, queued := 0, 0
	for idle := 0; back < n; {
		queued += o.queue(min(burst, n-queued))
		if err := o.s.Kick(); err != nil {
			return err
		}
		got := o.s.Reclaim(o.addr[:])
		for _, a := range o.addr[:got] {
			o.pool = append(o.pool, a&^uint64(o.u.FrameSize()-1))
		}
		back += got
		if idle++; got > 0 {
			idle = 0
		} else if idle > 1000 {
			return fmt.Errorf("%w: %d of %d sent", ErrLost, back, n)
		}
	}
	return nil
}

// queue puts up to n packets on the ring and returns how many.
func (o *ours) queue(n int) int {
	for i := range n {
		a := o.pool[len(o.pool)-1-i]
		fillFrame(o.u.Bytes()[a : a+frameLen])
		o.desc[i] = unix.XDPDesc{Addr: a, Len: frameLen}
	}
	sent := o.s.Transmit(o.desc[:n])
	o.pool = o.pool[:len(o.pool)-sent]
	return sent
}

func (o *ours) close() error {
	var errs []error
	if o.prog != nil {
		errs = append(errs, o.prog.Detach(o.ifindex), o.prog.Close())
	}
	if o.s != nil {
		errs = append(errs, o.s.Close())
	}
	if o.u != nil {
		errs = append(errs, o.u.Close())
	}
	return errors.Join(errs...)
}

package rings

import (
	"errors"
	"fmt"

	"github.com/asavie/xdp"
)

// asavie is github.com/asavie/xdp, used as its examples do.
type asavie struct {
	s       *xdp.Socket
	prog    *xdp.Program
	ifindex int
}

func openAsavie(ifindex int) (_ *asavie, err error) {
	a := &asavie{ifindex: ifindex}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	a.s, err = xdp.NewSocket(ifindex, 0, &xdp.SocketOptions{
		NumFrames: frames, FrameSize: 2048,
		FillRingNumDescs: ring, CompletionRingNumDescs: ring, RxRingNumDescs: ring, TxRingNumDescs: ring,
	})
	if err != nil {
		return nil, fmt.Errorf("asavie/xdp: %w", err)
	}
	a.s.Fill(a.s.GetDescs(a.s.NumFreeFillSlots()))
	if a.prog, err = attach(ifindex, a.s.FD()); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *asavie) receive() (total int) {
	for {
		n := min(a.s.NumReceived(), burst)
		if n == 0 {
			return total
		}
		total += len(a.s.Receive(n))
		a.s.Fill(a.s.GetDescs(min(n, a.s.NumFreeFillSlots())))
	}
}

func (a *asavie) transmit(n int) error {
	back, queued := 0, 0
	for idle := 0; back < n; {
		var d []xdp.Desc
		if queued < n {
			d = a.s.GetDescs(min(burst, n-queued))
			for i := range d {
				fillFrame(a.s.GetFrame(d[i]))
				d[i].Len = frameLen
			}
		}
		queued += a.s.Transmit(d)
		got := a.s.NumCompleted()
		a.s.Complete(got)
		back += got
		if idle++; got > 0 {
			idle = 0
		} else if idle > 1000 {
			return fmt.Errorf("%w: %d of %d sent", ErrLost, back, n)
		}
	}
	return nil
}

func (a *asavie) close() error {
	var errs []error
	if a.prog != nil {
		// It is attached in native mode, in which Detach comes back.
		errs = append(errs, a.prog.Detach(a.ifindex), a.prog.Close())
	}
	if a.s != nil {
		errs = append(errs, a.s.Close())
	}
	return errors.Join(errs...)
}

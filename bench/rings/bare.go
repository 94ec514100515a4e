package rings

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// BareOptions of StartBare.
type BareOptions struct {
	NS      *testbed.Namespace
	In, Out *testbed.Device // of NS, one queue each
	To      net.HardwareAddr
	Back    net.HardwareAddr // not nil: what comes in by Out goes out by In, to this address
	CPU     int              // that the loop spins on; negative leaves it to the kernel
}

// Bare is the least that any forwarder over these rings has to do: take a burst
// from In, write both MAC addresses, send it by Out, give the frames that have
// been sent to In's fill ring. It looks at no packet, keeps no state, and has no
// answer to anything but the case where all goes well. How fast it goes is the
// ceiling that the kernel's copy mode puts on a forwarder.
type Bare struct {
	umem    *afxdp.UMEM
	in, out *afxdp.Socket
	ways    []way // one, or two
	pool    []uint64
	halt    atomic.Bool
	ended   chan error
	closed  error // of close
	desc    [burst]unix.XDPDesc
	addr    [burst]uint64
}

// way is one of the directions.
type way struct {
	from, to *afxdp.Socket
	prog     *xdp.Program // brings packets to from
	macs     [12]byte     // destination and source, as they stand in a frame
}

// StartBare opens the rings and starts the loop on a thread of its own. Stop has
// to be called.
func StartBare(ctx context.Context, o BareOptions) (*Bare, error) {
	b := &Bare{ended: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		running := false
		err := o.NS.Do(func() error {
			// Here, not in Stop: the program is detached from the interface of
			// that number in the thread's namespace.
			defer func() { b.closed = b.close() }()
			if err := b.open(ctx, &o); err != nil {
				return err
			}
			restore, err := cpu.Pin(o.CPU)
			if err != nil {
				return err
			}
			running = true
			started <- nil
			return errors.Join(b.loop(), restore())
		})
		if running {
			b.ended <- errors.Join(err, b.closed)
		} else {
			started <- errors.Join(err, b.closed)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("bare loop from %s to %s: %w", o.In.Name, o.Out.Name, err)
	}
	return b, nil
}

// open makes the rings as large as l4fwd's are, and has packets brought to them.
func (b *Bare) open(ctx context.Context, bo *BareOptions) (err error) {
	if b.umem, err = afxdp.NewUMEM(afxdp.UMEMOptions{Frames: 2 * frames}); err != nil {
		return err
	}
	o := afxdp.SocketOptions{RX: ring, TX: ring, Fill: ring, Completion: ring, ZeroCopy: afxdp.ZeroCopyOff}
	if b.in, err = b.umem.Open(ctx, bo.In.Index, 0, o); err != nil {
		return err
	}
	if b.out, err = b.umem.Open(ctx, bo.Out.Index, 0, o); err != nil {
		return err
	}
	for i := range b.umem.Frames() {
		b.pool = append(b.pool, uint64(i*b.umem.FrameSize()))
	}
	if err = b.addWay(b.in, b.out, bo.To, bo.Out.MAC); err == nil && bo.Back != nil {
		err = b.addWay(b.out, b.in, bo.Back, bo.In.MAC)
	}
	return err
}

func (b *Bare) addWay(from, to *afxdp.Socket, dst, src net.HardwareAddr) error {
	for from.FillFree() >= burst {
		b.refill(from)
	}
	w := way{from: from, to: to}
	copy(w.macs[:], dst)
	copy(w.macs[6:], src)
	var err error
	if w.prog, err = attach(from.Ifindex(), from.FD()); err != nil {
		return err
	}
	b.ways = append(b.ways, w)
	return nil
}

// refill gives a socket a burst of free frames, if it has room for one.
func (b *Bare) refill(s *afxdp.Socket) {
	if s.FillFree() < burst || len(b.pool) < burst {
		return
	}
	give := b.pool[len(b.pool)-burst:]
	b.pool = b.pool[:len(b.pool)-s.Fill(give)]
}

func (b *Bare) loop() error {
	for !b.halt.Load() {
		for i := range b.ways {
			if err := b.forward(&b.ways[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// forward takes a burst one way.
func (b *Bare) forward(w *way) error {
	mem := b.umem.Bytes()
	n := w.from.Receive(b.desc[:])
	for i := range n {
		copy(mem[b.desc[i].Addr:], w.macs[:])
	}
	sent := w.to.Transmit(b.desc[:n])
	for _, d := range b.desc[sent:n] { // no room: lost
		b.pool = append(b.pool, d.Addr)
	}
	if err := w.to.Kick(); err != nil {
		return err
	}
	back := w.to.Reclaim(b.addr[:])
	b.pool = append(b.pool, b.addr[:back]...)
	b.refill(w.from)
	return nil
}

// Stats are the counters of the rings of In and of Out, until Stop.
func (b *Bare) Stats() (in, out afxdp.Stats, err error) {
	// Out's first: what has left came in before.
	if out, err = b.out.Stats(); err == nil {
		in, err = b.in.Stats()
	}
	return in, out, err
}

// Stop ends the loop and closes the rings, once. It returns what ended the loop
// before, if anything did.
func (b *Bare) Stop() error {
	b.halt.Store(true)
	return <-b.ended
}

func (b *Bare) close() error {
	var errs []error
	for _, w := range b.ways {
		errs = append(errs, w.prog.Detach(w.from.Ifindex()), w.prog.Close())
	}
	for _, s := range []*afxdp.Socket{b.in, b.out} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if b.umem != nil {
		errs = append(errs, b.umem.Close())
	}
	return errors.Join(errs...)
}

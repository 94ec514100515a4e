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
	CPU     int // that the loop spins on; negative leaves it to the kernel
}

// Bare is the least that any forwarder over these rings has to do: take a burst
// from In, write both MAC addresses, send it by Out, give the frames that have
// been sent to In's fill ring. It looks at no packet, keeps no state, and has no
// answer to anything but the case where all goes well. How fast it goes is the
// ceiling that the kernel's copy mode puts on a forwarder.
type Bare struct {
	umem    *afxdp.UMEM
	in, out *afxdp.Socket
	prog    *xdp.Program
	ifindex int
	macs    [12]byte // destination and source, as they stand in a frame
	pool    []uint64
	halt    atomic.Bool
	ended   chan error
	closed  error // of close
	desc    [burst]unix.XDPDesc
	addr    [burst]uint64
}

// StartBare opens the rings and starts the loop on a thread of its own. Stop has
// to be called.
func StartBare(ctx context.Context, o BareOptions) (*Bare, error) {
	b := &Bare{ifindex: o.In.Index, ended: make(chan error, 1)}
	copy(b.macs[:], o.To)
	copy(b.macs[6:], o.Out.MAC)
	started := make(chan error, 1)
	go func() {
		running := false
		err := o.NS.Do(func() error {
			// Here, not in Stop: the program is detached from the interface of
			// that number in the thread's namespace.
			defer func() { b.closed = b.close() }()
			if err := b.open(ctx, o.In.Index, o.Out.Index); err != nil {
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

// open makes the rings as large as l4fwd's are, and has packets brought to In.
func (b *Bare) open(ctx context.Context, in, out int) (err error) {
	if b.umem, err = afxdp.NewUMEM(afxdp.UMEMOptions{Frames: 2 * frames}); err != nil {
		return err
	}
	o := afxdp.SocketOptions{RX: ring, TX: ring, Fill: ring, Completion: ring, ZeroCopy: afxdp.ZeroCopyOff}
	if b.in, err = b.umem.Open(ctx, in, 0, o); err != nil {
		return err
	}
	if b.out, err = b.umem.Open(ctx, out, 0, o); err != nil {
		return err
	}
	for i := range b.umem.Frames() {
		b.pool = append(b.pool, uint64(i*b.umem.FrameSize()))
	}
	for b.in.FillFree() >= burst {
		b.refill()
	}
	b.prog, err = attach(in, b.in.FD())
	return err
}

// refill gives In a burst of free frames, if it has room for one.
func (b *Bare) refill() {
	if b.in.FillFree() < burst || len(b.pool) < burst {
		return
	}
	give := b.pool[len(b.pool)-burst:]
	b.pool = b.pool[:len(b.pool)-b.in.Fill(give)]
}

func (b *Bare) loop() error {
	mem := b.umem.Bytes()
	for !b.halt.Load() {
		n := b.in.Receive(b.desc[:])
		for i := range n {
			copy(mem[b.desc[i].Addr:], b.macs[:])
		}
		sent := b.out.Transmit(b.desc[:n])
		for _, d := range b.desc[sent:n] { // no room: lost
			b.pool = append(b.pool, d.Addr)
		}
		if err := b.out.Kick(); err != nil {
			return err
		}
		back := b.out.Reclaim(b.addr[:])
		b.pool = append(b.pool, b.addr[:back]...)
		b.refill()
	}
	return nil
}

// Stats are the counters of the rings of In and of Out, until Stop.
func (b *Bare) Stats() (in, out afxdp.Stats, err error) {
	if in, err = b.in.Stats(); err == nil {
		out, err = b.out.Stats()
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
	if b.prog != nil {
		errs = append(errs, b.prog.Detach(b.ifindex), b.prog.Close())
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

package afxdp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Close unmaps the four rings and closes the descriptor; it waits for an RCU
// grace period in the kernel (some 10 ms). The queue can be bound again as soon
// as the kernel's deferred clean-up is done, which Open waits for. The frames
// that the kernel had are in Held. Closing twice is no error.
func (s *Socket) Close() error {
	u := s.umem
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if i := slices.Index(u.sockets, s); i >= 0 {
		u.sockets = slices.Delete(u.sockets, i, i+1)
	}
	if err := s.release(); err != nil {
		return fmt.Errorf("closing interface %d queue %d: %w", s.ifindex, s.queue, err)
	}
	return nil
}

// release gives everything back to the kernel. The mappings go first: each holds
// a reference to the socket, and the last one gone is what unbinds it.
func (s *Socket) release() error {
	var errs []error
	for i, m := range s.maps {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
			s.maps[i] = nil
		}
	}
	s.detachRings()
	if s.fd >= 0 {
		errs = append(errs, unix.Close(s.fd))
		s.fd = -1
	}
	return errors.Join(errs...)
}

// detachRings puts rings of no size in the place of the unmapped ones. The fill
// ring's flag stays up so that Kick asks, and learns that there is no socket.
func (s *Socket) detachRings() {
	zero, up := new(uint32), new(uint32)
	*up = unix.XDP_RING_NEED_WAKEUP
	s.rx = consumer[unix.XDPDesc]{shared: zero, produced: zero}
	s.completion = consumer[uint64]{shared: zero, produced: zero}
	s.tx = producer[unix.XDPDesc]{shared: zero, consumed: zero, flags: zero}
	s.fill = producer[uint64]{shared: zero, consumed: zero, flags: up}
}

// WaitReleased waits, after Close, until the kernel has let go of the socket's
// frames: until the queue can be bound once more, which it proves by binding it,
// or until the interface is gone. With another program on the queue it cannot
// know, and fails with ErrQueueBusy at the end of ctx or after the time that
// Open takes. Call it in the network namespace of Open.
func (s *Socket) WaitReleased(ctx context.Context) error {
	err := tryQueue(ctx, s.ifindex, s.queue, ZeroCopyOff)
	if errors.Is(err, ErrNoDevice) || errors.Is(err, ErrNoQueue) {
		return nil
	}
	return err
}

// ProbeZeroCopy tells whether the queue can be bound with zero copy: nil, or an
// error of Open's, ErrNotSupported where it cannot. It binds a small UMEM of its
// own for a moment, which makes some drivers restart the queue: for start-up,
// before any traffic. The queue must be free.
func ProbeZeroCopy(ctx context.Context, ifindex, queue int) error {
	return tryQueue(ctx, ifindex, queue, ZeroCopyOn)
}

// tryQueue binds the queue and lets go of it again.
func tryQueue(ctx context.Context, ifindex, queue int, mode ZeroCopy) error {
	const ring = 64
	u, err := NewUMEM(UMEMOptions{Frames: 2 * ring, HugePages: HugePagesOff})
	if err != nil {
		return err
	}
	s, err := u.Open(ctx, ifindex, queue, SocketOptions{RX: ring, TX: ring, Fill: ring, Completion: ring, ZeroCopy: mode})
	if err == nil {
		err = s.Close()
	}
	return errors.Join(err, u.Close())
}

package afxdp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstPause = time.Millisecond
	longPause  = 50 * time.Millisecond
)

// bind binds s, retrying while the queue is busy.
func (u *UMEM) bind(ctx context.Context, s *Socket, o SocketOptions) error {
	deadline := time.Now().Add(o.BindTimeout)
	registered := false
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		err := u.bindOnce(s, o, &registered)
		if !errors.Is(err, ErrQueueBusy) || time.Now().Add(pause).After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("bind: %w: %w", err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// bindOnce tries every way that there is, once. The lock keeps Close from taking
// away, or giving to another file, the descriptor that is being shared.
func (u *UMEM) bindOnce(s *Socket, o SocketOptions, registered *bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return ErrClosed
	}
	shared := false
	if !*registered {
		var err error
		if shared, err = u.bindShared(s, o); err != nil {
			return err
		}
	}
	if !shared {
		if !*registered {
			if err := registerUMEM(s.fd, u.mem.used, uint32(u.opts.FrameSize), uint32(u.opts.Headroom)); err != nil {
				return fmt.Errorf("XDP_UMEM_REG: %w", setupError(err))
			}
			*registered = true
		}
		if err := bindFresh(s, o); err != nil {
			return err
		}
	}
	flags, err := unix.GetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_OPTIONS)
	if err != nil {
		return fmt.Errorf("XDP_OPTIONS: %w", setupError(err))
	}
	s.zeroCopy = flags&unix.XDP_OPTIONS_ZEROCOPY != 0
	u.sockets = append(u.sockets, s)
	return nil
}

// bindShared binds to the UMEM of any open socket. False without an error means
// that there is none. A socket whose interface is gone answers EBADF, and is not
// asked again.
func (u *UMEM) bindShared(s *Socket, o SocketOptions) (bool, error) {
	for peer := u.sharer(); peer != nil; peer = u.sharer() {
		if o.ZeroCopy == ZeroCopyOn && !peer.zeroCopy || o.ZeroCopy == ZeroCopyOff && peer.zeroCopy {
			return false, ErrModeMismatch
		}
		// No other flag may stand beside this one: mode and NEED_WAKEUP are
		// inherited.
		err := unix.Bind(s.fd, &unix.SockaddrXDP{
			Flags: unix.XDP_SHARED_UMEM, Ifindex: uint32(s.ifindex), QueueID: uint32(s.queue), SharedUmemFD: uint32(peer.fd),
		})
		if errors.Is(err, unix.EBADF) {
			peer.stale = true
			continue
		}
		if err != nil {
			return false, fmt.Errorf("bind: %w", bindError(err, !peer.zeroCopy))
		}
		return true, nil
	}
	return false, nil
}

// bindFresh binds a socket that registered the UMEM itself. A failed bind leaves
// the socket ready for the next.
func bindFresh(s *Socket, o SocketOptions) error {
	var refused error
	if o.ZeroCopy != ZeroCopyOff {
		err := bindFlags(s, unix.XDP_ZEROCOPY)
		if err == nil {
			return nil
		}
		refused = fmt.Errorf("zero copy: %w", bindError(err, false))
		if !errors.Is(refused, ErrNotSupported) {
			return refused
		}
		if o.ZeroCopy == ZeroCopyOn && !errors.Is(err, unix.EINVAL) {
			return refused
		}
		// EINVAL is what a driver says that dislikes something, but also what
		// the kernel says of a queue that does not exist; copy mode knows.
	}
	if err := bindFlags(s, unix.XDP_COPY); err != nil {
		return fmt.Errorf("bind: %w", bindError(err, true))
	}
	if o.ZeroCopy == ZeroCopyOn {
		return refused // the caller closes the socket
	}
	s.fallback = refused
	return nil
}

func bindFlags(s *Socket, mode uint16) error {
	return unix.Bind(s.fd, &unix.SockaddrXDP{
		Flags: unix.XDP_USE_NEED_WAKEUP | mode, Ifindex: uint32(s.ifindex), QueueID: uint32(s.queue),
	})
}

package afxdp

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ZeroCopy says how packets shall get into the UMEM.
type ZeroCopy uint8

// The choices. Sockets that share a UMEM inherit the first one's mode, so the
// control plane asks ProbeZeroCopy for every interface first, and opens all
// sockets with On or all with Off.
const (
	// ZeroCopyAuto tries zero copy on the first socket, and takes what is there
	// on the others.
	ZeroCopyAuto ZeroCopy = iota
	// ZeroCopyOn fails with ErrNotSupported or ErrModeMismatch instead of
	// copying.
	ZeroCopyOn
	// ZeroCopyOff always copies; works on every driver.
	ZeroCopyOff
)

// BusyPoll makes the caller of Kick run the driver instead of interrupts
// (SO_PREFER_BUSY_POLL, Linux 5.11). The zero value is off.
type BusyPoll struct {
	Microseconds int // SO_BUSY_POLL; busy polling is on when it is positive
	Budget       int // SO_BUSY_POLL_BUDGET, packets a call; 0 means 64
}

// SocketOptions are the choices for one socket. The zero value is good.
type SocketOptions struct {
	// Ring sizes in descriptors, powers of two up to 65536. 0 means 2048, for
	// Fill 4096. Completion must not be smaller than TX: the kernel stops
	// sending when it is full.
	RX, TX, Fill, Completion int
	ZeroCopy                 ZeroCopy
	BusyPoll                 BusyPoll
	// BindTimeout is how long to retry while the queue is busy, as it is for
	// some milliseconds after another socket on it was closed. 0 means 2 s, a
	// negative value a single try.
	BindTimeout time.Duration
}

const (
	maxRing            = 1 << 16
	defaultBindTimeout = 2 * time.Second
	defaultBudget      = 64
	// copyBudget is how many descriptors one sendto may take in copy mode where
	// the kernel lets us choose (XDP_MAX_TX_SKB_BUDGET, Linux 6.16); else 32.
	copyBudget = 256
	// skbOverhead is a generous guess at what the kernel accounts for one packet
	// in copy mode beside its bytes, towards SO_SNDBUF.
	skbOverhead = 1024
)

func (o SocketOptions) withDefaults() (SocketOptions, error) {
	for _, r := range []struct {
		name string
		size *int
		std  int
	}{{"RX", &o.RX, 2048}, {"TX", &o.TX, 2048}, {"fill", &o.Fill, 4096}, {"completion", &o.Completion, max(2048, o.TX)}} {
		if *r.size == 0 {
			*r.size = r.std
		}
		if n := *r.size; n < 1 || n > maxRing || n&(n-1) != 0 {
			return o, fmt.Errorf("%w: %s ring of %d is not a power of two up to %d", ErrOptions, r.name, n, maxRing)
		}
	}
	if o.Completion < o.TX {
		return o, fmt.Errorf("%w: completion ring of %d is smaller than TX ring of %d", ErrOptions, o.Completion, o.TX)
	}
	if o.ZeroCopy > ZeroCopyOff {
		return o, fmt.Errorf("%w: zero copy %d", ErrOptions, o.ZeroCopy)
	}
	if o.BusyPoll.Microseconds < 0 || o.BusyPoll.Budget < 0 {
		return o, fmt.Errorf("%w: busy poll %+v", ErrOptions, o.BusyPoll)
	}
	if o.BusyPoll.Budget == 0 {
		o.BusyPoll.Budget = defaultBudget
	}
	if o.BindTimeout == 0 {
		o.BindTimeout = defaultBindTimeout
	}
	return o, nil
}

// Open creates a socket on one queue of one interface of the calling thread's
// network namespace. The first one registers the UMEM with the kernel; later
// ones share it with any that is still bound; when none is (all their interfaces
// are gone), it is registered afresh over the same memory. A queue that is busy
// is tried again until BindTimeout or until ctx ends. The errors wrap one of
// ErrOptions, ErrQueueBusy, ErrNoQueue, ErrNoDevice, ErrPermission,
// ErrNotSupported, ErrMemoryLimit, ErrModeMismatch, ErrClosed or the context's.
// Nothing stays behind after an error.
func (u *UMEM) Open(ctx context.Context, ifindex, queue int, o SocketOptions) (*Socket, error) {
	o, err := o.withDefaults()
	if err == nil && (ifindex < 1 || queue < 0) {
		err = fmt.Errorf("%w: negative number", ErrOptions)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %d queue %d: %w", ifindex, queue, err)
	}
	u.opening.Lock()
	defer u.opening.Unlock()
	s, err := u.prepare(ifindex, queue, o)
	if err == nil {
		err = u.bind(ctx, s, o)
	}
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.release())
		}
		return nil, fmt.Errorf("interface %d queue %d: %w", ifindex, queue, err)
	}
	return s, nil
}

// prepare does everything before the first bind: socket, rings, options.
func (u *UMEM) prepare(ifindex, queue int, o SocketOptions) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", setupError(err))
	}
	s := &Socket{
		held:     make([]uint8, u.opts.Frames),
		returned: make([]uint64, 0, o.TX),
		owners:   u.owners,
		size:     uint64(u.opts.FrameSize),
		shift:    frameShift(u.opts.FrameSize),
		busyPoll: o.BusyPoll.Microseconds > 0,
		fd:       fd, id: atomic.AddUint32(&u.lastID, 1),
		umem: u, ifindex: ifindex, queue: queue,
	}
	for _, r := range []struct {
		name      string
		opt, size int
	}{
		{"XDP_UMEM_FILL_RING", unix.XDP_UMEM_FILL_RING, o.Fill},
		{"XDP_UMEM_COMPLETION_RING", unix.XDP_UMEM_COMPLETION_RING, o.Completion},
		{"XDP_RX_RING", unix.XDP_RX_RING, o.RX},
		{"XDP_TX_RING", unix.XDP_TX_RING, o.TX},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, r.opt, r.size); err != nil {
			return s, fmt.Errorf("%s of %d: %w", r.name, r.size, setupError(err))
		}
	}
	if err := s.mapRings(o); err != nil {
		return s, fmt.Errorf("mapping the rings: %w", setupError(err))
	}
	if err := s.tune(o); err != nil {
		return s, err
	}
	return s, nil
}

func frameShift(size int) uint8 {
	if size == 4096 {
		return 12
	}
	return 11
}

func (s *Socket) mapRings(o SocketOptions) error {
	off, err := ringOffsets(s.fd)
	if err != nil {
		return err
	}
	if s.rx, s.maps[0], err = mapConsumer[unix.XDPDesc](s.fd, unix.XDP_PGOFF_RX_RING, off.Rx, o.RX); err != nil {
		return err
	}
	if s.tx, s.maps[1], err = mapProducer[unix.XDPDesc](s.fd, unix.XDP_PGOFF_TX_RING, off.Tx, o.TX); err != nil {
		return err
	}
	if s.fill, s.maps[2], err = mapProducer[uint64](s.fd, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, o.Fill); err != nil {
		return err
	}
	s.completion, s.maps[3], err = mapConsumer[uint64](s.fd, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, o.Completion)
	return err
}

// tune sets what is not about rings. Only busy polling, which was asked for, can
// fail; the others are improvements for copy mode.
func (s *Socket) tune(o SocketOptions) error {
	// The default send buffer holds about 200 small packets; beyond it the
	// kernel answers EAGAIN with the TX ring still full.
	if sndbuf := o.TX * (int(s.size) + skbOverhead); unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sndbuf) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sndbuf)
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, min(copyBudget, o.TX))
	if !s.busyPoll {
		return nil
	}
	for _, x := range []struct {
		name       string
		opt, value int
	}{
		{"SO_PREFER_BUSY_POLL", unix.SO_PREFER_BUSY_POLL, 1},
		{"SO_BUSY_POLL", unix.SO_BUSY_POLL, o.BusyPoll.Microseconds},
		{"SO_BUSY_POLL_BUDGET", unix.SO_BUSY_POLL_BUDGET, o.BusyPoll.Budget},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, x.opt, x.value); err != nil {
			return fmt.Errorf("%s = %d: %w", x.name, x.value, setupError(err))
		}
	}
	return nil
}

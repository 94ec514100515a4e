package afxdp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What Open, NewUMEM and ProbeZeroCopy can fail with. Each returned error wraps
// one of these and, where there was one, the kernel's errno.
var (
	// ErrOptions: the caller's options make no sense; nothing was tried.
	ErrOptions = errors.New("invalid option")
	// ErrQueueBusy: another AF_XDP socket, of this or another program, has the
	// queue (EBUSY), and kept it for the whole of SocketOptions.BindTimeout.
	ErrQueueBusy = errors.New("queue is taken by another AF_XDP socket")
	// ErrNoQueue: the interface has no queue of that number.
	ErrNoQueue = errors.New("no such queue")
	// ErrNoDevice: no interface has that index (ENODEV).
	ErrNoDevice = errors.New("no such network interface")
	// ErrPermission: CAP_NET_RAW is missing, or CAP_NET_ADMIN for busy polling
	// (EPERM).
	ErrPermission = errors.New("missing capability (CAP_NET_RAW, CAP_NET_ADMIN for busy polling)")
	// ErrNotSupported: the kernel or the driver cannot do what was asked.
	ErrNotSupported = errors.New("not supported by kernel or driver")
	// ErrMemoryLimit: the UMEM does not fit the limit on locked memory.
	ErrMemoryLimit = errors.New("locked memory limit is too low for the UMEM (raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK)")
	// ErrModeMismatch: zero copy was asked for or refused, but the UMEM is
	// already bound the other way; it is all or nothing.
	ErrModeMismatch = errors.New("zero-copy mode differs from that of the open sockets")
	// ErrInUse: the UMEM still has open sockets.
	ErrInUse = errors.New("UMEM still has open sockets")
	// ErrClosed: the UMEM was closed.
	ErrClosed = errors.New("UMEM is closed")
)

// What Kick and Probe report about the interface.
var (
	// ErrDown: the interface is down or gone. Down alone (ENETDOWN) heals when
	// it comes up again; the socket stays bound.
	ErrDown = errors.New("interface is down")
	// ErrGone: the interface was deleted, or the socket closed. The socket is
	// useless: close it. Every ErrGone is also an ErrDown.
	ErrGone = errors.New("interface is gone")
)

// KickError is what Kick and Probe return: a failed sendto or recvfrom. There is
// one preallocated value for each call and errno, so that the datapath can
// return them without allocating.
type KickError struct {
	Call  string     // "sendto" or "recvfrom"
	Errno unix.Errno // never one of the passing ones that Kick only counts
}

// Error implements error.
func (e *KickError) Error() string {
	switch {
	case e.Is(ErrGone):
		return fmt.Sprintf("%v: %s: %v", ErrGone, e.Call, e.Errno)
	case e.Is(ErrDown):
		return fmt.Sprintf("%v: %s: %v", ErrDown, e.Call, e.Errno)
	}
	return fmt.Sprintf("%s: %v", e.Call, e.Errno)
}

// Unwrap returns the errno.
func (e *KickError) Unwrap() error { return e.Errno }

// Is makes errors.Is(err, ErrDown) and errors.Is(err, ErrGone) work.
func (e *KickError) Is(target error) bool {
	switch e.Errno {
	case unix.ENETDOWN:
		return target == ErrDown
	case unix.ENXIO, unix.ENODEV, unix.EBADF, unix.ENOTSOCK:
		return target == ErrDown || target == ErrGone
	}
	return false
}

// errnos is more than the kernel's highest errno in use (133).
const errnos = 256

var (
	sendErrors = kickErrors("sendto")
	recvErrors = kickErrors("recvfrom")
)

func kickErrors(call string) *[errnos]KickError {
	t := new([errnos]KickError)
	for i := range t {
		t[i] = KickError{Call: call, Errno: unix.Errno(i)}
	}
	return t
}

// bindError says what a failed bind(2) means. copyMode tells that the bind could
// only have been refused for the queue's number: with XDP_COPY, or shared with a
// copy-mode socket, nothing else is left that the kernel answers EINVAL for.
func bindError(err error, copyMode bool) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrQueueBusy, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	case errors.Is(err, unix.EINVAL) && copyMode:
		return fmt.Errorf("%w: %w", ErrNoQueue, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return setupError(err)
}

// setupError says what a failed socket(2), setsockopt(2) or mmap(2) means.
func setupError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	case errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("%w: %w", ErrMemoryLimit, err)
	}
	return err
}

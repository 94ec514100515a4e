package afxdp

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// rxOffset is XDP_PACKET_HEADROOM (linux/bpf.h): where the kernel puts a
// received packet, counted from the frame's start plus UMEMOptions.Headroom.
const rxOffset = 256

// UMEMOptions describes the memory to allocate.
type UMEMOptions struct {
	// Frames is how many there are, at least 1. They are shared out among the
	// workers by whoever calls NewUMEM; this package has no pool.
	Frames int
	// FrameSize is 2048 or 4096 bytes; 0 means 2048.
	FrameSize int
	// Headroom is how many bytes the kernel leaves free before a received
	// packet in addition to the 256 that it always leaves.
	Headroom int
	// HugePages defaults to HugePagesAuto.
	HugePages HugePages
	// Check keeps a table of owners over all sockets, with an atomic operation
	// for each frame that changes hands, and panics when a frame gets a second
	// owner. For tests.
	Check bool
}

// UMEM is the one memory area that all sockets of the process receive into and
// send from. A frame address, as in descriptors, is an offset into Bytes. Its
// methods are control plane and safe for concurrent use; Bytes, FrameSize and
// Frames are fixed and may be read by anybody.
type UMEM struct {
	opts   UMEMOptions
	mem    memory
	owners []atomic.Uint32 // only with Check

	opening sync.Mutex // one Open at a time, so that only one registers
	mu      sync.Mutex // the rest; never held while sleeping
	sockets []*Socket  // open and bound, oldest first
	lastID  uint32
	closed  bool
}

// NewUMEM maps the memory. Nothing is registered with the kernel until the first
// Open. Errors: ErrOptions, or ErrNotSupported with HugePagesOn.
func NewUMEM(o UMEMOptions) (*UMEM, error) {
	if o.FrameSize == 0 {
		o.FrameSize = 2048
	}
	if o.FrameSize != 2048 && o.FrameSize != 4096 {
		return nil, fmt.Errorf("%w: frame size %d is neither 2048 nor 4096", ErrOptions, o.FrameSize)
	}
	if o.Frames < 1 || o.Frames > 1<<30 {
		return nil, fmt.Errorf("%w: %d frames", ErrOptions, o.Frames)
	}
	if o.Headroom < 0 || o.Headroom >= o.FrameSize-rxOffset {
		return nil, fmt.Errorf("%w: headroom %d leaves no room in a frame of %d", ErrOptions, o.Headroom, o.FrameSize)
	}
	if o.HugePages > HugePagesOff {
		return nil, fmt.Errorf("%w: huge pages %d", ErrOptions, o.HugePages)
	}
	mem, err := allocate(o.Frames*o.FrameSize, o.HugePages)
	if err != nil {
		return nil, fmt.Errorf("UMEM: %w", err)
	}
	u := &UMEM{opts: o, mem: mem}
	if o.Check {
		u.owners = make([]atomic.Uint32, o.Frames)
	}
	return u, nil
}

// Bytes returns the whole area. It is outside the Go heap: after Close any use
// of it faults.
func (u *UMEM) Bytes() []byte { return u.mem.used }

// Backing says, for the log, in what pages the memory really lies.
func (u *UMEM) Backing() string { return u.mem.backing }

// Frames returns how many frames there are; their addresses are i*FrameSize().
func (u *UMEM) Frames() int { return u.opts.Frames }

// FrameSize returns a frame's size in bytes.
func (u *UMEM) FrameSize() int { return u.opts.FrameSize }

// MaxPacket returns the longest packet, in bytes from the Ethernet header on,
// that the kernel can receive into one frame. It drops longer ones
// (KernelStats.RxDropped), so the interface's MTU + 14 (+ 4 for each VLAN tag)
// must not exceed it.
func (u *UMEM) MaxPacket() int { return u.opts.FrameSize - u.opts.Headroom - rxOffset }

// Close unmaps the memory. It fails with ErrInUse while sockets are open. The
// kernel keeps the pages pinned for as long as it still works with them.
func (u *UMEM) Close() error {
	u.opening.Lock()
	defer u.opening.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	if n := len(u.sockets); n > 0 {
		return fmt.Errorf("%w: %d", ErrInUse, n)
	}
	u.closed = true
	if err := u.mem.free(); err != nil {
		return fmt.Errorf("unmapping the UMEM: %w", err)
	}
	return nil
}

// sharer returns the newest open socket that can be shared with, or nil.
func (u *UMEM) sharer() *Socket {
	for _, s := range slices.Backward(u.sockets) {
		if !s.stale {
			return s
		}
	}
	return nil
}

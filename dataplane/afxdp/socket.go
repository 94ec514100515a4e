package afxdp

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Socket is one AF_XDP socket, bound to one queue of one interface, with a fill,
// completion, RX and TX ring of its own. See the package comment for who may
// call what.
type Socket struct {
	// Touched by the owner on every burst.
	rx         consumer[unix.XDPDesc]
	completion consumer[uint64]
	fill       producer[uint64]
	tx         producer[unix.XDPDesc]
	held       []uint8  // by frame number: 1 while the kernel has it
	returned   []uint64 // refused by Transmit, not yet taken by Reclaim
	owners     []atomic.Uint32
	size       uint64 // of a frame, bytes
	shift      uint8  // log2 of size
	busyPoll   bool
	quiet      uint32 // Kicks in a row that made no system call
	fd         int
	id         uint32

	_     [64]byte // readers of the counters must not slow the owner down
	count counters
	_     [64]byte

	umem     *UMEM
	ifindex  int
	queue    int
	zeroCopy bool
	fallback error
	stale    bool // guarded by umem.mu: cannot be shared with any more
	closed   bool // guarded by umem.mu
	maps     [4][]byte
}

// Receive takes up to len(d) received packets from the RX ring. Addr is where
// the packet starts in the UMEM, at least 256 bytes into its frame; Len its
// length in bytes. The frames are the caller's from now on. The kernel is
// trusted with the rings, but what it says is checked once, on our copy: a
// descriptor outside the UMEM, or that leaves its frame, or of a frame that the
// kernel did not have, is dropped and counted (Stats.RxRefused, Stats.Doubled).
func (s *Socket) Receive(d []unix.XDPDesc) int {
	n := s.rx.take(d)
	if n == 0 {
		return 0
	}
	d = d[:n]
	held, size, shift := s.held, s.size, s.shift
	for i := range d {
		a := d[i].Addr
		f := a >> shift
		if f >= uint64(len(held)) || a&(size-1)+uint64(d[i].Len) > size || held[f] == 0 {
			n = s.receiveChecked(d, i)
			break
		}
		held[f] = 0
	}
	s.count.received.Add(uint64(n))
	if s.owners != nil {
		for i := range d[:n] {
			s.own(d[i].Addr, s.id, 0)
		}
	}
	return n
}

// receiveChecked goes on from the first bad descriptor, closing the gaps.
func (s *Socket) receiveChecked(d []unix.XDPDesc, from int) int {
	out := from
	for _, x := range d[from:] {
		f := x.Addr >> s.shift
		switch {
		case f >= uint64(len(s.held)) || x.Addr&(s.size-1)+uint64(x.Len) > s.size:
			s.count.rxRefused.Add(1)
		case s.held[f] == 0:
			s.doubled("received", x.Addr)
		default:
			s.held[f] = 0
			d[out] = x
			out++
		}
	}
	return out
}

// Fill gives frames to the kernel to receive into and returns how many fitted;
// the rest stay the caller's. Any address inside a frame names the frame. A
// frame that the kernel has already, or an address outside the UMEM, counts as
// given but is not put into the ring (Stats.Doubled, Stats.FillRefused).
func (s *Socket) Fill(addrs []uint64) int {
	n := s.fill.free(uint32(min(len(addrs), len(s.fill.slots))))
	if n == 0 {
		return 0
	}
	held, slots, next := s.held, s.fill.slots, s.fill.next
	mask := uint32(len(slots) - 1)
	for _, a := range addrs[:n] {
		f := a >> s.shift
		if f >= uint64(len(held)) {
			s.count.fillRefused.Add(1)
			continue
		}
		if held[f] != 0 {
			s.doubled("filled", a)
			continue
		}
		if s.owners != nil {
			s.own(a, 0, s.id)
		}
		held[f] = 1
		slots[next&mask] = a &^ (s.size - 1)
		next++
	}
	s.count.filled.Add(uint64(next - s.fill.next))
	s.fill.publish(next)
	return int(n)
}

// FillFree returns how many frames Fill would take now.
func (s *Socket) FillFree() int {
	return int(s.fill.free(uint32(len(s.fill.slots))))
}

// Transmit puts packets into the TX ring and returns how many fitted; the rest
// stay the caller's. They leave at the next Kick. Options of the descriptors are
// ignored. What the kernel would discard without a completion (length zero,
// beyond the end of its frame) is counted in Stats.TxRefused and comes back
// through Reclaim; an address outside the UMEM is counted only, and a frame that
// the kernel has already is counted in Stats.Doubled.
func (s *Socket) Transmit(d []unix.XDPDesc) int {
	want := min(len(d), len(s.tx.slots), cap(s.returned)-len(s.returned))
	n := s.tx.free(uint32(want))
	if n == 0 {
		return 0
	}
	held, slots, next := s.held, s.tx.slots, s.tx.next
	size, shift := s.size, s.shift
	mask := uint32(len(slots) - 1)
	for _, x := range d[:n] {
		f := x.Addr >> shift
		if f >= uint64(len(held)) || held[f] != 0 || x.Len == 0 || x.Addr&(size-1)+uint64(x.Len) > size {
			s.refuseTx(x)
			continue
		}
		if s.owners != nil {
			s.own(x.Addr, 0, s.id)
		}
		held[f] = 1
		slots[next&mask] = unix.XDPDesc{Addr: x.Addr, Len: x.Len}
		next++
	}
	s.count.transmitted.Add(uint64(next - s.tx.next))
	s.tx.publish(next)
	return int(n)
}

// refuseTx deals with a descriptor that must not enter the TX ring.
func (s *Socket) refuseTx(x unix.XDPDesc) {
	f := x.Addr >> s.shift
	if f < uint64(len(s.held)) && s.held[f] != 0 {
		s.doubled("transmitted", x.Addr)
		return
	}
	s.count.txRefused.Add(1)
	if f < uint64(len(s.held)) {
		s.returned = append(s.returned, x.Addr&^(s.size-1)) // Transmit left room
	}
}

// Reclaim takes up to len(addrs) sent frames back from the completion ring and
// returns how many. What it writes are frame addresses (multiples of the frame
// size), ready for Fill.
func (s *Socket) Reclaim(addrs []uint64) int {
	back := 0
	for len(s.returned) > 0 && back < len(addrs) {
		last := len(s.returned) - 1
		addrs[back] = s.returned[last]
		s.returned = s.returned[:last]
		back++
	}
	got := addrs[back:]
	n := s.completion.take(got)
	if n == 0 {
		return back
	}
	got = got[:n]
	held, size, shift := s.held, s.size, s.shift
	out := 0
	for _, a := range got {
		f := a >> shift
		if f >= uint64(len(held)) || held[f] == 0 {
			s.doubled("completed", a)
			continue
		}
		if s.owners != nil {
			s.own(a, s.id, 0)
		}
		held[f] = 0
		got[out] = a &^ (size - 1)
		out++
	}
	s.count.reclaimed.Add(uint64(out))
	return back + out
}

// Held appends to dst the addresses of the frames that the kernel has. On an
// open socket that is only a look. After Close it hands them over, those still
// waiting for Reclaim included, and a second call lists nothing; the package
// comment says when they may be written to.
func (s *Socket) Held(dst []uint64) []uint64 {
	closed := s.fd < 0
	if closed {
		dst = append(dst, s.returned...)
		s.returned = s.returned[:0]
	}
	for f, h := range s.held {
		if h == 0 {
			continue
		}
		a := uint64(f) << s.shift
		dst = append(dst, a)
		if closed {
			if s.owners != nil {
				s.own(a, s.id, 0)
			}
			s.held[f] = 0
		}
	}
	return dst
}

// FD returns the file descriptor for poll(2) and for the XSKMAP, -1 once closed.
func (s *Socket) FD() int { return s.fd }

// Queue returns the queue's number.
func (s *Socket) Queue() int { return s.queue }

// Ifindex returns the interface's index.
func (s *Socket) Ifindex() int { return s.ifindex }

// ZeroCopy tells whether the driver moves packets to and from the UMEM itself.
func (s *Socket) ZeroCopy() bool { return s.zeroCopy }

// Fallback returns why zero copy was refused when it was only ZeroCopyAuto, for
// the log; nil otherwise.
func (s *Socket) Fallback() error { return s.fallback }

// doubled counts a frame that has two owners; what is the moment it was found.
func (s *Socket) doubled(what string, addr uint64) {
	s.count.doubled.Add(1)
	if s.owners != nil {
		panic(fmt.Sprintf("afxdp: frame %#x %s twice (interface %d queue %d)", addr, what, s.ifindex, s.queue))
	}
}

// own moves a frame from one owner to another in the UMEM's table of owners,
// which exists only with UMEMOptions.Check. Owner 0 is the program.
func (s *Socket) own(addr uint64, from, to uint32) {
	o := &s.owners[addr>>s.shift]
	if !o.CompareAndSwap(from, to) {
		panic(fmt.Sprintf("afxdp: frame %#x is owned by socket %d, not %d (interface %d queue %d)",
			addr, o.Load(), from, s.ifindex, s.queue))
	}
}

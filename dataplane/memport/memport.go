package memport

import "golang.org/x/sys/unix"

// Headroom is where a received frame begins in its chunk, as
// XDP_PACKET_HEADROOM (linux/bpf.h) makes it on a real NIC.
const Headroom = 256

// Port implements dataplane.Port. Its methods and fields belong to one thread.
type Port struct {
	// OnSend sees every transmitted frame before its memory is used again; nil
	// sees nothing. The slices of both functions reach to the UMEM's end by
	// their capacity, which tells in which chunk they lie.
	OnSend func(frame []byte)
	// OnReceive may change a frame after it was copied in, before Receive returns, as the
	// wire would have it; nil changes nothing. i is the frame's place in the list.
	OnReceive func(i int, frame []byte)

	umem   []byte
	chunk  uint64
	fill   ring
	done   ring
	in     [][]byte
	next   int
	passes int // over the list, left
	sent   uint64
	// Written with every packet: the next port is another thread's.
	_ [128]byte
}

// New returns a port over umem, with rings of size entries (a power of two).
func New(umem []byte, frameSize, size int) *Port {
	return &Port{umem: umem, chunk: uint64(frameSize), fill: newRing(size), done: newRing(size)}
}

// Feed makes the port receive the frames of list, in order, passes times over.
// The list is read, not written, and must stay as it is until Idle.
func (p *Port) Feed(list [][]byte, passes int) { p.in, p.next, p.passes = list, 0, passes }

// Idle reports whether all that was fed has been received.
func (p *Port) Idle() bool { return p.passes <= 0 || len(p.in) == 0 }

// Sent counts transmitted frames.
func (p *Port) Sent() uint64 { return p.sent }

// Receive copies the next frames into filled chunks, as a driver would.
func (p *Port) Receive(d []unix.XDPDesc) int {
	n := 0
	for n < len(d) && !p.Idle() && p.fill.len() > 0 {
		n += p.pass(d[n:])
	}
	return n
}

// pass receives what is left of one pass over the list, as far as d and the filled
// chunks reach, and at least one frame.
func (p *Port) pass(d []unix.XDPDesc) int {
	in := p.in[p.next:]
	in = in[:min(len(in), len(d), p.fill.len())]
	d = d[:len(in)]
	for i, src := range in {
		at := p.fill.at(i) + Headroom
		// A frame that does not fit its chunk is cut, as a driver never would,
		// so that whoever feeds it sees the loss.
		size := copy(p.umem[at:at-Headroom+p.chunk], src)
		d[i] = unix.XDPDesc{Addr: at, Len: uint32(size)}
	}
	if p.OnReceive != nil {
		for i := range d {
			p.OnReceive(p.next+i, p.umem[d[i].Addr:d[i].Addr+uint64(d[i].Len)])
		}
	}
	p.fill.head += len(in)
	if p.next += len(in); p.next == len(p.in) {
		p.next = 0
		p.passes--
	}
	return len(in)
}

// Fill takes empty frames; it returns how many fitted.
func (p *Port) Fill(addrs []uint64) int {
	n := min(len(addrs), p.fill.room())
	slots, at, mask := p.fill.slots, p.fill.tail, p.chunk-1
	for i, a := range addrs[:n] {
		slots[(at+i)&(len(slots)-1)] = a &^ mask
	}
	p.fill.tail += n
	return n
}

// FillFree is the room in the fill ring.
func (p *Port) FillFree() int { return p.fill.room() }

// Transmit sends at once.
func (p *Port) Transmit(d []unix.XDPDesc) int {
	n := min(len(d), p.done.room())
	d = d[:n]
	if p.OnSend != nil {
		for i := range d {
			p.OnSend(p.umem[d[i].Addr : d[i].Addr+uint64(d[i].Len)])
		}
	}
	slots, at := p.done.slots, p.done.tail
	for i := range d {
		slots[(at+i)&(len(slots)-1)] = d[i].Addr
	}
	p.done.tail += n
	p.sent += uint64(n)
	return n
}

// Reclaim gives transmitted frames back.
func (p *Port) Reclaim(addrs []uint64) int {
	n := min(len(addrs), p.done.len())
	slots, at := p.done.slots, p.done.head&(len(p.done.slots)-1)
	first := copy(addrs[:n], slots[at:])
	copy(addrs[first:n], slots)
	p.done.head += n
	return n
}

// Kick has nothing to wake.
func (*Port) Kick() error { return nil }

// FD has nothing to wait for.
func (*Port) FD() int { return -1 }

// Held lists the chunks in both rings.
func (p *Port) Held(dst []uint64) []uint64 {
	for i := range p.fill.len() {
		dst = append(dst, p.fill.at(i))
	}
	for i := range p.done.len() {
		dst = append(dst, p.done.at(i)&^(p.chunk-1))
	}
	return dst
}

// ring is a FIFO of addresses of fixed capacity, a power of two.
type ring struct {
	slots      []uint64
	head, tail int
}

func newRing(size int) ring     { return ring{slots: make([]uint64, size)} }
func (r *ring) len() int        { return r.tail - r.head }
func (r *ring) room() int       { return len(r.slots) - r.len() }
func (r *ring) at(i int) uint64 { return r.slots[(r.head+i)&(len(r.slots)-1)] }

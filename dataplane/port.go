package dataplane

import "golang.org/x/sys/unix"

// Port is one NIC queue as its worker sees it: four rings. afxdp.Socket is the
// real one, memport.Port the one for replay and tests. All methods belong to
// the owning worker's thread, never allocate and never block.
//
// Frame addresses are offsets into the UMEM. Giving a frame to Fill or
// Transmit gives it away; it comes back by Receive or Reclaim.
type Port interface {
	// Receive takes up to len(d) frames from the RX ring.
	Receive(d []unix.XDPDesc) int
	// Fill offers empty frames; it returns how many fitted.
	Fill(addrs []uint64) int
	// FillFree is the room in the fill ring.
	FillFree() int
	// Transmit queues frames; those beyond the returned count stay the caller's.
	Transmit(d []unix.XDPDesc) int
	// Reclaim takes transmitted frames back from the completion ring.
	Reclaim(addrs []uint64) int
	// Kick tells the other side of the rings what NEED_WAKEUP asks for. An
	// error means that the port is of no use any more, mostly because the
	// interface is gone or down: the worker stops using it, the control plane
	// brings another.
	Kick() error
	// FD is for poll(2); negative where there is nothing to wait for.
	FD() int
	// Held appends the frames the other side still has. Only for a port whose
	// other side has stopped: after a close.
	Held(dst []uint64) []uint64
}

// Package afxdp owns the memory and the sockets through which packets come
// and go: one UMEM for the whole process, and one AF_XDP [Socket] with its four
// rings for each (network interface, queue).
//
// The package must never know what a packet means. It moves descriptors (frame
// address, length) between a worker and the kernel and imports nothing else of
// this program. It also loads no XDP program: a socket receives nothing until
// somebody puts [Socket.FD] into an XSKMAP.
//
// # Who may call what
//
// Receive, Fill, FillFree, Transmit, Reclaim, Kick and Held belong to the one
// worker that owns the socket. They take no lock and do not allocate; two
// goroutines in them at once corrupt the rings without any error. Stats and
// Probe may be called from any goroutine while the socket is open. NewUMEM,
// Open and Close are control plane: they may sleep, for seconds at worst. Close
// must not run while the owner is in a datapath method, so the owner lets go of
// the socket first. After Close the datapath methods are harmless: they move
// nothing, and Kick answers ErrGone.
//
// # Frames have one owner
//
// A frame is with the worker or with the kernel, never with both. Each socket
// keeps a byte for each frame of the UMEM: 1 from Fill or Transmit until it
// comes back through Receive or Reclaim. A frame that arrives twice is not
// handed out the second time, because its other holder may be writing to it; it
// is counted (Stats.Doubled), and with UMEMOptions.Check it panics. A descriptor
// that the kernel would throw away without completing it (length zero, beyond
// its chunk) never enters the TX ring, else its frame would be lost for good:
// it comes straight back through Reclaim and is counted.
//
// # When a closed socket's frames may be used again
//
// Held lists, after Close, the frames that the kernel still had. Reading them is
// always safe. Writing to them, or giving them to another socket, is safe only
// when the kernel has really let go, and close(2) alone does not say so: it
// waits until no receive path can write (synchronize_net in xsk_unbind_dev,
// net/xdp/xsk.c), but a zero-copy driver stops its DMA, and a driver with
// IFF_TX_SKB_NO_LINEAR (virtio-net in copy mode) frees the pages it is still
// sending, only before the deferred xp_release_deferred (xsk_buff_pool.c), which
// is also what makes the queue bindable again. So the rule: take the frames back
// when a new socket on the same queue is open, or when the interface is gone
// (Kick or Probe answered ErrGone before Close), or when [Socket.WaitReleased]
// has returned nil.
//
// # NEED_WAKEUP and who drives the kernel
//
// Every bind asks for XDP_USE_NEED_WAKEUP. In copy mode the kernel sends only
// inside sendto(2), so the TX flag is always up and a Kick costs one call for
// each 32 descriptors (for each 256 where XDP_MAX_TX_SKB_BUDGET exists): kick
// once a burst, not once a packet. In zero-copy mode the driver lowers the flag
// while it is running, and Kick then makes no call at all. With BusyPoll nobody
// runs the driver but the caller: Kick must be called on every turn of the loop,
// idle or not, because its recvfrom is what receives. The interface also needs
// napi_defer_hard_irqs and gro_flush_timeout in sysfs, which is the control
// plane's business.
//
// # Queues that receive but cannot send
//
// bind(2) accepts any queue below the larger of the RX and the TX count. On a
// queue beyond the TX count sendto answers 0 and sends nothing, for ever: the TX
// ring just stays full. Whoever chooses queues must look at both counts.
//
// # A dead interface is quiet
//
// A socket whose interface was deleted reports nothing by itself: poll(2) finds
// no event and the rings just stay empty. Kick therefore asks the kernel once
// in 1024 calls that had nothing else to do. A worker that sleeps in poll(2)
// should call [Socket.Probe] when it wakes up for nothing.
package afxdp

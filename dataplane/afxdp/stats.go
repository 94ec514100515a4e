package afxdp

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// counters are written by the socket's owner (Probe excepted) and read by
// anybody.
type counters struct {
	received, filled, transmitted, reclaimed    atomic.Uint64
	sends, wakeups                              atomic.Uint64
	again, busy, noBuffers, interrupted, failed atomic.Uint64
	rxRefused, fillRefused, txRefused, doubled  atomic.Uint64
}

// Stats are totals since the socket was opened.
type Stats struct {
	// Frames that went through the rings.
	Received    uint64 `json:"received"`
	Filled      uint64 `json:"filled"`
	Transmitted uint64 `json:"transmitted"`
	Reclaimed   uint64 `json:"reclaimed"`
	// System calls made by Kick: sendto for TX, recvfrom for RX.
	Sends   uint64 `json:"sends"`
	Wakeups uint64 `json:"wakeups"`
	// What those calls answered: EAGAIN (in copy mode also "more is left"),
	// EBUSY (in copy mode: the driver dropped a packet, whose frame comes back
	// all the same), ENOBUFS or ENOMEM, EINTR, and errors that Kick returned.
	Again       uint64 `json:"again"`
	Busy        uint64 `json:"busy"`
	NoBuffers   uint64 `json:"no_buffers"`
	Interrupted uint64 `json:"interrupted"`
	Failed      uint64 `json:"failed"`
	// Descriptors not moved because they were invalid, by the method that found
	// them, and frames found to have two owners. All four should stay zero.
	RxRefused   uint64 `json:"rx_refused"`
	FillRefused uint64 `json:"fill_refused"`
	TxRefused   uint64 `json:"tx_refused"`
	Doubled     uint64 `json:"doubled"`
	// Kernel is XDP_STATISTICS (if_xdp.h).
	Kernel KernelStats `json:"kernel"`
}

// KernelStats is struct xdp_statistics of if_xdp.h.
type KernelStats struct {
	RxDropped            uint64 `json:"rx_dropped"`               // no frame to receive into, or too long for one
	RxInvalidDescs       uint64 `json:"rx_invalid_descs"`         // bad addresses in the fill ring
	TxInvalidDescs       uint64 `json:"tx_invalid_descs"`         // bad descriptors in the TX ring
	RxRingFull           uint64 `json:"rx_ring_full"`             // packets lost because Receive came too late
	RxFillRingEmptyDescs uint64 `json:"rx_fill_ring_empty_descs"` // times that no frame was there to receive into
	TxRingEmptyDescs     uint64 `json:"tx_ring_empty_descs"`      // times that the kernel found nothing to send
}

// Received is how many packets Receive has taken since the socket was opened.
func (s *Socket) Received() uint64 { return s.count.received.Load() }

// NAPI is the id of the driver's polling that Kick runs with BusyPoll
// (SO_INCOMING_NAPI_ID), 0 if the kernel knows of none: its calls then do nothing.
// Before Linux 6.13 it is known from the first packet on. From 6.14 on it is known
// when Open returns, or never: the driver must tell the kernel which NAPI a queue
// belongs to (netif_queue_set_napi), which veth does not as of 6.18.
func (s *Socket) NAPI() (id int, err error) {
	id, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
	if err != nil {
		return 0, fmt.Errorf("interface %d queue %d: SO_INCOMING_NAPI_ID: %w", s.ifindex, s.queue, err)
	}
	return id, nil
}

// Stats reads the counters. It takes the kernel's lock of the socket for a
// moment: for metrics, not for every burst. On a closed socket it fails with
// EBADF, the own counters still being right.
func (s *Socket) Stats() (Stats, error) {
	c := &s.count
	st := Stats{
		Received: c.received.Load(), Filled: c.filled.Load(),
		Transmitted: c.transmitted.Load(), Reclaimed: c.reclaimed.Load(),
		Sends: c.sends.Load(), Wakeups: c.wakeups.Load(),
		Again: c.again.Load(), Busy: c.busy.Load(), NoBuffers: c.noBuffers.Load(),
		Interrupted: c.interrupted.Load(), Failed: c.failed.Load(),
		RxRefused: c.rxRefused.Load(), FillRefused: c.fillRefused.Load(),
		TxRefused: c.txRefused.Load(), Doubled: c.doubled.Load(),
	}
	var k unix.XDPStatistics
	if err := getStatistics(s.fd, &k); err != nil {
		return st, fmt.Errorf("interface %d queue %d: XDP_STATISTICS: %w", s.ifindex, s.queue, err)
	}
	st.Kernel = KernelStats{
		RxDropped: k.Rx_dropped, RxInvalidDescs: k.Rx_invalid_descs, TxInvalidDescs: k.Tx_invalid_descs,
		RxRingFull: k.Rx_ring_full, RxFillRingEmptyDescs: k.Rx_fill_ring_empty_descs, TxRingEmptyDescs: k.Tx_ring_empty_descs,
	}
	return st, nil
}

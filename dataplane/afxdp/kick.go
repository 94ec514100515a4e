package afxdp

import "golang.org/x/sys/unix"

// maxSends bounds the system calls of one Kick: 512 descriptors in copy mode on
// a kernel without XDP_MAX_TX_SKB_BUDGET, eight full bursts. What is left goes
// with the next Kick.
const maxSends = 16

// probeEvery is how many Kicks in a row may pass without a system call before
// one asks whether the interface still exists. A power of two.
const probeEvery = 1024

// Kick lets the kernel work where the rings say that it must be asked. Call it
// once a burst, after Transmit and Fill, and with BusyPoll on every turn.
//
// Sending: while the TX ring has descriptors not yet taken and its NEED_WAKEUP
// flag is up, sendto is called, until the ring is empty, a call makes no
// progress, or maxSends calls were made. Receiving: recvfrom is called where the
// fill ring's flag is up, and always with BusyPoll unless sendto has just run
// the driver. Congestion (EAGAIN, EBUSY, ENOBUFS, EINTR, ENOMEM) is counted and
// is no error. Everything else comes as a *KickError: ErrDown when the interface
// is down, ErrGone when it does not exist any more.
func (s *Socket) Kick() error {
	sent := false
	if s.tx.pending() != 0 {
		var err error
		if sent, err = s.kickTx(); err != nil {
			return err
		}
	}
	switch {
	case s.busyPoll && !sent, s.fill.needWakeup():
	case sent:
		s.quiet = 0
		return nil
	default:
		s.quiet++
		if s.quiet&(probeEvery-1) != 0 {
			return nil
		}
	}
	s.quiet = 0
	s.count.wakeups.Add(1)
	return s.passing(recvErrors, recvFrom(s.fd))
}

// kickTx drains the TX ring, and tells whether it made any system call.
func (s *Socket) kickTx() (sent bool, err error) {
	left := s.tx.next - s.tx.seen
	for range maxSends {
		if !s.tx.needWakeup() {
			return sent, nil
		}
		sent = true
		s.count.sends.Add(1)
		if err := s.passing(sendErrors, sendTo(s.fd)); err != nil {
			return sent, err
		}
		now := s.tx.pending()
		if now == 0 || now == left {
			return sent, nil
		}
		left = now
	}
	return sent, nil
}

// passing counts the errors that only mean "later" and returns the others.
func (s *Socket) passing(table *[errnos]KickError, errno unix.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EAGAIN:
		s.count.again.Add(1)
	case unix.EBUSY:
		s.count.busy.Add(1)
	case unix.ENOBUFS, unix.ENOMEM:
		s.count.noBuffers.Add(1)
	case unix.EINTR:
		s.count.interrupted.Add(1)
	default:
		s.count.failed.Add(1)
		return &table[uint8(errno)]
	}
	return nil
}

// Probe asks the kernel whether the interface still exists: nil, or a
// *KickError as Kick's. It costs one recvfrom and may be called from any
// goroutine while the socket is open.
func (s *Socket) Probe() error {
	return s.passing(recvErrors, recvFrom(s.fd))
}

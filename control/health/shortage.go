package health

import (
	"crypto/x509"
	"errors"
	"os"
	"syscall"
	"time"
)

// calm is how long no check has met with a shortage when that is over.
const calm = 10 * time.Second

// Shortage is something that the host lacks, so that checks cannot be made. Such a check
// counts neither for nor against its backend.
type Shortage struct {
	Key    // of a backend that it keeps from being checked, the first one
	Reason string
	Over   bool // it has ended
}

// shortage is how many backends one keeps from being checked, and when it last did.
type shortage struct {
	Shortage
	backends int
	last     time.Time
}

// lack is what the host lacks if that is why a check failed, else "". What says that the
// way to the backend does not work, as that a network is unreachable, is no lack of the
// host's. A backend cannot bring about any of these: the errors that ICMP tells of are
// others.
func lack(err error) string {
	if errors.Is(err, errStuck) {
		return errStuck.Error()
	}
	if errors.As(err, new(x509.SystemRootsError)) {
		return "" // the process has kept it since its first check: it would never be over
	}
	var number syscall.Errno
	errors.As(err, &number)
	switch number {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS:
	case syscall.EAGAIN:
		var call *os.SyscallError
		if errors.As(err, &call) && call.Syscall == "connect" { // of UDP
			return "no local port is free"
		}
		return "no more processes may be started"
	case syscall.EADDRNOTAVAIL, syscall.EADDRINUSE: // no source address, or no port of it is free
	case syscall.ECHILD: // somebody else has waited for the command
	default:
		return ""
	}
	return number.Error()
}

// keep notes why t cannot be checked, "" if it can, and reports whether that is news.
func (e *Engine) keep(t *entry, why string, now time.Time) bool {
	before := t.status.Unchecked
	if s := e.shortages[before]; s != nil {
		s.backends--
	}
	t.status.Unchecked = why
	if why != "" {
		s := e.shortages[why]
		if s == nil {
			s = &shortage{Shortage: Shortage{Key: t.Key, Reason: why}}
			e.shortages[why] = s
			e.short = append(e.short, s.Shortage)
		}
		s.backends++
		s.last = now
	}
	return before != why
}

// ease ends the shortages that are over, and says when to look again, wait at most.
func (e *Engine) ease(now time.Time, wait time.Duration) time.Duration {
	for why, s := range e.shortages {
		if s.backends > 0 {
			continue
		}
		left := s.last.Add(calm).Sub(now)
		if left > 0 {
			wait = min(wait, left)
			continue
		}
		delete(e.shortages, why)
		s.Over = true
		e.short = append(e.short, s.Shortage)
	}
	return wait
}

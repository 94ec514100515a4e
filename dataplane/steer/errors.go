package steer

import (
	"errors"
	"fmt"
)

// Errors of this package, to be told with errors.Is.
var (
	// ErrRule is a rule that makes no sense: not a unicast address, port 0, ...
	ErrRule = errors.New("bad steering rule")
	// ErrHostAddress is an address in Rules.Addrs that the host has: taking all
	// of it would cut off ssh. Name its services and port ranges instead.
	ErrHostAddress = errors.New("address belongs to the host")
	// ErrPermission is a missing capability.
	ErrPermission = errors.New("not permitted")
	// ErrAttached is a NIC that has another XDP program; see AttachedError.
	ErrAttached = errors.New("another XDP program is attached")
	// ErrNoInterface is an interface that does not exist (any more).
	ErrNoInterface = errors.New("no such interface")
	// ErrUnsupported is an attach mode the NIC or its driver refuses.
	ErrUnsupported = errors.New("XDP mode refused")
	// ErrQueue is a queue outside Options.MaxQueues.
	ErrQueue = errors.New("no such queue")
)

// AttachedError says which program is in the way; errors.Is(err, ErrAttached).
type AttachedError struct {
	Interface string
	Mode      Mode   // how it is attached; Auto if the kernel does not say
	ProgramID uint32 // 0 if it went away meanwhile
	Program   string // name, "" if the kernel does not tell
	LinkID    uint32 // bpf_link that holds it, 0 if it was attached without one
}

// Error names the program and the command that removes it.
func (e *AttachedError) Error() string {
	if e.ProgramID == 0 {
		return fmt.Sprintf("%s: %v (it is gone by now; try again)", e.Interface, ErrAttached)
	}
	name := ""
	if e.Program != "" {
		name = fmt.Sprintf(" %q", e.Program)
	}
	off := "xdp"
	if e.Mode == Generic {
		off = "xdpgeneric"
	}
	remove := fmt.Sprintf("remove it with: ip link set dev %s %s off", e.Interface, off)
	if e.LinkID != 0 {
		remove = fmt.Sprintf("it is held by bpf_link %d: stop its owner, or: bpftool link detach id %d", e.LinkID, e.LinkID)
	}
	return fmt.Sprintf("%s: %v: program id %d%s, %s mode; %s", e.Interface, ErrAttached, e.ProgramID, name, e.Mode, remove)
}

// Unwrap makes errors.Is(err, ErrAttached) true.
func (e *AttachedError) Unwrap() error { return ErrAttached }

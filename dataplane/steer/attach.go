package steer

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Mode is how a program is attached to a NIC.
type Mode uint8

// The modes. Auto tries Native, then Generic.
const (
	Auto    Mode = iota
	Native       // in the driver, before the kernel has built a packet
	Generic      // in the kernel's receive path, for any driver; slow
)

// String is the mode's name as the flag --xdp-mode takes it.
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case Native:
		return "native"
	case Generic:
		return "generic"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Attachment is an XDP program on an interface.
type Attachment struct {
	// Link holds the program there; closing it, or the end of the process,
	// detaches it. It is the caller's.
	Link link.Link
	Mode Mode // Native or Generic
	// Notes say why a mode was not to be had, one sentence each, for the log.
	Notes []string
}

// AttachProgram attaches any XDP program to the interface with that index in the
// network namespace of the calling thread, trying the modes that mode stands for.
// name is for messages. The errors are those of Steer.Attach.
func AttachProgram(p *ebpf.Program, ifindex int, name string, mode Mode) (Attachment, error) {
	tries := []Mode{mode}
	switch mode {
	case Auto:
		tries = []Mode{Native, Generic}
	case Native, Generic:
	default:
		return Attachment{}, fmt.Errorf("%s: %w: %s", name, ErrUnsupported, mode)
	}
	var notes []string
	var refused error
	for _, m := range tries {
		flags := link.XDPDriverMode
		if m == Generic {
			flags = link.XDPGenericMode
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: flags})
		switch {
		case err == nil:
			return Attachment{l, m, notes}, nil
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
			return Attachment{}, attachedError(ifindex, name)
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			return Attachment{}, permission(fmt.Errorf("%s: attach: %w", name, err))
		case errors.Is(err, unix.ENODEV):
			return Attachment{}, fmt.Errorf("%s: %w: %w", name, ErrNoInterface, err)
		}
		notes = append(notes, fmt.Sprintf("%s: no %s XDP: %v%s", name, m, err, hint(err)))
		refused = errors.Join(refused, fmt.Errorf("%s: %s: %w: %w%s", name, m, ErrUnsupported, err, hint(err)))
	}
	return Attachment{}, refused
}

// hint says what the drivers mean by an errno.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return " (the driver has no XDP)"
	case errors.Is(err, unix.ERANGE):
		return " (the MTU, of a veth its peer's, is too large for XDP)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return " (too few queues; fewer channels with ethtool -L may do)"
	case errors.Is(err, unix.EINVAL):
		return " (often the MTU or LRO: see the kernel log)"
	}
	return ""
}

// attachedError finds out what is attached to an interface.
func attachedError(ifindex int, name string) error {
	e := &AttachedError{Interface: name}
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil || dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached {
		return e
	}
	xdp := dev.Attrs().Xdp
	e.ProgramID = xdp.ProgId
	switch xdp.AttachMode {
	case nl.XDP_ATTACHED_DRV:
		e.Mode = Native
	case nl.XDP_ATTACHED_SKB:
		e.Mode = Generic
	}
	// All that follows needs CAP_SYS_ADMIN; without it the message says less.
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(e.ProgramID)); err == nil {
		if info, err := p.Info(); err == nil {
			e.Program = info.Name
		}
		_ = p.Close()
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err == nil && info.XDP() != nil && info.Program == ebpf.ProgramID(e.ProgramID) {
			e.LinkID = uint32(info.ID)
			break
		}
	}
	return e
}

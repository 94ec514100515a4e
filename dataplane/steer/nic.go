package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// NIC is the program attached to one interface. Its methods may be called from
// any goroutine; after Close only Close may be.
type NIC struct {
	// Notes say why a mode was not to be had, one sentence each, for the log.
	Notes []string

	steer *Steer
	link  link.Link
	mode  Mode
	objs  steerObjects
	once  sync.Once
	err   error
}

// Attach loads a program for the interface with that index in the network
// namespace of the calling thread and attaches it. mac is the interface's own
// address, nil for the one it has now. A NIC that has an XDP program gives an *AttachedError, a mode that
// the driver refuses an ErrUnsupported; Auto falls back and tells in Notes.
func (s *Steer) Attach(ifindex int, mac net.HardwareAddr, mode Mode) (*NIC, error) {
	name := fmt.Sprintf("interface %d", ifindex)
	dev, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("%s: %w", name, ErrNoInterface)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if mac == nil {
		mac = dev.Attrs().HardwareAddr
	}
	name = dev.Attrs().Name
	// The kernel would refuse just as well, but without saying whose it is.
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		return nil, attachedError(ifindex, name)
	}
	n := &NIC{steer: s}
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	err = n.SetMAC(mac)
	if err == nil {
		err = n.attach(ifindex, name, mode)
	}
	if err != nil {
		return nil, errors.Join(err, n.objs.Close())
	}
	s.mu.Lock()
	s.nics[n] = struct{}{}
	s.mu.Unlock()
	return n, nil
}

// load loads a program of its own for n, over the rules of all.
func (n *NIC) load() error {
	err := n.steer.spec.Copy().LoadAndAssign(&n.objs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		steerMapRules:     n.steer.slot,
		steerMapFragments: n.steer.fragments,
	}})
	if err != nil {
		return permission(fmt.Errorf("load steering program: %w", err))
	}
	return nil
}

// attach makes the link.
func (n *NIC) attach(ifindex int, name string, mode Mode) error {
	a, err := AttachProgram(n.objs.L4fwdSteer, ifindex, name, mode)
	if err != nil {
		return err
	}
	n.link, n.mode, n.Notes = a.Link, a.Mode, a.Notes
	return nil
}

// Mode is how the program got attached: Native or Generic.
func (n *NIC) Mode() Mode { return n.mode }

// Attached reports whether the program still receives frames: the link of an
// interface that was deleted lives on without one.
func (n *NIC) Attached() (bool, error) {
	info, err := n.link.Info()
	if err != nil {
		return false, fmt.Errorf("steering link: %w", err)
	}
	xdp := info.XDP()
	return xdp != nil && xdp.Ifindex != 0, nil
}

// SetMAC tells the program the interface's own address.
func (n *NIC) SetMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 {
		return fmt.Errorf("MAC address %q: %d bytes instead of 6", mac, len(mac))
	}
	// As mac48 in steer.c reads it.
	v := uint64(binary.NativeEndian.Uint32(mac)) | uint64(binary.NativeEndian.Uint16(mac[4:]))<<32
	if err := n.objs.NicMac.Put(uint32(0), v); err != nil {
		return fmt.Errorf("set MAC address of steering program: %w", err)
	}
	return nil
}

// SetSocket makes a queue redirect to the AF_XDP socket fd, which has to be
// bound to this interface and queue. The caller keeps fd; closing it clears
// the queue.
func (n *NIC) SetSocket(queue, fd int) error {
	if err := n.checkQueue(queue); err != nil {
		return err
	}
	if err := n.objs.Sockets.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("steer queue %d to socket %d: %w", queue, fd, err)
	}
	return nil
}

func (n *NIC) checkQueue(queue int) error {
	if queue < 0 || queue >= n.steer.opts.MaxQueues {
		return fmt.Errorf("%w: %d (at most %d queues)", ErrQueue, queue, n.steer.opts.MaxQueues)
	}
	return nil
}

// Stats reads the counters, summed over the CPUs; those of one moment may be
// torn against each other by frames under way.
func (n *NIC) Stats() (Stats, error) {
	var s Stats
	for c := range s {
		var cpus []uint64
		if err := n.objs.Stats.Lookup(uint32(c), &cpus); err != nil {
			return Stats{}, fmt.Errorf("steering counter %s: %w", Counter(c), err)
		}
		for _, v := range cpus {
			s[c] += v
		}
	}
	return s, nil
}

// Close detaches the program and releases its maps. From then on the kernel
// gets every frame again.
func (n *NIC) Close() error {
	n.once.Do(func() {
		n.steer.mu.Lock()
		delete(n.steer.nics, n)
		n.steer.mu.Unlock()
		n.err = errors.Join(n.link.Close(), n.objs.Close())
	})
	return n.err
}

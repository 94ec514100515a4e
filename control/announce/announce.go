package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// How often and how densely an address is announced: what RFC 4861 section 10
// allows at most, and RFC 5227 section 1.1 asks for about.
const (
	Repeats = 3
	Spacing = time.Second
)

// Place is an address in one of the networks that a NIC is in.
type Place struct {
	Addr netip.Addr
	Tag  uint32 // IEEE 802.1Q: TPID<<16 | VLAN id; 0 is untagged
}

// Announcer speaks for addresses on one NIC. Its methods may be called by
// several goroutines at once.
type Announcer struct {
	// Repeats and Spacing may be changed before the first use.
	Repeats int
	Spacing time.Duration

	ifindex int
	mac     [6]byte

	mu     sync.Mutex
	fd     int // -1 when closed
	joined map[netip.Addr]bool
	groups map[[6]byte]int // how many of joined are in each
	all    bool            // the NIC takes every group
}

// Open opens a packet socket on the interface, in the network namespace of the
// calling thread. mac is the address announced: the NIC's own. It needs
// CAP_NET_RAW.
func Open(ifindex int, mac net.HardwareAddr) (*Announcer, error) {
	if len(mac) != 6 {
		return nil, fmt.Errorf("announcing on interface %d: %q is no Ethernet address", ifindex, mac)
	}
	// Protocol 0: receives nothing, so no packet is ever copied for it.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil {
		return nil, errors.Join(fmt.Errorf("binding a packet socket to interface %d: %w", ifindex, err), unix.Close(fd))
	}
	return &Announcer{
		Repeats: Repeats, Spacing: Spacing,
		ifindex: ifindex, mac: [6]byte(mac), fd: fd, joined: map[netip.Addr]bool{}, groups: map[[6]byte]int{},
	}, nil
}

// OpenAt is Open in another network namespace; zero or netns.None() is the
// calling thread's.
func OpenAt(ns netns.NsHandle, ifindex int, mac net.HardwareAddr) (*Announcer, error) {
	if ns <= 0 {
		return Open(ifindex, mac)
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("finding the network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("entering a network namespace: %w", err)
	}
	a, openErr := Open(ifindex, mac)
	if err := netns.Set(home); err != nil {
		// The thread stays locked and ends with its goroutine: nobody else may
		// run in the wrong namespace.
		if a != nil {
			err = errors.Join(err, a.Close())
		}
		return nil, fmt.Errorf("leaving a network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return a, openErr
}

// Announce tells the neighbours, Repeats times with Spacing between, that the
// addresses are at this NIC, each in its VLAN. It returns when all is said or ctx is done, in
// which case its error is ctx's. An address that cannot be announced (invalid,
// multicast, unspecified) is an error before anything is sent; a failed
// transmission, say while the NIC is down, does not keep back the others, and
// is reported at the end unless a later repetition got through.
func (a *Announcer) Announce(ctx context.Context, places []Place) error {
	places = slices.Clone(places)
	for i, p := range places {
		addr := p.Addr
		places[i].Addr = addr.Unmap().WithZone("")
		if !addr.IsValid() || addr.IsMulticast() || addr.IsUnspecified() {
			return fmt.Errorf("announcing %v: not an address of one host", addr)
		}
	}
	failed := map[Place]error{}
	for i := range a.Repeats {
		if i > 0 {
			if err := wait(ctx, a.Spacing); err != nil {
				return fmt.Errorf("announcing addresses: %w", err)
			}
		}
		for _, p := range places {
			if err := a.send(p); err != nil {
				failed[p] = fmt.Errorf("announcing %v: %w", p.Addr, err)
			} else {
				delete(failed, p)
			}
		}
	}
	var all []error
	for _, p := range places {
		all = append(all, failed[p])
	}
	return errors.Join(all...)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (a *Announcer) send(p Place) error {
	frame, to := frameFor(p, a.mac)
	dst := &unix.SockaddrLinklayer{Ifindex: a.ifindex, Halen: 6}
	copy(dst.Addr[:], to[:])
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return net.ErrClosed
	}
	return unix.Sendto(a.fd, frame, 0, dst)
}

// Close leaves all groups and closes the socket. A second call does nothing.
func (a *Announcer) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd < 0 {
		return nil
	}
	fd := a.fd
	a.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("closing a packet socket: %w", err)
	}
	return nil
}

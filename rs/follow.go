package rs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// follower knows the addresses of a network namespace.
type follower struct {
	ns    netns.NsHandle
	nl    *netlink.Handle // nil until open
	hosts []netip.Addr    // as the map has them
}

// open remembers the namespace of the calling thread.
func (f *follower) open() (err error) {
	if f.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if f.nl, err = netlink.NewHandleAt(f.ns, unix.NETLINK_ROUTE); err != nil {
		return errors.Join(fmt.Errorf("netlink: %w", err), f.ns.Close())
	}
	return nil
}

// Close releases it.
func (f *follower) Close() error {
	if f.nl == nil {
		return nil
	}
	f.nl.Close()
	f.nl = nil
	return f.ns.Close()
}

// list are all addresses now.
func (f *follower) list() ([]netip.Addr, error) {
	addrs, err := f.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if h, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, h.Unmap())
		}
	}
	return out, nil
}

// syncHosts brings the map of the host's addresses up to date.
func (d *Decap) syncHosts() error {
	now, err := d.follow.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range now {
		if err := d.objs.Hosts.Put(a.As16(), uint8(1)); err != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
		}
	}
	for _, a := range d.follow.hosts {
		if slices.Contains(now, a) {
			continue
		}
		if err := d.objs.Hosts.Delete(a.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("address %s: %w", a, err))
		}
	}
	d.follow.hosts = now
	return errors.Join(errs...)
}

// Follow keeps the host's addresses up to date until ctx is done, telling tell
// what goes wrong; it goes on all the same.
func (d *Decap) Follow(ctx context.Context, tell func(error)) {
	for ctx.Err() == nil {
		done := make(chan struct{})
		updates := make(chan netlink.AddrUpdate, 64)
		err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{Namespace: &d.follow.ns, ErrorCallback: func(err error) {
			if ctx.Err() == nil { // else it is the end that we asked for
				tell(err)
			}
		}})
		if err != nil {
			tell(fmt.Errorf("follow the host's addresses: %w", err))
		} else if err := d.syncHosts(); err != nil { // what changed before
			tell(err)
		}
		for open := err == nil; open; {
			select {
			case _, open = <-updates:
				if err := d.syncHosts(); err != nil {
					tell(err)
				}
			case <-ctx.Done():
				open = false
			}
		}
		close(done)
		for err == nil { // until the other end has ended: it must not be left hanging
			if _, open := <-updates; !open {
				break
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

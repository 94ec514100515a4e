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
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// follower knows the addresses of a network namespace: that of the thread that opened
// it, where its sockets stay.
type follower struct {
	asks  *netlink.Handle // nil until open
	hears *nl.NetlinkSocket
	hosts []netip.Addr // as the map has them
}

// hearing is how long a wait for changes takes at most, so that it has an end.
const hearing = 300 * time.Millisecond

func (f *follower) open() (err error) {
	if f.hears, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	wait := unix.NsecToTimeval(int64(hearing))
	err = f.hears.SetReceiveTimeout(&wait)
	if err == nil {
		f.asks, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		f.hears.Close()
		return fmt.Errorf("netlink: %w", err)
	}
	return nil
}

func (f *follower) close() {
	if f.asks != nil {
		f.asks.Close()
		f.hears.Close()
		f.asks = nil
	}
}

// list are all addresses now.
func (f *follower) list() ([]netip.Addr, error) {
	addrs, err := f.asks.AddrList(nil, netlink.FAMILY_ALL)
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

// Follow keeps the host's addresses up to date until ctx is done. What goes wrong it
// tells and goes on.
func (d *Decap) Follow(ctx context.Context, tell func(error)) {
	for ctx.Err() == nil {
		_, _, err := d.follow.hears.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR): // nothing for so long, or a signal
			continue
		case errors.Is(err, unix.ENOBUFS): // more than there was room for
		case err != nil:
			tell(fmt.Errorf("follow the host's addresses: %w", err))
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		if err := d.syncHosts(); err != nil && ctx.Err() == nil {
			tell(err)
		}
	}
}

package direct

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Device is the TUN device's name.
	Device = "l4fwd-checks"
	// Mark is the firewall mark of the sockets of checks, all 32 bits of it.
	Mark = 0x6c346863
	// Table is the routing table for what bears the mark, and rulePriority the place
	// of the rule that says so: before all but the kernel's own rule for local
	// addresses, and what hosts put in front on purpose.
	Table        = 27700
	rulePriority = 90
	// deviceMTU leaves room for any tunnel, and is the least that IPv6 has (RFC 8200
	// section 5).
	deviceMTU = 1280
)

// openDevice makes the TUN device, in the calling thread's network namespace. It is
// gone when the file is closed.
func openDevice() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(Device)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TUN device %s: %w", Device, err), unix.Close(fd))
	}
	// Only now: a TUN file that has no device yet cannot be waited for.
	return os.NewFile(uintptr(fd), Device), nil
}

// rules are the two that lead what is marked into the table.
func rules() []*netlink.Rule {
	var out []*netlink.Rule
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r, mask := netlink.NewRule(), ^uint32(0)
		r.Family, r.Priority, r.Mark, r.Mask, r.Table = family, rulePriority, Mark, &mask, Table
		out = append(out, r)
	}
	return out
}

// divert has the kernel send what is marked to the device.
func divert() error {
	dev, err := netlink.LinkByName(Device)
	if err != nil {
		return fmt.Errorf("TUN device %s: %w", Device, err)
	}
	const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE: it needs no link-local address
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+Device+"/addr_gen_mode", fmt.Append(nil, noAddress), 0)
	six := !errors.Is(err, os.ErrNotExist) // or the host has no IPv6
	if err = netlink.LinkSetMTU(dev, deviceMTU); err == nil {
		err = netlink.LinkSetUp(dev)
	}
	if err != nil {
		return fmt.Errorf("TUN device %s: %w", Device, err)
	}
	for _, r := range rules() {
		everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if r.Family == netlink.FAMILY_V6 {
			if !six {
				continue
			}
			everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		to := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: everything, Table: Table, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(to); err != nil {
			return fmt.Errorf("route by %s: %w", Device, err)
		}
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing rule for checks: %w", err)
		}
	}
	return nil
}

// undivert takes the rules away, of a crashed run too, and reports whether there were
// any. The route went with the device.
func undivert() (removed bool, err error) {
	var errs []error
	for _, r := range rules() {
		for {
			err := netlink.RuleDel(r)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
				break // none, no IPv6, no rules in this kernel
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("routing rule for checks: %w", err))
				break
			}
			removed = true
		}
	}
	return removed, errors.Join(errs...)
}

// Repair takes away the rules that a crash has left in the calling thread's network
// namespace, and reports whether there were any. If there is the device, which ends with
// its process, somebody carries checks, and the rules are his.
func Repair() (removed bool, err error) {
	_, err = netlink.LinkByName(Device)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil:
		return false, nil
	case !errors.As(err, &missing):
		return false, fmt.Errorf("TUN device %s: %w", Device, err)
	}
	return undivert()
}

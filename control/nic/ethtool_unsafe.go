package nic

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool commands the ethtool module lacks (include/uapi/linux/ethtool.h).
const (
	cmdGetRSS        = 0x46 // ETHTOOL_GRSSH
	cmdGetHashFields = 0x29 // ETHTOOL_GRXFH
)

// ifreq is struct ifreq with its data pointer.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

var _ [40 - unsafe.Sizeof(ifreq{})]byte

// ethtoolIoctl has the kernel read and fill buf, which starts with a command.
// buf must be as long as the kernel's structure for what it asks.
func ethtoolIoctl(name string, buf []byte) error {
	if len(name) >= unix.IFNAMSIZ || len(buf) < 4 {
		return unix.EINVAL
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	req := &ifreq{data: unsafe.Pointer(&buf[0])}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req)))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return errno
	}
	return nil
}

// readRSS asks twice: for the sizes, then for the contents.
func readRSS(name string) (*RSS, error) {
	order := binary.NativeEndian
	head := make([]byte, rxfhConfig)
	order.PutUint32(head, cmdGetRSS)
	if err := ethtoolIoctl(name, head); err != nil {
		return nil, fmt.Errorf("reading the RSS configuration of %s: %w", name, err)
	}
	entries, key := order.Uint32(head[rxfhIndirSize:]), order.Uint32(head[rxfhKeySize:])
	if entries > rxfhMaxEntries || key > rxfhMaxEntries {
		return nil, fmt.Errorf("reading the RSS configuration of %s: %d entries and %d bytes of key", name, entries, key)
	}
	all := make([]byte, rxfhConfig+4*int(entries)+int(key))
	order.PutUint32(all, cmdGetRSS)
	order.PutUint32(all[rxfhIndirSize:], entries)
	order.PutUint32(all[rxfhKeySize:], key)
	if err := ethtoolIoctl(name, all); err != nil {
		return nil, fmt.Errorf("reading the RSS configuration of %s: %w", name, err)
	}
	r := parseRSS(all)
	for _, f := range []struct {
		flow uint32
		to   *HashFields
	}{{flowTCP4, &r.TCP4}, {flowUDP4, &r.UDP4}, {flowTCP6, &r.TCP6}, {flowUDP6, &r.UDP6}} {
		*f.to = readHashFields(name, f.flow)
	}
	return r, nil
}

// Flow types of ethtool.
const (
	flowTCP4 = 1
	flowUDP4 = 2
	flowTCP6 = 5
	flowUDP6 = 6
)

// readHashFields returns 0 where the driver does not tell.
func readHashFields(name string, flow uint32) HashFields {
	buf := make([]byte, 256) // struct ethtool_rxnfc, and more
	binary.NativeEndian.PutUint32(buf, cmdGetHashFields)
	binary.NativeEndian.PutUint32(buf[4:], flow)
	if err := ethtoolIoctl(name, buf); err != nil {
		return 0
	}
	return HashFields(binary.NativeEndian.Uint64(buf[8:]))
}

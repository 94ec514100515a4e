package testbed

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreqData is struct ifreq with its ifr_data member (linux/if.h).
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// ethtoolIoctl passes buf, which begins with the command word, to the device's
// ethtool handler; the kernel answers in place.
func ethtoolIoctl(fd int, device string, buf []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&buf[0])
	var req ifreqData
	copy(req.name[:unix.IFNAMSIZ-1], device)
	req.data = unsafe.Pointer(&buf[0])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}

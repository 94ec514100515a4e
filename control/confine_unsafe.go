package control

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onAllThreads makes a system call in every thread of the process, of which later ones
// inherit what it has done. The world stops meanwhile.
func onAllThreads(call, a, b uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(call, a, b, 0); errno != 0 {
		return errno
	}
	return nil
}

// setCapabilities makes c the effective and the permitted ones of all threads, and none
// of them inheritable: which leaves none ambient (capabilities(7)).
func setCapabilities(c capabilities) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // PID 0: the thread that calls
	data := [2]unix.CapUserData{
		{Effective: uint32(c), Permitted: uint32(c)},
		{Effective: uint32(c >> 32), Permitted: uint32(c >> 32)},
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0); errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}

package nic

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// within runs fn on a thread in the namespace; zero or netns.None() is that of
// the calling thread.
func within(ns netns.NsHandle, fn func() error) error {
	if ns <= 0 {
		return fn()
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("finding the network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	err = fn()
	if back := netns.Set(home); back != nil {
		// The thread stays locked and ends with its goroutine: nobody else may
		// run in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leaving a network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// namespaceHere is the inode that names the calling thread's namespace.
func namespaceHere() (uint64, error) {
	inode, err := inodeOf("/proc/thread-self/ns/net")
	if err != nil {
		return 0, fmt.Errorf("finding the network namespace: %w", err)
	}
	return inode, nil
}

func inodeOf(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// kernelsOwn is the network namespace of kthreadd, the machine's first. That of process 1
// may be another, and on some machines nobody may look into it. Tests that run in a
// container take that for the machine, here and in firstPIDs.
var kernelsOwn = "/proc/2/ns/net"

// findNamespace opens the namespace with that inode if any process is in it or
// it has a name; netns.None() if not. An error means that it may be there all the same.
func findNamespace(inode uint64) (netns.NsHandle, error) {
	for _, pattern := range []string{"/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, path := range paths {
			if i, err := inodeOf(path); err != nil || i != inode {
				continue
			}
			if ns, err := netns.GetFromPath(path); err == nil {
				return ns, nil
			}
		}
	}
	return netns.None(), seesAll()
}

// errHidden: some processes, or what they are in, cannot be seen from here.
var errHidden = errors.New("its network namespace may still be there")

// firstPIDs is the inode of the machine's first PID namespace (PROC_PID_INIT_INO of
// linux/proc_ns.h), which has all processes in it.
var firstPIDs = uint64(0xeffffffc)

// seesAll is an error if others may see more than this process does. Who may look into
// the kernel's own process, which has all capabilities, may look into any; what a
// security module denies him it denies everybody.
func seesAll() error {
	inode, err := inodeOf("/proc/self/ns/pid")
	if err == nil && inode != firstPIDs {
		err = errors.New("processes outside this container are not seen")
	}
	if err == nil {
		_, err = inodeOf(kernelsOwn)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errHidden, err)
	}
	return nil
}

// mountSysfs mounts sysfs of the calling thread's namespace, attached to no
// directory, and returns a path to it. Where the kernel or a container forbids
// that it returns /sys, which may show another namespace. The caller closes.
func mountSysfs() (root string, closeRoot func()) {
	const fallback = "/sys"
	nothing := func() {}
	fs, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fallback, nothing
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fallback, nothing
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fallback, nothing
	}
	return fmt.Sprintf("/proc/self/fd/%d", mount), func() { _ = unix.Close(mount) }
}

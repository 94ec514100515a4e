package afxdp

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendTo drives the TX side. RawSyscall: the call does not block
// (MSG_DONTWAIT), so the scheduler need not be told, which saves about 90 ns.
func sendTo(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// recvFrom drives the RX side; it copies nothing.
func recvFrom(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// getsockopt fills *v and returns how many bytes the kernel knew.
func getsockopt[T any](fd, opt int, v *T) (int, error) {
	n := uint32(unsafe.Sizeof(*v))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt),
		uintptr(unsafe.Pointer(v)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func getStatistics(fd int, st *unix.XDPStatistics) error {
	_, err := getsockopt(fd, unix.XDP_STATISTICS, st)
	return err
}

// ringOffsets asks where in their mappings the parts of the rings are. A kernel
// before 5.4 has no flags word and so no NEED_WAKEUP.
func ringOffsets(fd int) (unix.XDPMmapOffsets, error) {
	var off unix.XDPMmapOffsets
	n, err := getsockopt(fd, unix.XDP_MMAP_OFFSETS, &off)
	if err == nil && n < int(unsafe.Sizeof(off)) {
		err = errors.New("kernel is older than 5.4: no NEED_WAKEUP")
		return off, fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return off, err
}

// registerUMEM is setsockopt(XDP_UMEM_REG). The memory must be a mapping: its
// address is given to the kernel and must never move.
func registerUMEM(fd int, mem []byte, frameSize, headroom uint32) error {
	reg := unix.XDPUmemReg{
		Addr:     uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))),
		Len:      uint64(len(mem)),
		Size:     frameSize,
		Headroom: headroom,
	}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// address returns where a mapping begins.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }

// mapProducer maps a ring that we produce into; mapping is what to unmap.
func mapProducer[T entry](fd int, pgoff int64, off unix.XDPRingOffset, size int) (p producer[T], mapping []byte, err error) {
	mem, slots, err := mapRing[T](fd, pgoff, off, size)
	if err != nil {
		return p, nil, err
	}
	p = producer[T]{
		slots:    slots,
		shared:   (*uint32)(unsafe.Pointer(&mem[off.Producer])),
		consumed: (*uint32)(unsafe.Pointer(&mem[off.Consumer])),
		flags:    (*uint32)(unsafe.Pointer(&mem[off.Flags])),
	}
	return p, mem, nil
}

// mapConsumer maps a ring that the kernel produces into.
func mapConsumer[T entry](fd int, pgoff int64, off unix.XDPRingOffset, size int) (c consumer[T], mapping []byte, err error) {
	mem, slots, err := mapRing[T](fd, pgoff, off, size)
	if err != nil {
		return c, nil, err
	}
	c = consumer[T]{
		slots:    slots,
		shared:   (*uint32)(unsafe.Pointer(&mem[off.Consumer])),
		produced: (*uint32)(unsafe.Pointer(&mem[off.Producer])),
	}
	return c, mem, nil
}

func mapRing[T entry](fd int, pgoff int64, off unix.XDPRingOffset, size int) ([]byte, []T, error) {
	var t T
	length := int(off.Desc) + size*int(unsafe.Sizeof(t))
	mem, err := unix.Mmap(fd, pgoff, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, err
	}
	return mem, unsafe.Slice((*T)(unsafe.Pointer(&mem[off.Desc])), size), nil
}

package steer

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xsk is the least AF_XDP socket that can receive: its own UMEM, all frames in
// the fill ring. It shares nothing with dataplane/afxdp.
type xsk struct {
	fd   int
	umem []byte
	rx   []byte
	off  unix.XDPMmapOffsets
}

const (
	xskFrames    = 64
	xskFrameSize = 2048
)

// newXSK binds a socket in copy mode; it is closed with the test.
func newXSK(t testing.TB, ifindex, queue int) *xsk {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("AF_XDP socket: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	x := &xsk{fd: fd}
	x.umem, err = unix.Mmap(-1, 0, xskFrames*xskFrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatalf("mmap UMEM: %v", err)
	}
	t.Cleanup(func() { _ = unix.Munmap(x.umem) })
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.umem[0]))), Len: uint64(len(x.umem)), Size: xskFrameSize}
	setXDP(t, fd, unix.XDP_UMEM_REG, unsafe.Slice((*byte)(unsafe.Pointer(&reg)), unsafe.Sizeof(reg)))
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING} {
		size := uint32(xskFrames)
		setXDP(t, fd, ring, unsafe.Slice((*byte)(unsafe.Pointer(&size)), 4))
	}
	n := uint32(unsafe.Sizeof(x.off))
	if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&x.off)), uintptr(unsafe.Pointer(&n)), 0); e != 0 {
		t.Fatalf("XDP_MMAP_OFFSETS: %v", e)
	}
	x.rx = mapRing(t, fd, unix.XDP_PGOFF_RX_RING, x.off.Rx.Desc+16*xskFrames)
	fill := mapRing(t, fd, unix.XDP_UMEM_PGOFF_FILL_RING, x.off.Fr.Desc+8*xskFrames)
	for i := range uint64(xskFrames) {
		*(*uint64)(unsafe.Pointer(&fill[x.off.Fr.Desc+8*i])) = i * xskFrameSize
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&fill[x.off.Fr.Producer])), xskFrames)

	sa := &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(ifindex), QueueID: uint32(queue)}
	for tries := 0; ; tries++ {
		err = unix.Bind(fd, sa)
		if err == nil {
			return x
		}
		if tries == 100 {
			t.Fatalf("bind AF_XDP socket: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func setXDP(t testing.TB, fd, opt int, value []byte) {
	t.Helper()
	if err := unix.SetsockoptString(fd, unix.SOL_XDP, opt, string(value)); err != nil {
		t.Fatalf("setsockopt SOL_XDP %d: %v", opt, err)
	}
}

func mapRing(t testing.TB, fd int, offset int64, size uint64) []byte {
	t.Helper()
	b, err := unix.Mmap(fd, offset, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		t.Fatalf("mmap ring %#x: %v", offset, err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// received returns the frames in the RX ring so far, at most xskFrames.
func (x *xsk) received() [][]byte {
	n := atomic.LoadUint32((*uint32)(unsafe.Pointer(&x.rx[x.off.Rx.Producer])))
	frames := make([][]byte, n)
	for i := range frames {
		d := *(*unix.XDPDesc)(unsafe.Pointer(&x.rx[x.off.Rx.Desc+16*uint64(i)]))
		frames[i] = x.umem[d.Addr : d.Addr+uint64(d.Len)]
	}
	return frames
}

// await waits until n frames have been received by all sockets together.
func await(n int, sockets ...*xsk) ([][]byte, error) {
	var frames [][]byte
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		frames = frames[:0]
		for _, x := range sockets {
			frames = append(frames, x.received()...)
		}
		if len(frames) >= n {
			return frames, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil, fmt.Errorf("sockets received %d frames in 20 s, want %d", len(frames), n)
}

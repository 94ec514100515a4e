package liveframes

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/bpf.h: bpf_cmd and the flag that makes frames real.
const (
	bpfProgRun     = 10
	testLiveFrames = 1 << 1
)

// runAttr is the anonymous struct "test" of union bpf_attr.
type runAttr struct {
	progFD, retval          uint32
	dataSizeIn, dataSizeOut uint32
	dataIn, dataOut         uint64
	repeat, duration        uint32
	ctxSizeIn, ctxSizeOut   uint32
	ctxIn, ctxOut           uint64
	flags, cpu, batchSize   uint32
	_                       uint32
}

// runLive runs a program on live frames, each beginning as frame, until it has
// run repeat times or a signal comes (EINTR). Package ebpf makes the same call but
// begins again after a signal, so that nothing could end it.
func runLive(prog int, frame []byte, repeat, batch uint32) error {
	attr := runAttr{
		progFD: uint32(prog), dataSizeIn: uint32(len(frame)), repeat: repeat, flags: testLiveFrames, batchSize: batch,
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&frame[0])
	attr.dataIn = uint64(uintptr(unsafe.Pointer(&frame[0])))
	_, _, errno := unix.Syscall(unix.SYS_BPF, bpfProgRun, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return errno
	}
	return nil
}

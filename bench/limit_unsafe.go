package bench

import "unsafe"

// line is one cache line.
type line [16]uint32

const lineBytes = uint64(unsafe.Sizeof(line{}))

// lines is memory as cache lines. It is no Go memory: the lines go with it.
func lines(memory []byte) []line {
	return unsafe.Slice((*line)(unsafe.Pointer(unsafe.SliceData(memory))), uint64(len(memory))/lineBytes)
}

// address is where mapped memory begins.
func address(mapping []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mapping))))
}

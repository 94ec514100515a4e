//go:build !amd64 && !arm64

package cpu

const architected = false

// ticks of 0 stands for no counter.
func ticks() uint64 { return 0 }

// Where there is no instruction for it, what is not asked for comes when it is
// read.
func prefetch(_ *byte, _ *uint64, _ uint64) {}

package afxdp

import "golang.org/x/sys/unix"

// The method set that a worker needs, repeated here because this package must
// not import the one that declares it.
var _ interface {
	Receive(d []unix.XDPDesc) int
	Fill(addrs []uint64) int
	FillFree() int
	Transmit(d []unix.XDPDesc) int
	Reclaim(addrs []uint64) int
	Kick() error
	FD() int
	Held(dst []uint64) []uint64
} = (*Socket)(nil)

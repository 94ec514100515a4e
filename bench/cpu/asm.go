//go:build amd64 || arm64

package cpu

import "runtime"

const architected = runtime.GOARCH == "arm64"

// ticks reads the time stamp counter after everything before it.
func ticks() uint64

// prefetch asks for the line at each of the n offsets, in bytes, from base on.
//
//go:noescape
func prefetch(base *byte, offset *uint64, n uint64)

package testbed

import (
	"sync/atomic"
	"unsafe"
)

// statusWord is the word of a TPACKET_V3 block by which kernel and reader hand
// it over (block_status of struct tpacket_hdr_v1, linux/if_packet.h). Blocks
// are page-aligned, so the word is aligned for atomics.
func statusWord(block []byte) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&block[8]))
}

package nat

import (
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// ISN generates initial sequence numbers for the server's side of Full-NAT
// flows as RFC 6528 section 3 describes: a clock plus a keyed hash of both
// endpoints. It is needed because one (local address, local port, backend)
// serves many clients one after another: to the backend that is one host whose
// sequence numbers must move forward, or its TIME_WAIT state refuses the SYN.
//
// The clock ticks every 64 ns and not every 4 µs as in RFC 6528: a tuple can be
// reused after a few milliseconds, and a connection that moved more than 1 MB
// in 4 s has overrun the slow clock. It wraps every 275 s.
type ISN struct{ k0, k1 uint64 }

// NewISN returns a generator with the given secret. A replay gives a fixed
// secret to be reproducible; a daemon a random one.
func NewISN(secret [16]byte) ISN {
	return ISN{
		k0: binary.LittleEndian.Uint64(secret[:8]),
		k1: binary.LittleEndian.Uint64(secret[8:]),
	}
}

// isnShift turns nanoseconds into 64 ns ticks.
const isnShift = 6

// Next returns the sequence number a SYN from src:sport to dst:dport should
// bear at nanos, a monotonic clock in nanoseconds. The hash runs over both
// whole addresses, IPv6 included.
func (s *ISN) Next(src packet.Addr, sport uint16, dst packet.Addr, dport uint16, nanos int64) uint32 {
	var m [36]byte
	src.Put16(m[0:])
	dst.Put16(m[16:])
	binary.BigEndian.PutUint16(m[32:], sport)
	binary.BigEndian.PutUint16(m[34:], dport)
	return uint32(uint64(nanos)>>isnShift) + uint32(sipHash24(s.k0, s.k1, m[:]))
}

// isnStep is how far beyond the last sequence number a corrected ISN lies: one
// unscaled window, so that no segment of the old connection that is still in
// flight can fall into the new one's first window.
const isnStep = 1 << 16

// BeyondLast returns isn if it lies after last in sequence space, else a number
// isnStep beyond last. last is the highest sequence number (plus one) that the
// server has been sent on the same tuple, in the server's space, that is, after
// SeqDelta was added. It is for a tuple that is opened again while its old entry
// is still there: Linux takes a SYN in TIME_WAIT only if its sequence number is
// beyond what it received (RFC 6191 section 2).
func BeyondLast(isn, last uint32) uint32 {
	if int32(isn-last) > 0 {
		return isn
	}
	return last + isnStep
}

// sipHash24 is SipHash-2-4 (Aumasson and Bernstein, 2012) of m under the key
// k0, k1. Written out for messages of any length so that the published test
// vectors apply.
func sipHash24(k0, k1 uint64, m []byte) uint64 {
	v0 := k0 ^ 0x736f6d6570736575
	v1 := k1 ^ 0x646f72616e646f6d
	v2 := k0 ^ 0x6c7967656e657261
	v3 := k1 ^ 0x7465646279746573
	last := uint64(len(m)) << 56
	for len(m) >= 8 {
		w := binary.LittleEndian.Uint64(m)
		v3 ^= w
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0 ^= w
		m = m[8:]
	}
	for i, b := range m {
		last |= uint64(b) << (8 * i)
	}
	v3 ^= last
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	v0 ^= last
	v2 ^= 0xff
	for range 4 {
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
	}
	return v0 ^ v1 ^ v2 ^ v3
}

func sipRound(v0, v1, v2, v3 uint64) (uint64, uint64, uint64, uint64) {
	v0 += v1
	v2 += v3
	v1 = bits.RotateLeft64(v1, 13) ^ v0
	v3 = bits.RotateLeft64(v3, 16) ^ v2
	v0 = bits.RotateLeft64(v0, 32)
	v2 += v1
	v0 += v3
	v1 = bits.RotateLeft64(v1, 17) ^ v2
	v3 = bits.RotateLeft64(v3, 21) ^ v0
	v2 = bits.RotateLeft64(v2, 32)
	return v0, v1, v2, v3
}

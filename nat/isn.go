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
// in 4 s has overrun the slow clock. It wraps every 275 s, so it says nothing
// after a connection that lasted for minutes, and one faster than 15.6 MB/s
// overruns it: tuples that the clock alone does not serve are remembered until
// the backend has forgotten them, see Closed.
//
// It belongs to one worker, as the tuples do. 768 KiB.
type ISN struct {
	k0, k1 uint64
	epoch  int64
	ends   [isnEnds]isnEnd
}

// isnEnd is where the last connection of a tuple ended.
type isnEnd struct {
	tuple uint32 // the upper half of its hash
	at    uint32 // when, in units of endShift
	last  uint32
}

const (
	// isnEnds bounds the tuples remembered, a power of two. One that gets the
	// place of another costs that, at worst, the second a SYN's repetition takes.
	isnEnds = 1 << 16

	// isnShift turns nanoseconds into 64 ns ticks, endShift into units of 67 ms.
	isnShift, endShift = 6, 26

	// isnMemory is how long TIME_WAIT lasts, in nanoseconds, and more: 60 s in
	// Linux.
	isnMemory = 100e9

	// isnLead bounds the ticks by which the clock may lie beyond the last number
	// at the end of a connection and still do so isnMemory later.
	isnLead = 1<<31 - isnMemory>>isnShift
)

// NewISN returns a generator with the given secret. A replay gives a fixed
// secret to be reproducible; a daemon a random one. epoch, in nanoseconds, is
// added to the time that the methods are given. With the secret of an earlier
// process and an epoch that goes on where its time ended, numbers move forward
// over a restart too, but for what Closed was told.
func NewISN(secret [16]byte, epoch int64) *ISN {
	return &ISN{
		k0:    binary.LittleEndian.Uint64(secret[:8]),
		k1:    binary.LittleEndian.Uint64(secret[8:]),
		epoch: epoch,
	}
}

// Next returns the sequence number a SYN from src:sport to dst:dport should
// bear at nanos, a monotonic clock in nanoseconds. The hash runs over both
// whole addresses.
func (s *ISN) Next(src packet.Addr, sport uint16, dst packet.Addr, dport uint16, nanos int64) uint32 {
	nanos += s.epoch
	h := s.hash(src, sport, dst, dport)
	isn, end := clockISN(h, nanos), s.end(h)
	if end.tuple == uint32(h>>32) && uint32(nanos>>endShift)-end.at < isnMemory>>endShift {
		return beyondLast(isn, end.last)
	}
	return isn
}

// Closed notes that a connection of the tuple has ended at nanos. last is the
// highest sequence number (plus one) that the server has been sent, in the
// server's space, that is, after SeqDelta was added.
func (s *ISN) Closed(src packet.Addr, sport uint16, dst packet.Addr, dport uint16, last uint32, nanos int64) {
	nanos += s.epoch
	h := s.hash(src, sport, dst, dport)
	end, tuple := s.end(h), uint32(h>>32)
	switch lead := clockISN(h, nanos) - last; {
	case lead-1 >= isnLead:
		*end = isnEnd{tuple: tuple, at: uint32(nanos >> endShift), last: last}
	case end.tuple == tuple:
		*end = isnEnd{} // of a connection before
	}
}

// end is where the end of a tuple with hash h is remembered.
func (s *ISN) end(h uint64) *isnEnd { return &s.ends[h>>32%isnEnds] }

// hash is SipHash of both addresses, then both ports, in network order: 12 bytes of IPv4,
// 36 of IPv6. SipHash takes the length in. The secret outlives the process, see NewISN: a
// version that hashes otherwise begins anew with all tuples, and servers in TIME_WAIT may
// refuse the first connections after it was started.
func (s *ISN) hash(src packet.Addr, sport uint16, dst packet.Addr, dport uint16) uint64 {
	ports := uint64(bits.ReverseBytes32(uint32(sport)<<16 | uint32(dport)))
	if src.Is4() && dst.Is4() {
		return sipWords(s.k0, s.k1, &[sipMost]uint64{bits.ReverseBytes64(uint64(src.V4())<<32 | uint64(dst.V4())), 12<<56 | ports}, 2)
	}
	return sipWords(s.k0, s.k1, &[sipMost]uint64{
		bits.ReverseBytes64(src.Hi), bits.ReverseBytes64(src.Lo), bits.ReverseBytes64(dst.Hi), bits.ReverseBytes64(dst.Lo), 36<<56 | ports,
	}, sipMost)
}

// clockISN is RFC 6528's sum. The hash's upper half, which tells tuples apart in
// ends, is not in it.
func clockISN(h uint64, nanos int64) uint32 { return uint32(uint64(nanos)>>isnShift) + uint32(h) }

// isnStep is how far beyond the last sequence number a corrected ISN lies: one
// unscaled window, so that no segment of the old connection that is still in
// flight can fall into the new one's first window.
const isnStep = 1 << 16

// beyondLast returns isn if it lies after last in sequence space, else a number
// isnStep beyond last. Linux takes a SYN in TIME_WAIT only if its sequence number
// is beyond what it received (RFC 6191 section 2).
func beyondLast(isn, last uint32) uint32 {
	if int32(isn-last) > 0 {
		return isn
	}
	return last + isnStep
}

// sipMost is how many words there are at most to be hashed.
const sipMost = 5

// sipHash24 is SipHash-2-4 (Aumasson and Bernstein, 2012) of m, shorter than
// 8*sipMost bytes, under the key k0, k1.
func sipHash24(k0, k1 uint64, m []byte) uint64 {
	var words [sipMost]uint64
	last, n := uint64(len(m))<<56, 0
	for ; len(m) >= 8; m = m[8:] {
		words[n] = binary.LittleEndian.Uint64(m)
		n++
	}
	for i, b := range m {
		last |= uint64(b) << (8 * i)
	}
	words[n] = last
	return sipWords(k0, k1, &words, n+1)
}

// sipWords is sipHash24 of a message's n words, the last of which has its length.
func sipWords(k0, k1 uint64, words *[sipMost]uint64, n int) uint64 {
	v0 := k0 ^ 0x736f6d6570736575
	v1 := k1 ^ 0x646f72616e646f6d
	v2 := k0 ^ 0x6c7967656e657261
	v3 := k1 ^ 0x7465646279746573
	for _, w := range words[:n] {
		v3 ^= w
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0, v1, v2, v3 = sipRound(v0, v1, v2, v3)
		v0 ^= w
	}
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

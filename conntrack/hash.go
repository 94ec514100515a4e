package conntrack

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// keys is the table's secret, expanded.
type keys [6]uint64

// expand derives the hash keys from the secret. A key must not be zero: a zero
// factor would wipe out the other operand of a multiplication for some input.
func expand(secret *[32]byte) keys {
	var k keys
	var in [33]byte
	copy(in[:], secret[:])
	for i := range k {
		in[32] = byte(i)
		sum := sha256.Sum256(in[:])
		k[i] = binary.LittleEndian.Uint64(sum[:]) | 1
	}
	return k
}

// fold multiplies to 128 bits and folds the halves together.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Hash is the table's keyed hash of a tuple; equal tuples give equal hashes
// and nothing else may be concluded from them. Its high bits choose the
// bucket, its low 16 the tag.
//
// What it withstands: somebody who does not know the secret cannot compute in
// advance which addresses and ports share a bucket, and the keys are 64-bit,
// so guessing them is out of reach. What is not claimed: it is no
// cryptographic function, there is no proof behind it, and one who could
// observe many outputs might solve for the keys. Outputs therefore never leave
// the process, and a bucket that fills up refuses the flow, it does not slow
// down the others.
func (t *Table) Hash(tu *packet.Tuple) uint32 { return t.keys.hash(tu) }

// Hash4 is Hash of a tuple of IPv4: addrs is the source's address above the
// destination's, rest both ports, the source's lowest, and above them the protocol.
func (t *Table) Hash4(addrs, rest uint64) uint32 {
	k := &t.keys
	x := fold(fold(addrs^k[0], rest^k[1])^k[2], k[3])
	return uint32(x ^ x>>32)
}

// Keys are those of Hash4 and Hash6, for whoever computes these in assembly.
func (t *Table) Keys() *[6]uint64 { return (*[6]uint64)(&t.keys) }

// Hash6 is Hash of a tuple of IPv6: addrs is both addresses in network order, rest as for
// Hash4.
func (t *Table) Hash6(addrs *[32]byte, rest uint64) uint32 {
	const mapped = 0xffff << 32
	k := &t.keys
	x := fold(binary.BigEndian.Uint64(addrs[:])^k[0], binary.BigEndian.Uint64(addrs[8:])^mapped^k[1])
	y := fold(binary.BigEndian.Uint64(addrs[16:])^k[2], binary.BigEndian.Uint64(addrs[24:])^mapped^k[3])
	x = fold(fold(x^rest^k[4], y^k[5])^k[2], k[3])
	return uint32(x ^ x>>32)
}

func (k *keys) hash(tu *packet.Tuple) uint32 {
	const mapped = 0xffff << 32 // Lo of every IPv4 address has it
	rest := uint64(uint32(tu.SrcPort)|uint32(tu.DstPort)<<16) | uint64(tu.Proto)<<32
	src, dst := tu.Src.Lo^mapped, tu.Dst.Lo^mapped
	var x uint64
	if tu.Src.Hi|tu.Dst.Hi|(src|dst)>>32 == 0 {
		// IPv4: both addresses in one operand, all the rest in the other.
		x = fold(src<<32|dst^k[0], rest^k[1])
	} else {
		x = fold(tu.Src.Hi^k[0], src^k[1])
		y := fold(tu.Dst.Hi^k[2], dst^k[3])
		x = fold(x^rest^k[4], y^k[5])
	}
	x = fold(x^k[2], k[3])
	return uint32(x ^ x>>32)
}

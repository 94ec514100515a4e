package rss

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/l4fwd/l4fwd/packet"
)

// inputMax is the longest input: two IPv6 addresses and two ports.
const inputMax = 36

// KeyMin is how many bytes of key the longest input needs: each of its bits
// selects a window of 32 bits.
const KeyMin = inputMax + 4

// Spread says to which worker a NIC brings a packet. It is immutable and may
// be read by any number of workers at once; 36 KiB.
type Spread struct {
	table [inputMax][256]uint32 // XOR over the input's bytes gives the hash
	owner []uint8               // worker by hash modulo length
}

// ErrKey is a key too short for TCP over IPv6, or a table without a queue.
var ErrKey = errors.New("rss: unusable key or indirection table")

// New returns the spread of a NIC with this key and indirection table (queue
// by hash modulo length) over workers, where queue q belongs to worker q
// modulo workers. The NIC must hash addresses and ports of TCP and UDP in both
// families.
func New(key []byte, indirection []uint32, workers int) (*Spread, error) {
	if len(key) < KeyMin || len(indirection) == 0 || workers < 1 || workers > 255 {
		return nil, fmt.Errorf("%w: %d bytes of key, %d slots, %d workers", ErrKey, len(key), len(indirection), workers)
	}
	s := &Spread{owner: make([]uint8, len(indirection))}
	for i, q := range indirection {
		s.owner[i] = uint8(q % uint32(workers))
	}
	for at := range s.table {
		// The 40 bits of key that an input byte here can select from.
		window := uint64(binary.BigEndian.Uint32(key[at:]))<<8 | uint64(key[at+4])
		for b := range 256 {
			var h uint32
			for bit := range 8 {
				if b&(0x80>>bit) != 0 {
					h ^= uint32(window >> (8 - bit))
				}
			}
			s.table[at][b] = h
		}
	}
	return s, nil
}

// Hash is the Toeplitz hash of source address, destination address, source
// port and destination port, in network order.
func (s *Spread) Hash(t *packet.Tuple) uint32 {
	h, at := s.addrs(t)
	return h ^ s.word(at, uint32(t.SrcPort)<<16|uint32(t.DstPort))
}

// Worker is the worker on whose queue a NIC puts a packet with this tuple.
func (s *Spread) Worker(t *packet.Tuple) int {
	return int(s.owner[s.Hash(t)%uint32(len(s.owner))])
}

// addrs hashes the addresses and returns where the ports come in.
func (s *Spread) addrs(t *packet.Tuple) (h uint32, at int) {
	if t.Src.Is4() {
		return s.word(0, t.Src.V4()) ^ s.word(4, t.Dst.V4()), 8
	}
	for i, w := range [...]uint64{t.Src.Hi, t.Src.Lo, t.Dst.Hi, t.Dst.Lo} {
		h ^= s.word(8*i, uint32(w>>32)) ^ s.word(8*i+4, uint32(w))
	}
	return h, 32
}

// word hashes four bytes of input, the first of them at index at.
func (s *Spread) word(at int, w uint32) uint32 {
	t := s.table[at : at+4]
	return t[0][w>>24] ^ t[1][w>>16&0xff] ^ t[2][w>>8&0xff] ^ t[3][w&0xff]
}

package conntrack

import (
	"errors"
	"fmt"
	"unsafe"
)

const (
	magic         = 0x6c34667764637431 // "l4fwdct1"
	layoutVersion = 6                  // raise with any change of hash, header, layout, bucket, halfLink or Entry

	// maxFlows keeps Ref<<1|Dir within 32 bits.
	maxFlows = 1<<31 - 2
)

// header is the first pages of the memory: what a successor process needs to
// use the table, and every word of it that changes.
type header struct {
	magic       uint64
	version     uint32
	entrySize   uint32
	size        uint64 // of the whole memory, bytes
	flows       uint32 // entries, without the unused entry 0
	buckets     uint32
	halfOpenMax uint32
	probe       uint32 // buckets an item may live in
	keys        keys

	used      uint32 // entries in use
	fresh     uint32 // entries from here on were never used
	free      uint32 // first free entry used before, linked by wheelNext; 0 none
	halfLen   uint32 // flows in the half-open list
	wheelNow  uint32 // first tick the wheel is not done with
	_         uint32
	stats     Stats
	wheelHead [wheelLevels * wheelSlots][wheelChains]uint32 // by slot and chainOf
}

// halfLink is a flow's place in the list of half-open flows, by Ref. Place 0
// is the list's head: its next is the oldest flow, its prev the newest.
type halfLink struct{ prev, next uint32 }

// clockShift is by how much a flow's client's TCP timestamps are moved, by Ref.
type clockShift = uint32

// What docs/architecture.md promises of them, beside the entry and the bucket.
var (
	_ [8 - unsafe.Sizeof(halfLink{})]byte
	_ [unsafe.Sizeof(halfLink{}) - 8]byte
	_ [4 - unsafe.Sizeof(clockShift(0))]byte
	_ [unsafe.Sizeof(clockShift(0)) - 4]byte
)

// layout is where everything lies in the memory: offsets in bytes.
type layout struct {
	flows, buckets, halfOpen              uint32
	offHalf, offClock, offBucket, offFlow uint64
	size                                  uint64
}

const pageSize = 4096

func align(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// newLayout sizes a table: 172 bytes a flow, of which 128 are entry, 8
// half-open links, 4 clock, and 32 buckets, so that a full table with two items
// a flow uses four of eight slots. With five, some of 10 million flows find eight
// buckets in a row full; with four, none in simulations, and one item in a
// hundred lies outside its home. In a table kept full while flows come and go,
// one insert in some forty million was seen to find none.
func newLayout(flows, halfOpen uint32) layout {
	l := layout{flows: flows, halfOpen: halfOpen}
	l.buckets = flows/2 + 1
	l.offHalf = align(uint64(unsafe.Sizeof(header{})))
	l.offClock = align(l.offHalf + uint64(unsafe.Sizeof(halfLink{}))*uint64(flows+1))
	l.offBucket = align(l.offClock + uint64(unsafe.Sizeof(clockShift(0)))*uint64(flows+1))
	l.offFlow = align(l.offBucket + uint64(unsafe.Sizeof(bucket{}))*uint64(l.buckets))
	l.size = align(l.offFlow + uint64(unsafe.Sizeof(Entry{}))*uint64(flows+1))
	return l
}

// Errors of New and Attach.
var (
	ErrOptions = errors.New("options out of range")
	ErrLayout  = errors.New("memory does not hold a flow table of this layout")
)

// check reports whether h is the header of size bytes of memory this program
// can use, and how they are laid out. It trusts nothing in h.
func (h *header) check(size uint64) (layout, error) {
	switch {
	case h.magic != magic:
		return layout{}, fmt.Errorf("%w: magic %#x", ErrLayout, h.magic)
	case h.version != layoutVersion:
		return layout{}, fmt.Errorf("%w: version %d, want %d", ErrLayout, h.version, layoutVersion)
	case h.entrySize != uint32(unsafe.Sizeof(Entry{})):
		return layout{}, fmt.Errorf("%w: entries of %d bytes", ErrLayout, h.entrySize)
	case h.flows < 1 || h.flows > maxFlows || h.halfOpenMax < 1 || h.halfOpenMax > h.flows:
		return layout{}, fmt.Errorf("%w: %d flows, %d half-open", ErrLayout, h.flows, h.halfOpenMax)
	}
	l := newLayout(h.flows, h.halfOpenMax)
	switch {
	case h.buckets != l.buckets || h.size != l.size || size < l.size:
		return layout{}, fmt.Errorf("%w: %d buckets, %d of %d bytes", ErrLayout, h.buckets, size, h.size)
	case h.used > h.flows || h.fresh < 1 || h.fresh > h.flows+1 || h.free > h.flows || h.halfLen > h.used:
		return layout{}, fmt.Errorf("%w: %d used, %d fresh, %d free, %d half-open", ErrLayout, h.used, h.fresh, h.free, h.halfLen)
	case h.probe < 1 || h.probe > maxProbe || h.probe > h.buckets:
		return layout{}, fmt.Errorf("%w: probe length %d", ErrLayout, h.probe)
	}
	return l, nil
}

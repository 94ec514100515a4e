package conntrack

import (
	"math/bits"
	"unsafe"
)

const (
	bucketSlots = 8 // items in a bucket
	maxProbe    = 8 // buckets an item may live in, its home included
)

// bucket is one cache line: eight items, each a tag and a Cand, and how much
// of what is at home here had to be put into the buckets that follow.
type bucket struct {
	tags  [2]uint64           // lane i%4 of word i/4 is the tag of slots[i]; 0 is empty
	slots [bucketSlots]uint32 // Cand values; 0 is empty
	over  uint32              // items at home here that live further on
	reach uint32              // no such item lives more than this many buckets on; 0 when over is 0
	_     [2]uint32
}

// BucketLen is a bucket's length in bytes.
const BucketLen = 64

var _ [BucketLen - unsafe.Sizeof(bucket{})]byte
var _ [unsafe.Sizeof(bucket{}) - BucketLen]byte

const (
	lanes    = 0x0001_0001_0001_0001
	laneLow  = 0x7fff_7fff_7fff_7fff
	laneHigh = 0x8000_8000_8000_8000
)

// tagOf is the tag of a hash, never 0.
func tagOf(h uint32) uint64 {
	tag := uint64(h & 0xffff)
	if tag == 0 {
		tag = 1
	}
	return tag
}

// equalLanes sets the highest bit of every 16-bit lane in which w and pattern
// agree, and no other bit: the sum carries out of no lane.
func equalLanes(w, pattern uint64) uint64 {
	x := w ^ pattern
	return ^(x&laneLow + laneLow | x) & laneHigh
}

// home is the first bucket of a hash: fastrange over its high bits, so that
// the number of buckets need not be a power of two. Assembly has it too: candidates,
// prefetchBuckets, and package dataplane's glance. The latter two only prefetch: if they
// ask for the wrong bucket it is slow, and no test sees it.
func (t *Table) home(h uint32) uint32 {
	return uint32(uint64(h) * uint64(len(t.buckets)) >> 32)
}

// put stores an item in the first empty slot and reports whether there was one.
func (b *bucket) put(tag uint64, c Cand) bool {
	for w := range b.tags {
		m := equalLanes(b.tags[w], 0)
		if m == 0 {
			continue
		}
		lane := uint(bits.TrailingZeros64(m)) >> 4
		b.tags[w] |= tag << (lane * 16)
		b.slots[uint(w)*4+lane] = uint32(c)
		return true
	}
	return false
}

// take empties the slot that holds exactly c, under this tag, and reports whether
// there was one.
func (b *bucket) take(tag uint64, c Cand) bool {
	// The bits of both words in one: which of the eight slots it is cannot be
	// foreseen, so there is one branch for all and not one for each.
	for m := equalLanes(b.tags[0], tag*lanes)>>1 | equalLanes(b.tags[1], tag*lanes); m != 0; m &= m - 1 {
		bit := uint(bits.TrailingZeros64(m))
		word, lane := bit&1, bit>>4
		i := (word*4 + lane) % bucketSlots
		if b.slots[i] == uint32(c) {
			b.slots[i] = 0
			b.tags[word] &^= 0xffff << (lane * 16)
			return true
		}
	}
	return false
}

// link puts c under hash h into the home bucket or one of the following, and
// reports false if all of them are full.
func (t *Table) link(h uint32, c Cand) bool {
	home := t.home(h)
	hb := &t.buckets[home]
	i := home
	for d := uint32(0); d < t.probe; d++ {
		if t.buckets[i].put(tagOf(h), c) {
			if d > 0 {
				hb.over++
				hb.reach = max(hb.reach, d)
			}
			return true
		}
		i = t.next(i)
	}
	return false
}

// unlink takes c, linked under h, out of its bucket.
func (t *Table) unlink(h uint32, c Cand) {
	home := t.home(h)
	hb := &t.buckets[home]
	i := home
	for d := uint32(0); d < t.probe; d++ {
		if t.buckets[i].take(tagOf(h), c) {
			if d > 0 {
				hb.over--
				if hb.over == 0 {
					hb.reach = 0
				}
			}
			return
		}
		i = t.next(i)
	}
}

// next is the bucket after i, around the end.
func (t *Table) next(i uint32) uint32 {
	i++
	if i == uint32(len(t.buckets)) {
		i = 0
	}
	return i
}

package conntrack

import "unsafe"

// BatchSize is the most tuples that are looked up together: a power of two.
const BatchSize = 64

// Batch is the scratch of a burst's lookups, a row for each tuple.
type Batch struct {
	Packet  [BatchSize]uint8  // place in the burst of the packet whose tuple it is
	Hash    [BatchSize]uint32 // of the tuple
	Found   [BatchSize]Cand   // what may be its flow, or 0
	order   [2][BatchSize]uint8
	replies uint64
}

// PrefetchBuckets asks the processor for the home bucket of every hash.
func (t *Table) PrefetchBuckets(h []uint32) {
	if len(h) > 0 {
		prefetchBuckets(&t.buckets[0], &h[0], uint64(len(h)), uint64(len(t.buckets)))
	}
}

// Buckets are the home buckets of all hashes, for whoever asks for them in assembly: that
// of h is number h*len>>32.
func (t *Table) Buckets() [][BucketLen]byte {
	return unsafe.Slice((*[BucketLen]byte)(unsafe.Pointer(&t.buckets[0])), len(t.buckets))
}

// Candidates looks for the first n rows of b, whose Hash the caller has filled in and
// whose buckets should have been asked for some 200 ns ago. It fills in Found and asks the
// processor for both cache lines of every entry it names. Whether that is the flow is for
// the caller to see, or for Find.
func (t *Table) Candidates(b *Batch, n int) {
	b.replies = candidates(t, b, uint64(min(n, BatchSize)))
}

// Order returns the first n rows of b, by number: those whose Found is a flow's forward
// direction, or 0, and those of the other.
func (b *Batch) Order(n int) (forward, reply []uint8) {
	return b.order[Forward][:uint64(n)-b.replies], b.order[Reply][:b.replies]
}

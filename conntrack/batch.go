package conntrack

import "github.com/l4fwd/l4fwd/packet"

// BatchSize is the most tuples that are looked up together: a power of two.
const BatchSize = 64

// Batch is the scratch of a burst's lookups, a row for each tuple.
type Batch struct {
	Packet [BatchSize]uint8  // place in the burst of the packet whose tuple it is
	Hash   [BatchSize]uint32 // of the tuple
	Found  [BatchSize]Cand   // its flow, or 0
	order  [2][BatchSize]uint8
}

// PrefetchBuckets asks the processor for the home bucket of every hash.
func (t *Table) PrefetchBuckets(h []uint32) {
	if len(h) > 0 {
		prefetchBuckets(&t.buckets[0], &h[0], uint64(len(h)), uint64(len(t.buckets)))
	}
}

// FindAll looks up the first n rows of b, whose Packet and Hash the caller has
// filled in, and whose buckets should have been asked for some 200 ns ago. It
// fills in Found, and leads every row whose flow is found to both cache lines of its
// entry.
//
// Rows of one direction are compared after each other: the processor cannot
// guess which direction a packet has, and a wrong guess costs as much as the
// compare.
func (t *Table) FindAll(b *Batch, n int, pkts *[BatchSize]packet.Packet, dir *Directory) {
	n = min(n, BatchSize)
	replies := candidates(t, b, uint64(n))
	for _, k := range b.order[Forward][:uint64(n)-replies] {
		k &= BatchSize - 1
		tu := &pkts[b.Packet[k]&(BatchSize-1)].Tuple
		r := b.Found[k].Ref()
		if int(r) < len(t.entries) && t.entries[r].isForward(tu, dir) && t.entries[r].linkedForward() {
			continue
		}
		b.Found[k] = t.search(b.Hash[k], tu, dir)
	}
	for _, k := range b.order[Reply][:replies] {
		k &= BatchSize - 1
		tu := &pkts[b.Packet[k]&(BatchSize-1)].Tuple
		r := b.Found[k].Ref()
		if int(r) < len(t.entries) && t.entries[r].isFromServer(tu, dir) && t.entries[r].isToClient(tu, dir) {
			continue
		}
		b.Found[k] = t.search(b.Hash[k], tu, dir)
	}
}

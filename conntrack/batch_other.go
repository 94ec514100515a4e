//go:build !amd64 || purego

package conntrack

import "math/bits"

// ahead is how many rows' entries are asked for at a time.
const ahead = 8

// candidates is as in batch_amd64.go.
func candidates(t *Table, b *Batch, n uint64) (replies uint64) {
	for k := range n {
		h := b.Hash[k&(BatchSize-1)]
		c := t.first(t.home(h), tagOf(h)*lanes)
		b.Found[k&(BatchSize-1)] = c
		b.order[Forward][(k-replies)&(BatchSize-1)] = uint8(k)
		b.order[Reply][replies&(BatchSize-1)] = uint8(k)
		replies += uint64(c & 1)
		if k%ahead == ahead-1 {
			prefetchEntries(&t.entries[0], &b.Found[k&(BatchSize-ahead)], ahead)
		}
	}
	if rest := n % ahead; rest > 0 {
		prefetchEntries(&t.entries[0], &b.Found[n&(BatchSize-ahead)], rest)
	}
	return replies
}

// first returns the first item with the tag repeated in pattern, in bucket home or, if
// there is none, in those that follow as far as home's items may be, or 0.
func (t *Table) first(home uint32, pattern uint64) (c Cand) {
	reach := t.buckets[home].reach
	for i := home; ; i, reach = t.next(i), reach-1 {
		if c = t.buckets[i].first(pattern); c != 0 || reach == 0 {
			return c
		}
	}
}

// first returns the first item in b with the tag repeated in pattern, or 0.
func (b *bucket) first(pattern uint64) Cand {
	if m := equalLanes(b.tags[0], pattern); m != 0 {
		return Cand(b.slots[bits.TrailingZeros64(m)>>4&3])
	}
	if m := equalLanes(b.tags[1], pattern); m != 0 {
		return Cand(b.slots[4+bits.TrailingZeros64(m)>>4&3])
	}
	return 0
}

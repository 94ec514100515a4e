//go:build (amd64 || arm64) && !purego

package conntrack

// prefetchBuckets prefetches the home bucket, among nb from base on, of each
// of the n hashes from h on. It computes what Table.home does.
//
//go:noescape
func prefetchBuckets(base *bucket, h *uint32, n, nb uint64)

// prefetchEntries prefetches both lines of the entry, in the array from base
// on, of each of the n candidates from c on; of entry 0 for none.
//
//go:noescape
func prefetchEntries(base *Entry, c *Cand, n uint64)

//go:build (!amd64 && !arm64) || purego

package conntrack

// Without an instruction for it there is nothing to gain: the out-of-order
// window overlaps what it can.
func prefetchBuckets(_ *bucket, _ *uint32, _, _ uint64) {}

func prefetchEntries(_ *Entry, _ *Cand, _ uint64) {}

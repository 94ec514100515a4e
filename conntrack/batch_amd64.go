//go:build !purego

package conntrack

// candidates fills in Found of the first n rows of b with the first item in the
// home bucket of the row's hash that has its tag, or 0, and asks the processor for
// both lines of the item's entry. b.order gets the rows by direction, 0 counting as
// forward, of which replies are replies. batch_other.go has the same in Go.
//
//go:noescape
func candidates(t *Table, b *Batch, n uint64) (replies uint64)

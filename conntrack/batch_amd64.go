//go:build !purego

package conntrack

// candidates fills in Found of the first n rows of b with the first item that has the tag
// of the row's hash, in its home bucket or, if there is none, in those that follow, or 0,
// and asks the processor for both lines of the item's entry. In a full table one item in a
// hundred lives elsewhere, and what Found does not name costs ten times as much. b.order
// gets the rows by direction, 0 counting as forward, of which replies are replies.
// batch_other.go has the same in Go.
//
//go:noescape
func candidates(t *Table, b *Batch, n uint64) (replies uint64)

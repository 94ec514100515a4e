package conntrack

// walkLook bounds one CopyFrom where few entries hold flows: entries looked at for
// each that there is room for.
const walkLook = 4

// CopyFrom copies flows for people to look at, in the order of their Refs, from r on,
// which is 1 at first: as many as both refs and to have room for, or fewer, so that
// the time it takes is bounded in a table that is almost empty too. It returns how
// many, and from where to go on, 0 at the end.
//
// A flow that is in the table from the first of a row of such calls to the last is
// met once, whatever is inserted and removed between them; others once or not at all.
func (t *Table) CopyFrom(r Ref, refs []Ref, to []Entry) (n int, next Ref) {
	room := min(len(refs), len(to))
	end := Ref(t.hdr.fresh) // from here on entries were never used
	stop := min(end, r+Ref(walkLook*room))
	for ; r < stop && n < room; r++ {
		if e := &t.entries[r]; e.Proto != 0 {
			refs[n], to[n] = r, *e
			n++
		}
	}
	if r >= end {
		r = 0
	}
	return n, r
}

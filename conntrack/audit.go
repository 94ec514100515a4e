package conntrack

import "fmt"

// Audit walks the whole table and reports the first thing that does not add
// up: an item in a bucket that is no flow's, a flow that cannot be found, is
// not in the timer wheel exactly once, or is half-open and not in its list, or
// is not and still timed, an entry neither in use nor free. For tests; it takes as long as the table is
// large.
func (t *Table) Audit() error {
	for _, check := range []func() error{t.auditBuckets, t.auditEntries, t.auditWheel, t.auditHalfOpen} {
		if err := check(); err != nil {
			return fmt.Errorf("conntrack: audit: %w", err)
		}
	}
	return nil
}

// AuditTuples reports the first flow whose tuples have other hashes than it says, or lead to
// another one, which has them, too. Flows whose ids mean nothing in dir are left out. See
// Audit.
func (t *Table) AuditTuples(dir *Directory) error {
	for r := range t.entries {
		e := &t.entries[r]
		if e.Proto == 0 || !e.means(dir) {
			continue
		}
		fwd, rev := e.Tuples(dir)
		if e.fwdHash != t.keys.hash(&fwd) || !e.Mode.OneWay() && e.revHash != t.keys.hash(&rev) {
			return fmt.Errorf("conntrack: audit: flow %d: hashes %#x and %#x are not its tuples'", r, e.fwdHash, e.revHash)
		}
		if c := t.search(e.fwdHash, &fwd, dir); e.linkedForward() && c != cand(Ref(r), Forward) {
			return fmt.Errorf("conntrack: audit: flow %d: its client's tuple leads to %d", r, c.Ref())
		}
		if c := t.search(e.revHash, &rev, dir); !e.Mode.OneWay() && c != cand(Ref(r), Reply) {
			return fmt.Errorf("conntrack: audit: flow %d: its server's tuple leads to %d", r, c.Ref())
		}
	}
	return nil
}

// auditBuckets compares what the buckets hold with what the flows should have
// there.
func (t *Table) auditBuckets() error {
	items, away := 0, make([]uint32, len(t.buckets))
	for i := range t.buckets {
		b := &t.buckets[i]
		for s, v := range b.slots {
			tag := b.tags[s/4] >> (s % 4 * 16) & 0xffff
			if v == 0 && tag == 0 {
				continue
			}
			c := Cand(v)
			if v == 0 || int(c.Ref()) >= len(t.entries) || t.entries[c.Ref()].Proto == 0 {
				return fmt.Errorf("bucket %d slot %d: tag %#x, item %#x", i, s, tag, v)
			}
			h := t.entries[c.Ref()].fwdHash
			if c.Dir() == Reply {
				h = t.entries[c.Ref()].revHash
			}
			home := t.home(h)
			far := (uint32(i) + uint32(len(t.buckets)) - home) % uint32(len(t.buckets))
			if tag != tagOf(h) || far > t.buckets[home].reach {
				return fmt.Errorf("bucket %d slot %d: flow %d cannot be found", i, s, c.Ref())
			}
			if far > 0 {
				away[home]++
			}
			items++
		}
	}
	for i, n := range away {
		if t.buckets[i].over != n || n == 0 && t.buckets[i].reach != 0 {
			return fmt.Errorf("bucket %d: %d items elsewhere, want %d, reach %d", i, t.buckets[i].over, n, t.buckets[i].reach)
		}
	}
	want := 0
	for r := range t.entries {
		switch e := &t.entries[r]; {
		case e.Proto == 0:
		case e.Mode.OneWay(), !e.linkedForward():
			want++
		default:
			want += 2
		}
	}
	if items != want {
		return fmt.Errorf("%d items in buckets, %d of flows", items, want)
	}
	return nil
}

// auditEntries: every entry is in use, in the free list, or was never used.
func (t *Table) auditEntries() error {
	used, free := uint32(0), uint32(0)
	for r := range t.entries {
		e := &t.entries[r]
		if e.Proto != 0 {
			used++
		}
		if e.timer() != 0 && e.Flags&HalfOpen == 0 {
			return fmt.Errorf("flow %d is not half-open, and its handshake is timed", r)
		}
	}
	for r := t.hdr.free; r != 0; r = t.entries[r].wheelNext {
		if free++; free > t.hdr.flows || t.entries[r].Proto != 0 || r >= t.hdr.fresh {
			return fmt.Errorf("entry %d in the free list", r)
		}
	}
	if used != t.hdr.used || used+free+1 != t.hdr.fresh {
		return fmt.Errorf("%d entries in use, header says %d; %d free of %d", used, t.hdr.used, free, t.hdr.fresh-1)
	}
	if s := t.hdr.stats; s.Inserted-s.Removed != uint64(used) {
		return fmt.Errorf("%d flows inserted, %d removed, %d left", s.Inserted, s.Removed, used)
	}
	return nil
}

// auditWheel: every flow is linked once, where the wheel comes by in time.
func (t *Table) auditWheel() error {
	linked := uint32(0)
	for slot := range t.hdr.wheelHead {
		due := slotDue(t.hdr.wheelNow, uint32(slot))
		for chain, r := range t.hdr.wheelHead[slot] {
			for prev := uint32(0); r != 0; prev, r = r, t.entries[r].wheelNext {
				e := &t.entries[r]
				if linked++; linked > t.hdr.used || e.Proto == 0 || prev != 0 && e.wheelPrev != prev ||
					e.wheelSlot != uint16(slot+1) || chainOf(Ref(r)) != uint32(chain) {
					return fmt.Errorf("wheel slot %d, list %d: flow %d after %d", slot, chain, r, prev)
				}
				if before(later(e.Expires, t.hdr.wheelNow), due) {
					return fmt.Errorf("flow %d expires at tick %d, the wheel comes by at %d", r, e.Expires, due)
				}
			}
		}
	}
	if linked != t.hdr.used {
		return fmt.Errorf("%d flows in the wheel, %d in the table", linked, t.hdr.used)
	}
	return nil
}

// auditHalfOpen: the list holds just the flows that say so, and no more than
// there may be.
func (t *Table) auditHalfOpen() error {
	listed, marked := uint32(0), uint32(0)
	for r := t.half[0].next; r != 0; r = t.half[r].next {
		if listed++; listed > t.hdr.halfLen || t.entries[r].Proto == 0 || t.entries[r].Flags&HalfOpen == 0 {
			return fmt.Errorf("flow %d in the half-open list", r)
		}
	}
	for r := range t.entries {
		if e := &t.entries[r]; e.Proto != 0 && e.Flags&HalfOpen != 0 {
			marked++
		}
	}
	if listed != t.hdr.halfLen || marked != listed || listed > t.halfMax {
		return fmt.Errorf("%d half-open flows in the list, %d marked, header says %d of %d", listed, marked, t.hdr.halfLen, t.halfMax)
	}
	return nil
}
